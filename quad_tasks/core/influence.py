"""Compute the influence of documents on the reference loss.

    g_r = (1 / n_r) Σ_{z in D_r} ∇L(z)       v = (F + λ I)^-1 g_r       q(z) = <v, ∇L(z)>

D_r is the reference set, n_r its number of targets, F the curvature (`ekfac.py`). Sign: q > 0 means that training on z
lowers the reference loss, to first order (the paper prints the opposite sign: a change in loss). Normalisers: g_r is a
mean per reference target; L(z), and so q(z), is a SUM over the document's targets: divide by `Scores.n_tokens` for
influence per token.

Owns the reference gradient and the choice among the scorers (`scorers.py`); `calibration.py` says when an approximate
one may be used.

Shape suffixes: N documents, T tokens, P positions of a batch, N * T, I block inputs (the constant
one included), O block outputs, K directions, V vocabulary, D hidden width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block, matching_blocks
from quad_tasks.core.capture import backward
from quad_tasks.core.loss import Batch, frozen, head_weight, read_batch
from quad_tasks.core.scorers import Direction, Scorer
from quad_tasks.plugins import load_plugin

DEFAULT_ENERGY = 0.99
"""Share of a direction's squared norm that `low_rank` keeps, per block."""
DEFAULT_STEP = 3e-3
"""Step length of `forward_only` along the direction, in units of the norm of the tracked weights (from a pilot)."""


class NotFinite(FloatingPointError):
    """A score that is NaN or infinite.

    Attributes:
        row: of the document, in batch order.
    """

    def __init__(self, row: int) -> None:
        """Name the row; whoever knows the documents names the document."""
        super().__init__(f"document {row}: expected a finite influence, got NaN or infinity")
        self.row = row


def check_finite(scores_NK: npt.NDArray[np.float64]) -> None:
    """Refuse scores of documents, [N, K], of which one is NaN or infinite.

    Raises:
        NotFinite: names the first such document's row.
    """
    finite_N = np.isfinite(scores_NK).all(axis=1)
    if not finite_N.all():
        raise NotFinite(int(finite_N.argmin()))


@dataclass(frozen=True)
class Scores:
    """Influence of documents, in batch order.

    Attributes:
        influence: [N] float64, summed over the document's targets; > 0: training on it lowers the reference loss.
        n_tokens: [N] int64, the document's targets: its tokens less one.
    """

    influence: npt.NDArray[np.float64]
    n_tokens: npt.NDArray[np.int64]


def gradient_sums(
    model: PreTrainedModel, batches: Iterable[Batch], blocks: Sequence[Block]
) -> tuple[dict[str, Tensor], int]:
    """Sum the gradient of the loss over documents.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T]; read once.
        blocks: from `find_blocks`.

    Returns:
        Σ ∇L by block name, [O, I], on the CPU in float32 (float64 for a float64 model), and the number of targets.

    Raises:
        ValueError: a document without a target.
    """
    # Each batch: compact it, run forward and backward; the hooks add δ^T a of every block: [O, I]
    weight_VD = head_weight(model)
    sums = {block.name: weight_VD.new_zeros(block.shape) for block in blocks}
    n_targets = 0
    with frozen(model):
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            backward(model, documents, blocks, partial(_add_gradients, sums), weight_VD)
            n_targets += len(documents.positions_M)
    return {name: sum_OI.cpu() for name, sum_OI in sums.items()}, n_targets


