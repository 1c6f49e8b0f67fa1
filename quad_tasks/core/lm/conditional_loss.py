"""Score documents by the conditional loss: how much less a copy adapted to the reference loses on them.

    q(z) = L(θ, z) - L(θ_r, z)        θ_r: θ after a short training on the reference

Sign: q > 0 means that training on z lowers the reference loss, as for influence. To first order q is the influence of z
along the displacement θ - θ_r: a direction over ALL parameters, embeddings and head among them, which the optimizer
shaped in place of the Hessian's inverse. It takes two forward passes and no factors. Source: CoLoR-Filter
(Brandfonbrener et al. 2024, arXiv 2406.10670), which scores whole pools by it.

Shape suffixes: N documents, K adapted copies.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from quad_tasks.core.lm import training
from quad_tasks.core.lm.batching import Tokens
from quad_tasks.core.lm.measurement import document_losses

METHOD = 1
"""Number of the way a copy is adapted, a part of its key: another way makes another copy."""
WARMUP_SHARE, WEIGHT_DECAY = 0.05, 0.01
STEPS_A_PASS = 12
"""Optimizer steps that a pass over the reference has at least, however small it is."""


def adapt(
    model: PreTrainedModel,
    documents: Sequence[Tokens],
    passes: int,
    peak_rate: float,
    window_tokens: int,
    step_tokens: int,
    batch_tokens: int,
    generator: np.random.Generator,
) -> training.TrainingRecord:
    """Train a model on the reference, in place: several passes under one schedule.

    Args:
        model: trained in place; give a copy.
        documents: token ids of the reference.
        passes: over them; their windows are shuffled together.
        peak_rate: peak learning rate.
        window_tokens: longest sequence.
        step_tokens: targets of an optimizer step at most; fewer where a pass would have fewer than `STEPS_A_PASS`.
        batch_tokens: of a pass of the model, padding included.
        generator: draws the order.

    Returns:
        What the training took.
    """
    repeated = [ids for _ in range(passes) for ids in documents]
    n_targets = training.count_targets(repeated)
    step_tokens = max(1, min(step_tokens, n_targets // (passes * STEPS_A_PASS)))
    n_steps = training.count_steps(n_targets, step_tokens)
    schedule = training.Schedule(peak_rate, WARMUP_SHARE * n_steps, n_steps)
    optimizer = training.make_optimizer(model, WEIGHT_DECAY)
    return training.train(model, optimizer, repeated, schedule, 0, window_tokens, step_tokens, batch_tokens, generator)


def conditional_losses(
    model: PreTrainedModel,
    adapted: Sequence[PreTrainedModel],
    documents: Sequence[Tokens],
    window_tokens: int,
    batch_tokens: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Score documents by the losses of a model and of its adapted copies.

    Args:
        model: the checkpoint.
        adapted: copies of it, from `adapt`.
        documents: token ids, at least two each.
        window_tokens: longest sequence; a longer document is read window by window.
        batch_tokens: of a batch, padding included.

    Returns:
        [N, K] conditional losses in nats, summed over the document's targets; and its targets, [N].
    """
    nats_N, targets_N = document_losses(model, documents, window_tokens, batch_tokens)
    adapted_KN = [document_losses(one, documents, window_tokens, batch_tokens)[0] for one in adapted]
    return nats_N[:, None] - np.stack(adapted_KN, axis=1), targets_N
