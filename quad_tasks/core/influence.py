"""Influence of documents on the reference loss (method: "Influence", "Ways to score").

    g_r = (1 / n_r) Σ_{z in D_r} ∇L(z)       v = (F + λ I)^-1 g_r       q(z) = <v, ∇L(z)>

Sign: q > 0 means that training on z lowers the reference loss, to first order. Normalisers: g_r is a mean per reference
target; L(z), and so q(z), is a SUM over the document's targets: divide by `Scores.n_tokens` for influence per token.

Owns the reference gradient and the choice among the scorers (`quad_tasks.core.scorers`) with its gate: a scorer that is
not exact must first rank a calibration sample as `exact` does. (The paper prints the opposite sign: a change in loss.)

Shape suffixes: N documents, P positions of a batch, I block inputs (the constant one included), O block outputs,
K directions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block, matching_blocks
from quad_tasks.core.capture import backward
from quad_tasks.core.loss import Batch, frozen, head_weight, read_batch
from quad_tasks.core.scorers import Direction, score_by_gradient, score_by_losses, truncate

Scorer = Literal["exact", "low_rank", "forward_only"]

DEFAULT_ENERGY = 0.99
"""Share of a direction's squared norm that `low_rank` keeps, per block."""
DEFAULT_STEP = 3e-3
"""Length of `forward_only`'s step along the direction, in units of the norm of the tracked weights (pilot)."""
ENERGIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
STEPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Scores:
    """Influence of documents, in the order in which they came.

    Attributes:
        influence: [N] float64, summed over the document's targets; > 0: training on it lowers the reference loss.
        n_tokens: [N] int64, its targets: tokens less one.
    """

    influence: npt.NDArray[np.float64]
    n_tokens: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """How well a scorer ranks a sample, against `exact`.

    Attributes:
        scorer: the scorer measured.
        settings: its best setting, as keyword arguments of `score_documents`.
        spearman: rank correlation of influence per token with `exact`.
        accepted: whether it reaches the floor; if not, score with `exact`.
    """

    scorer: Scorer
    settings: Mapping[str, float]
    spearman: float
    accepted: bool


