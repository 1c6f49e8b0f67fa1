"""Measure documents' losses and mean hidden states in one forward pass.

Both are features that influence is predicted from (`core/selection/prediction.py`). A forward pass costs a third of
scoring exactly.

Shape suffixes: N rows of the batches, T tokens, H hidden state.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from quad_tasks.core.loss import Batch, frozen, head_weight, hidden_states, losses, read_batch


def losses_and_states(
    model: PreTrainedModel, batches: Iterable[Batch]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Measure every row's loss per target and its mean final hidden state.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T]; read once.

    Returns:
        [N] nats per target, and [N, H] means over the positions with a target; rows in batch order.

    Raises:
        ValueError: a row without a target.
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    means, states, head = [np.empty(0)], [torch.empty(0, head_width(model))], head_weight(model)
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            documents = read_batch(batch, head.device)
            hidden_NTH = hidden_states(model, documents)
            n, n_targets_N = len(documents.lengths_N), torch.tensor(documents.n_targets_N)
            row_M = torch.repeat_interleave(torch.arange(n), n_targets_N).to(head.device)
            loss_N = torch.zeros(n, dtype=torch.float64, device=head.device)
            loss_N.index_add_(0, row_M, losses(hidden_NTH, head, documents).double())
            targeted_MH = hidden_NTH.flatten(0, 1)[documents.positions_M].to(head.dtype)
            sum_NH = torch.zeros(n, targeted_MH.shape[1], dtype=head.dtype, device=head.device)
            sum_NH.index_add_(0, row_M, targeted_MH)
            means.append((loss_N.cpu() / n_targets_N).numpy())
            states.append(sum_NH.cpu().float() / n_targets_N[:, None])
    return np.concatenate(means), torch.cat(states).numpy()


def head_width(model: PreTrainedModel) -> int:
    """Return H, the width of the states that the head reads."""
    return int(model.get_output_embeddings().weight.shape[1])
