"""Choose how documents are scored: an approximate scorer must first rank a calibration sample as `exact` does.

What is ranked is what a run ranks: documents, by their influence per token. The windows of a long document are summed
first; ranked one by one they would tell of lengths that no score has. Its values must be exact scoring's too, nearly: a
pilot's exact scores and the rounds' approximate ones stand beside each other. `auto` tries the cheaper way first and
stops as soon as nothing cheaper is left to try, since every trial is paid for out of what it is to save. It leaves
scoring by losses out where a bfloat16 model's products are faster than the float32 ones that this takes: fewer FLOPs
then take several times as long (on an H200 a document of 135M parameters four times).

Shape suffixes: N documents, W windows of them, K directions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block, matching_blocks
from quad_tasks.core.influence import score_directions
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.flops import ModelSize, PassFlops
from quad_tasks.core.loss import Batch
from quad_tasks.core.precision import accumulation_dtype, product_dtype
from quad_tasks.core.scorers import (
    Direction,
    Influences,
    LinearMap,
    Scorer,
    score_by_gradient,
    score_by_losses,
    truncate,
)
from quad_tasks.plugins import load_plugin

Float64 = npt.NDArray[np.float64]
ENERGIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
STEPS = (3e-3, 1e-3, 3e-4, 1e-2, 3e-2)
"""Tried in this order: what suits small models first, then shorter ones (SmolLM2's influence bends by the first: .93
rank correlation, by the third .998)."""
MOST_ERROR = 0.25
"""Largest error of a scorer's values, as a share of the standard deviation of exact ones: half of them would be .5."""
FEW, FEW_SHARE = 8, 0.25
"""Documents on which steps are tried: so many or that share of the sample, the larger."""


@dataclass(frozen=True)
class Trial:
    """One setting of an approximate scorer on the sample.

    Attributes:
        scorer: that was tried.
        settings: keyword arguments of `influence.score_documents`.
        spearman: rank correlation of influence per token with `exact`.
        error: root mean square of what its influence per token is off, as a share of exact's standard deviation.
        cost: FLOPs of scoring the sample by it, as a share of scoring it exactly.
        numbers: of `low_rank`: numbers that its directions hold as factors, together; else 0.
    """

    scorer: str
    settings: Mapping[str, float]
    spearman: float
    error: float
    cost: float
    numbers: int = 0

    def reaches(self, floor: float) -> bool:
        """Whether it ranks as `exact` does, to this rank correlation, and means the same by its values."""
        return self.spearman >= floor and self.error <= MOST_ERROR