def reference_gradient(model: PreTrainedModel, batches: Iterable[Batch], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Compute the reference gradient g_r: the mean gradient of the loss per target of the reference set.

    Args:
        model: as for `gradient_sums`.
        batches: the reference set, as for `gradient_sums`.
        blocks: from `find_blocks`.

    Returns:
        g_r by block name, [O, I], mean per target.

    Raises:
        ValueError: the reference set is empty, or holds a document without a target.
    """
    sums, n_targets = gradient_sums(model, batches, blocks)
    if n_targets == 0:
        raise ValueError("reference set: expected at least one document, got none")
    return {name: sum_OI / n_targets for name, sum_OI in sums.items()}


def score_documents(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    direction: Direction,
    scorer: str = "exact",
    *,
    energy: float = DEFAULT_ENERGY,
    step: float = DEFAULT_STEP,
) -> Scores:
    """Score documents by their influence along one direction.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T]; read once.
        direction: the iHVP by block name, [O, I], from `ekfac.apply_inverse`.
        scorer: ``exact``; ``low_rank``, ``forward_only`` and those of packages are to be calibrated first.
        energy: for ``low_rank``: share of the direction's squared norm to keep, in (0, 1].
        step: for ``forward_only``: step length, in units of the norm of the tracked weights, > 0.

    Returns:
        The scores, documents in batch order.

    Raises:
        ValueError: an unknown scorer or setting, a direction of other blocks, or a document without a target.
        UnsupportedLayer: as `find_blocks`.
        NotFinite: a score is not finite.
    """
    return score_directions(model, batches, {"": direction}, scorer, energy=energy, step=step)[""]


def score_directions(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    directions: Mapping[str, Direction],
    scorer: str = "exact",
    *,
    energy: float = DEFAULT_ENERGY,
    step: float = DEFAULT_STEP,
) -> dict[str, Scores]:
    """Score documents along several directions at once, e.g. one per reference domain.

    ``exact`` and ``low_rank`` share one forward and backward pass among all directions.

    Args:
        model: as for `score_documents`.
        batches: as for `score_documents`; read once.
        directions: directions by name, all of the same blocks.
        scorer: as for `score_documents`.
        energy: as for `score_documents`.
        step: as for `score_documents`.

    Returns:
        The scores along each direction, by its name.

    Raises:
        ValueError: as `score_documents`, or no direction at all.
        UnsupportedLayer: as `find_blocks`.
        NotFinite: a score is not finite.
    """
    return score_prepared(model, batches, prepare_directions(model, directions, scorer, energy=energy, step=step))


@dataclass(frozen=True)
class Prepared:
    """Directions as a scorer takes them, made once for any number of batches (`prepare_directions`)."""

    names: tuple[str, ...]
    blocks: Sequence[Block]
    along: Sequence[Any]
    scorer: Scorer
    settings: Mapping[str, float]


def prepare_directions(
    model: PreTrainedModel,
    directions: Mapping[str, Direction],
    scorer: str = "exact",
    *,
    energy: float = DEFAULT_ENERGY,
    step: float = DEFAULT_STEP,
) -> Prepared:
    """Make of directions what a scorer takes.

    For ``low_rank`` it is a decomposition of every block, for ``forward_only`` two copies of the tracked weights.
    Arguments are those of `score_directions`; the model is the one that is to score.

    Raises:
        ValueError: an unknown scorer or setting, a direction of other blocks, or no direction at all.
        UnsupportedLayer: as `find_blocks`.
    """
    named: Scorer = load_plugin("scorers", scorer)
    if not directions:
        raise ValueError("directions: expected at least one, got none")
    settings = {"energy": energy, "step": step}
    along = list(directions.values())
    blocks = matching_blocks(model, along[0])
    return Prepared(tuple(directions), blocks, named.prepare(model, blocks, along, settings), named, settings)


def score_prepared(model: PreTrainedModel, batches: Iterable[Batch], prepared: Prepared) -> dict[str, Scores]:
    """Score documents as `score_directions` does, along directions that were prepared for this model."""
    # Influence along every direction, and targets: [N, K], [N]
    scorer, along, settings = prepared.scorer, prepared.along, prepared.settings
    influence_NK, n_tokens_N = scorer.score(model, batches, prepared.blocks, along, settings)
    check_finite(influence_NK)
    return {name: Scores(influence_NK[:, k].copy(), n_tokens_N) for k, name in enumerate(prepared.names)}


def _add_gradients(sums: dict[str, Tensor], group: tuple[Block, ...], a_PI: Tensor, deltas_PO: list[Tensor]) -> None:
    """Add δ^T a to every block's gradient, [O, I]; no mask is needed: δ is zero at positions that do not count."""
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        sum_OI = sums[block.name]
        delta_PO, a_PI = delta_PO.to(sum_OI.dtype), a_PI.to(sum_OI.dtype)
        sum_OI[:, : a_PI.shape[1]].addmm_(delta_PO.T, a_PI)
        if block.bias:  # the constant input's column
            sum_OI[:, -1] += delta_PO.sum(dim=0)