def gradient_sums(
    model: PreTrainedModel, batches: Iterable[Batch], blocks: Sequence[Block]
) -> tuple[dict[str, Tensor], int]:
    """Sum the gradient of the loss over all documents.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T]; read once.
        blocks: from `find_blocks`.

    Returns:
        Σ ∇L by block name, [O, I], on the CPU in float32 (float64 for a float64 model), and the number of targets.

    Raises:
        ValueError: a document without a target.
    """
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
    """Average the gradient of the loss over the targets of the reference set.

    Args:
        model: as for `gradient_sums`.
        batches: the reference set.
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
    scorer: Scorer = "exact",
    *,
    energy: float = DEFAULT_ENERGY,
    step: float = DEFAULT_STEP,
) -> Scores:
    """Score every document by its influence along one direction.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T]; read once.
        direction: the iHVP by block name, [O, I], from `ekfac.apply_inverse`.
        scorer: ``exact``; ``low_rank`` and ``forward_only`` are approximations to be calibrated first.
        energy: of ``low_rank``: share of the direction's squared norm to keep, in (0, 1].
        step: of ``forward_only``: length of the step, in units of the norm of the tracked weights.

    Returns:
        The scores, rows in batch order.

    Raises:
        ValueError: an unknown scorer or setting, a direction of other blocks, or a document without a target.
        UnsupportedLayer: as `find_blocks`.
        FloatingPointError: a score is not finite.
    """
    return score_directions(model, batches, {"": direction}, scorer, energy=energy, step=step)[""]


def score_directions(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    directions: Mapping[str, Direction],
    scorer: Scorer = "exact",
    *,
    energy: float = DEFAULT_ENERGY,
    step: float = DEFAULT_STEP,
) -> dict[str, Scores]:
    """Score every document along several directions at once, e.g. one per reference domain.

    The forward and backward passes are shared (``exact``, ``low_rank``).

    Args:
        model: as for `score_documents`.
        batches: as for `score_documents`; read once.
        directions: name to direction, all of the same blocks.
        scorer: as for `score_documents`.
        energy: as for `score_documents`.
        step: as for `score_documents`.

    Returns:
        The scores along each direction, by its name.

    Raises:
        ValueError: as `score_documents`, or no direction at all.
        UnsupportedLayer: as `find_blocks`.
        FloatingPointError: a score is not finite.
    """
    if scorer not in ("exact", "low_rank", "forward_only"):
        raise ValueError(f"scorer: expected 'exact', 'low_rank' or 'forward_only', got {scorer!r}")
    if not directions:
        raise ValueError("directions: expected at least one, got none")
    along = list(directions.values())
    blocks = matching_blocks(model, along[0].keys())
    if scorer == "forward_only":
        influence_NK, n_tokens_N = score_by_losses(model, batches, blocks, along, step)
    else:
        low_rank = scorer == "low_rank"
        maps = [truncate(direction, energy if low_rank else None) for direction in along]
        influence_NK, n_tokens_N = score_by_gradient(model, batches, blocks, maps, rounded=low_rank)
    finite_N = np.isfinite(influence_NK).all(axis=1)
    if not finite_N.all():
        raise FloatingPointError(f"document {int(finite_N.argmin())}: expected a finite influence, got NaN or infinity")
    return {name: Scores(influence_NK[:, k].copy(), n_tokens_N) for k, name in enumerate(directions)}


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    directions: Mapping[str, Direction],
    scorer: Scorer,
    floor: float = 0.999,
    shares: Mapping[str, float] | None = None,
) -> Calibration:
    """Find an approximate scorer's best setting on a sample and decide whether it may be used.

    Args:
        model: as for `score_documents`.
        batches: a sample of the pool; read several times.
        directions: the iHVPs to be scored with, by name, as for `score_directions`.
        scorer: ``low_rank``: the least energy that reaches the floor; ``forward_only``: the step of highest
            correlation, on a logarithmic grid; ``exact`` is accepted as it is.
        floor: least Spearman correlation with `exact` to accept.
        shares: what each direction counts; documents are ranked by the weighted sum. None: all alike.

    Returns:
        The calibration; when not accepted, score with ``exact``.

    Raises:
        ValueError: as `score_directions`.
        UnsupportedLayer: as `find_blocks`.
        FloatingPointError: a score is not finite.
    """
    if scorer == "exact":
        return Calibration("exact", {}, 1.0, True)
    setting, grid = ("energy", ENERGIES) if scorer == "low_rank" else ("step", STEPS)
    weights_K = np.array([1.0 if shares is None else shares[name] for name in directions])
    along = list(directions.values())
    exact_N, *tried = _score_grid(model, batches, along, weights_K, scorer, grid)
    spearmans = [_spearman(exact_N, scores_N) for scores_N in tried]
    reached = [index for index, spearman in enumerate(spearmans) if spearman >= floor]
    best = reached[0] if scorer == "low_rank" and reached else int(np.argmax(spearmans))
    return Calibration(scorer, {setting: grid[best]}, spearmans[best], spearmans[best] >= floor)


def _score_grid(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    along: Sequence[Direction],
    weights_K: npt.NDArray[np.float64],
    scorer: Scorer,
    grid: Sequence[float],
) -> list[npt.NDArray[np.float64]]:
    """Score exactly, then at every setting, per token and weighted, [N] each; all ranks share one backward pass."""
    blocks = matching_blocks(model, along[0].keys())
    whole = [truncate(direction, None) for direction in along]
    runs = [score_by_gradient(model, batches, blocks, whole)]
    if scorer == "low_rank":
        maps = [truncate(direction, energy) for energy in grid for direction in along]
        influence_NK, n_tokens_N = score_by_gradient(model, batches, blocks, maps, rounded=True)
        runs += [(part_NK, n_tokens_N) for part_NK in np.split(influence_NK, len(grid), axis=1)]
    else:
        runs += [score_by_losses(model, batches, blocks, along, step) for step in grid]
    return [influence_NK @ weights_K / n_tokens_N for influence_NK, n_tokens_N in runs]


def _add_gradients(sums: dict[str, Tensor], group: tuple[Block, ...], a_PI: Tensor, deltas_PO: list[Tensor]) -> None:
    """Add δ^T a; no mask is needed, since δ is zero at every position that does not count."""
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        sum_OI = sums[block.name]
        delta_PO, a_PI = delta_PO.to(sum_OI.dtype), a_PI.to(sum_OI.dtype)
        sum_OI[:, : a_PI.shape[1]].addmm_(delta_PO.T, a_PI)
        if block.bias:
            sum_OI[:, -1] += delta_PO.sum(dim=0)


def _spearman(a_N: npt.NDArray[np.float64], b_N: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(rankdata(a_N), rankdata(b_N))[0, 1])