@dataclass(frozen=True)
class Calibration:
    """How approximate scorers rank a sample, against `exact`.

    Attributes:
        scorer: the scorer chosen; where none was accepted, the one that came nearest, or the one asked for.
        settings: its setting, as for `Trial`.
        spearman: its rank correlation with `exact`; NaN where nothing was tried.
        error: as for `Trial`; NaN where nothing was tried.
        cost: FLOPs of scoring by it, as a share of exact scoring's.
        accepted: whether `Trial.reaches` says so; if not, score with `exact`.
        flops: of all that was tried.
        numbers: as for `Trial`.
        trials: in order.
    """

    scorer: str
    settings: Mapping[str, float]
    spearman: float
    error: float
    cost: float
    accepted: bool
    flops: float
    numbers: int = 0
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Documents that scorers are tried on, and the model that is to score them.

    Attributes:
        model: as for `influence.score_documents`.
        blocks: of the directions.
        batches: the documents' windows.
        owners_W: [W] document of each window, numbered from 0.
        lengths_W: [W] tokens of each window.
        longest: window of the sample, of which this may be a part.
        along: the directions.
        weights_K: [K] what each direction counts.
        size: of the model.
    """

    model: PreTrainedModel
    blocks: Sequence[Block]
    batches: Sequence[Batch]
    owners_W: npt.NDArray[np.int64]
    lengths_W: npt.NDArray[np.int64]
    longest: int
    along: Sequence[Direction]
    weights_K: Float64
    size: ModelSize

    def cost(self, reading: PassFlops) -> float:
        """Return the FLOPs of reading all windows in one way."""
        return float(flops.document_flops(reading, self.lengths_W, self.longest).sum())

    @property
    def exact(self) -> float:
        """FLOPs of scoring all windows exactly."""
        return self.cost(flops.exact_flops(self.size, len(self.along)))


class Bounds(NamedTuple):
    """What a scorer that is tried must keep to.

    Attributes:
        floor: least rank correlation that is accepted.
        cheapest: share of exact scoring's cost that what was accepted before takes: only less is worth a trial.
        flops: left for trials.
    """

    floor: float
    cheapest: float
    flops: float


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    owner_W: npt.NDArray[np.int64] | Tensor,
    directions: Mapping[str, Direction],
    scorer: str,
    floor: float = 0.999,
    shares: Mapping[str, float] | None = None,
    exact_N: Float64 | None = None,
    most_flops: float = np.inf,
) -> Calibration:
    """Find the best setting of an approximate scorer on a sample, or the cheapest scorer, and decide whether to use it.

    Args:
        model: as for `influence.score_documents`.
        batches: a sample of the pool, in windows; read several times.
        owner_W: [W] int64, the document of every row in batch order, as `lm.batching.make_batches` gives it.
        directions: the iHVPs to be scored with, by name, as for `influence.score_directions`.
        scorer: ``low_rank``: the least energy that reaches the floor; ``forward_only``: the first step that does on a
            few documents, or else the best; ``auto``: the cheaper of both in FLOPs, by losses where that is no slower
            and memory has room for copies of the weights; a package's as it is; ``exact`` is accepted untried.
        floor: least Spearman correlation with `exact` to accept.
        shares: what each direction counts; documents are ranked by the weighted sum. None: all alike.
        exact_N: [N] the documents' exact influence per token, weighted alike, by ascending owner; None: it is scored.
        most_flops: no further trial is made that would take more in all.

    Returns:
        The calibration; when not accepted, score with ``exact``.

    Raises:
        ValueError: as `influence.score_directions`.
        UnsupportedLayer: as `find_blocks`.
        FloatingPointError: a score is not finite.
    """
    if scorer == "exact":
        return Calibration("exact", {}, 1.0, 0.0, 1.0, True, 0.0)
    blocks = matching_blocks(model, next(iter(directions.values())).keys())
    sample = _sample(model, blocks, batches, owner_W, directions, shares)
    spent = 0.0
    if exact_N is None:
        whole = [truncate(direction, None) for direction in sample.along]
        exact_N = _by_document(sample, *score_by_gradient(model, batches, blocks, whole))[0]
        spent = sample.exact
    trials: list[Trial] = []
    for kind in _kinds(scorer, sample):
        if scorer == "auto" and kind == "forward_only" and (_widens(model) or not _has_room_for_copies(sample)):
            continue
        accepted = [trial.cost for trial in trials if trial.reaches(floor)]
        bounds = Bounds(floor, min(accepted, default=np.inf), most_flops - spent)
        attempt = OWN.get(kind) or partial(_try_as_it_is, kind)
        tried, took = attempt(sample, exact_N, bounds)
        trials, spent = trials + tried, spent + took
    return _choose(scorer, trials, floor, spent)


def _sample(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    owner_W: npt.NDArray[np.int64] | Tensor,
    directions: Mapping[str, Direction],
    shares: Mapping[str, float] | None,
) -> Sample:
    size, along = flops.model_size(model, blocks), list(directions.values())
    lengths_W = np.concatenate([batch["attention_mask"].sum(1).cpu().numpy() for batch in batches])
    weights_K = np.array([1.0 if shares is None else shares[name] for name in directions])
    owners_W = np.unique(np.asarray(owner_W), return_inverse=True)[1]
    return Sample(model, blocks, batches, owners_W, lengths_W, int(lengths_W.max()), along, weights_K, size)


def _of_documents(sample: Sample, chosen_W: npt.NDArray[np.bool_]) -> Sample:
    """Take some of a sample's documents, by their windows."""
    ends = np.cumsum([len(batch["attention_mask"]) for batch in sample.batches])[:-1]
    batches = [
        {name: tensor[torch.from_numpy(rows)] for name, tensor in batch.items()}
        for batch, rows in zip(sample.batches, np.split(chosen_W, ends), strict=True)
        if rows.any()
    ]
    owners_W = sample.owners_W[chosen_W]
    first = owners_W.min(initial=len(sample.owners_W))
    return replace(sample, batches=batches, owners_W=owners_W - first, lengths_W=sample.lengths_W[chosen_W])


