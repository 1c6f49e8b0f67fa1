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

from quad_tasks.core.lm.device import to_device
from quad_tasks.core.loss import Batch, frozen, head_weight, hidden_states, losses, read_batch, sum_by_document


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
    head, n_targets = head_weight(model), list[int]()
    nats = [torch.zeros(0, dtype=torch.float64, device=head.device)]
    sums = [torch.zeros(0, head_width(model), dtype=head.dtype, device=head.device)]
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            documents = read_batch(batch, head.device)
            hidden_NTH = hidden_states(model, documents)
            counts_N = torch.tensor(documents.n_targets_N)
            row_M = to_device(torch.repeat_interleave(torch.arange(len(counts_N)), counts_N), head.device)
            targeted_MH = hidden_NTH.flatten(0, 1)[documents.positions_M].to(head.dtype)
            sum_NH = torch.zeros(len(counts_N), targeted_MH.shape[1], dtype=head.dtype, device=head.device)
            sums.append(sum_NH.index_add_(0, row_M, targeted_MH))
            nats.append(sum_by_document(losses(hidden_NTH, head, documents), documents))
            n_targets += documents.n_targets_N
    n_targets_N = torch.tensor(n_targets)
    mean_N = torch.cat(nats).cpu() / n_targets_N
    return mean_N.numpy(), (torch.cat(sums).cpu().float() / n_targets_N[:, None]).numpy()


def head_width(model: PreTrainedModel) -> int:
    """Return H, the width of the states that the head reads."""
    return int(model.get_output_embeddings().weight.shape[1])