def _kinds(scorer: str, sample: Sample) -> list[str]:
    """List the scorers to try, the one that can be cheaper first."""
    if scorer != "auto":
        return [scorer]
    by_losses = sample.cost(flops.forward_only_flops(sample.size, len(sample.along)))
    least = sample.cost(flops.contracted_flops(sample.size, 0))
    return ["forward_only", "low_rank"] if by_losses <= least else ["low_rank", "forward_only"]


def _widens(model: PreTrainedModel) -> bool:
    """Tell whether scoring by losses, in float32, multiplies slower than exact scoring, in the model's own dtype."""
    return product_dtype(model.dtype, model.device, rounded=False) != accumulation_dtype(model.dtype)


def _has_room_for_copies(sample: Sample) -> bool:
    """Tell whether the device has memory for what scoring by losses copies: tracked weights, twice a direction.

    Of a model in lower precision its other weights in float32 too, once. Half of what is free is left to activations.
    """
    model, values = sample.model, 2 * len(sample.along) * sample.size.tracked
    if model.dtype != accumulation_dtype(model.dtype):
        values += sample.size.maps - sample.size.tracked + int(model.get_input_embeddings().weight.numel())
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return bool(values * accumulation_dtype(model.dtype).itemsize <= free / 2)


def _try_losses(sample: Sample, exact_N: Float64, bounds: Bounds) -> tuple[list[Trial], float]:
    """Choose a step on a few documents and try it on all; nothing where that costs what was accepted, or too much."""
    reading = flops.forward_only_flops(sample.size, len(sample.along))
    each = sample.cost(reading)
    if each / sample.exact >= bounds.cheapest or each > bounds.flops:
        return [], 0.0
    n_few = max(FEW, round(FEW_SHARE * len(exact_N)))
    few, rest = (_of_documents(sample, chosen_W) for chosen_W in (sample.owners_W < n_few, sample.owners_W >= n_few))

    def score(part: Sample, step: float) -> Influences:
        return score_by_losses(part.model, part.batches, part.blocks, part.along, step)

    scored: dict[float, Influences] = {}
    likeness: dict[float, float] = {}
    for step in STEPS:
        if scored and (len(scored) * few.cost(reading) + each > bounds.flops or max(likeness.values()) >= bounds.floor):
            break
        scored[step] = score(few, step)
        [few_N] = _by_document(few, *scored[step])
        known_N = exact_N[: len(few_N)]
        # ranks alone tell little of a few documents, and values alone are those of the largest
        likeness[step] = min(_spearman(few_N, known_N), float(np.corrcoef(few_N, known_N)[0, 1]))
    step = max(likeness, key=lambda one: -1.0 if np.isnan(likeness[one]) else likeness[one])
    parts = [(few, scored[step]), (rest, score(rest, step))] if rest.batches else [(few, scored[step])]
    scores_N = np.concatenate([_by_document(part, *influences)[0] for part, influences in parts])
    trial = _trial("forward_only", {"step": step}, exact_N, scores_N, each / sample.exact)
    return [trial], each + (len(scored) - 1) * few.cost(reading)


def _try_low_rank(sample: Sample, exact_N: Float64, bounds: Bounds) -> tuple[list[Trial], float]:
    """Try all energies in one backward pass; none where no rank could cost less than what was accepted."""
    if sample.cost(flops.contracted_flops(sample.size, 0)) / sample.exact >= bounds.cheapest:
        return [], 0.0
    maps = [[truncate(direction, energy) for direction in sample.along] for energy in ENERGIES]
    numbers = [sum(_numbers(linear) for one in grid for linear in one.values()) for grid in maps]
    took = sample.cost(flops.contracted_flops(sample.size, sum(numbers)))
    if took > bounds.flops:
        return [], 0.0
    every = [one for grid in maps for one in grid]
    scored = score_by_gradient(sample.model, sample.batches, sample.blocks, every, rounded=True)
    trials = [
        _trial(
            "low_rank",
            {"energy": energy},
            exact_N,
            scores_N,
            sample.cost(flops.contracted_flops(sample.size, n)) / sample.exact,
            n,
        )
        for energy, n, scores_N in zip(ENERGIES, numbers, _by_document(sample, *scored), strict=True)
    ]
    return trials, took


OWN: Mapping[str, Callable[[Sample, Float64, Bounds], tuple[list[Trial], float]]] = {
    "low_rank": _try_low_rank,
    "forward_only": _try_losses,
}
"""How the product's own scorers are tried, over a grid of settings; another has none."""


def _try_as_it_is(name: str, sample: Sample, exact_N: Float64, bounds: Bounds) -> tuple[list[Trial], float]:
    """Try a scorer without settings; nothing where that costs too much."""
    scorer: Scorer = load_plugin("scorers", name)
    took = sample.cost(scorer.flops(sample.size, len(sample.along), {}))
    if took > bounds.flops:
        return [], 0.0
    directions = {str(k): direction for k, direction in enumerate(sample.along)}
    scored = list(score_directions(sample.model, sample.batches, directions, name).values())
    influence_WK = np.stack([one.influence for one in scored], axis=1)
    [scores_N] = _by_document(sample, influence_WK, scored[0].n_tokens)
    return [_trial(name, {}, exact_N, scores_N, took / sample.exact)], took


def _trial(
    scorer: str, settings: Mapping[str, float], exact_N: Float64, scores_N: Float64, cost: float, numbers: int = 0
) -> Trial:
    """Compare scores of documents, influence per token, with exact ones."""
    return Trial(scorer, settings, _spearman(exact_N, scores_N), relative_error(scores_N, exact_N), cost, numbers)


def relative_error(scores_N: Float64, exact_N: Float64) -> float:
    """Compute the root mean square of what scores are off, as a share of the standard deviation of exact ones."""
    return float(np.sqrt(np.mean((scores_N - exact_N) ** 2)) / exact_N.std())


def _choose(scorer: str, trials: Sequence[Trial], floor: float, spent: float) -> Calibration:
    """Choose the cheapest trial that reaches the floor, or the one of highest correlation, which is not accepted."""
    reached = [trial for trial in trials if trial.reaches(floor)]
    if not trials:
        return Calibration(scorer, {}, float("nan"), float("nan"), 1.0, False, spent)
    best = min(reached, key=lambda trial: trial.cost) if reached else max(trials, key=lambda trial: trial.spearman)
    return Calibration(
        best.scorer,
        best.settings,
        best.spearman,
        best.error,
        best.cost,
        bool(reached),
        spent,
        best.numbers,
        tuple(trials),
    )


def _by_document(sample: Sample, influence_WK: Float64, n_targets_W: npt.NDArray[np.int64]) -> list[Float64]:
    """Add windows up to documents, weight the directions, divide by targets: [N] for each set of directions."""
    n_sets = influence_WK.shape[1] // len(sample.along)
    n_targets_N = np.bincount(sample.owners_W, n_targets_W)
    return [
        np.bincount(sample.owners_W, part_WK @ sample.weights_K) / n_targets_N
        for part_WK in np.split(influence_WK, n_sets, axis=1)
    ]


def _numbers(linear: LinearMap) -> int:
    return linear.right_RI.numel() + (0 if linear.left_OR is None else linear.left_OR.numel())


def _spearman(a_N: Float64, b_N: Float64) -> float:
    return float(np.corrcoef(rankdata(a_N), rankdata(b_N))[0, 1])
