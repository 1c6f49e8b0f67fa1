"""What the pilot decides: whether an approximate scorer is used, the threshold τ, and the pull size it advises."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import BanditConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.core import calibration
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.evaluation.diagnosis import ERROR_SHARE
from quad_tasks.core.evaluation.homogeneity import documents_for_error, homogeneity
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.flops import ModelSize
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.manifests.run import Calibration, PilotSummary
from quad_tasks.records import ModelUse, Stage
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.bandit.cost import Reading, length_costs, read_size, scored_tokens, scorer_flops
from quad_tasks.stages.bandit.ledger import read_ledger
from quad_tasks.stages.bandit.plan_round import EXACT, FEWEST_SCORED, Plan, find_room
from quad_tasks.stages.bandit.round_settings import RoundSettings
from quad_tasks.stages.bandit.score_round import SMALLER_SCORING, load_on_device
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

TRIED_SHARE = 0.25
"""Of what a pilot leaves, that may be spent on trying scorers."""


@stage_task("calibrate scorer")
def calibrate_scorer(
    store: Store, stage: Stage, plan: Plan, settings: RoundSettings, scores: Sequence[pa.Table]
) -> Calibration | None:
    """Try approximate scorers on a part of the pilot, as configured; None where scoring is exact.

    Args:
        store: the workspace.
        stage: the pilot's stage.
        plan: of the pilot.
        settings: of the stage's rounds.
        scores: what the pilot scored exactly, a table a chunk.
    """
    bandit = settings.bandit
    if bandit.scorer in ("exact", CONDITIONAL_LOSS):
        return None
    newly = list(scores[: len(plan.chunks)])
    if sum(map(len, newly)) < FEWEST_SCORED:  # the stage goes on with the scores of the one before
        return _scored_exactly(stage, bandit.scorer, f"the pilot has too few documents to try {bandit.scorer} on")
    pilot = pa.concat_tables(newly).select(["position", "n_tokens", "influence"])
    generator = make_generator(settings.seed, Stream.CALIBRATION, stage.number)
    sample = pilot.take(generator.permutation(len(pilot))[: bandit.calibration_documents])
    known = store, stage.version, settings.reading, EXACT
    ledger = read_ledger(store, stage, 0, bandit.discount)
    cost = float(length_costs(*known, scored_tokens(scores)).sum())
    room = find_room(store, stage, settings, ledger).flops - cost
    size = read_size(store, stage.version, settings.reading.attention)
    sample_flops = float(length_costs(*known, sample["n_tokens"].to_numpy()).sum())
    if not _is_worth_trying(bandit.scorer, size, settings.reading, sample_flops, room):
        return _scored_exactly(stage, bandit.scorer, f"trying {bandit.scorer} would cost more than it can save")
    item = (store, stage, sample, settings.use, bandit.scorer, bandit.scorer_floor, TRIED_SHARE * room)
    labels = ("calibrate", "samples")
    [found] = map_tasks(calibrate_chunk, [item], *labels, on_gpu=True, smaller=SMALLER_SCORING)
    notice(f"stage {stage.number}: {found.reason}")
    calibrated: Calibration = found
    return calibrated


def _scored_exactly(stage: Stage, scorer: str, why: str) -> Calibration:
    """Note that no scorer was tried, and say why."""
    reason = f"scored exactly, since {why}"
    notice(f"stage {stage.number}: {reason}")
    return Calibration(scorer=scorer, spearman=None, accepted=False, documents=0, used=dict(EXACT), reason=reason)


def _is_worth_trying(scorer: str, size: ModelSize, reading: Reading, sample_flops: float, room: float) -> bool:
    """Tell whether what is left scores more documents by an approximate scorer, its first trial paid, than exactly."""
    if math.isinf(room):
        return True
    tried = calibration.OWN if scorer == "auto" else [scorer]
    least = min(scorer_flops(size, {"scorer": name, "numbers": 0}, reading.directions).token for name in tried)
    cost = least / scorer_flops(size, EXACT, reading.directions).token
    return (room - cost * sample_flops) / cost > room


def calibrate_chunk(
    store: Store,
    stage: Stage,
    sample: pa.Table,
    use: ModelUse,
    scorer: str,
    floor: float,
    most_flops: float,
) -> Calibration:
    """Calibrate scorers on documents whose exact `influence` at their `position` is known, on a worker."""
    rows = read_positions(store, stage.version, sample["position"].to_numpy(), ["text"])
    direction = load_on_device(store, stage.direction, use.device)
    model, tokenizer = load_checkpoint(store, direction.checkpoint, use.dtype, use.device)
    batches, owner = make_batches(encode(tokenizer, rows["text"].to_pylist()), use.window_tokens, use.batch_tokens)
    exact_N = sample["influence"].to_numpy()
    found = calibrate(
        model, batches, owner, direction.by_set, scorer, floor, direction.shares, exact_N, most_flops=most_flops
    )
    used: dict[str, Any] = {"scorer": found.scorer, **found.settings} if found.accepted else dict(EXACT)
    if found.accepted and found.numbers:
        used["numbers"] = found.numbers
    return Calibration(
        scorer=found.scorer,
        spearman=found.spearman if found.trials else None,
        accepted=found.accepted,
        documents=len(sample),
        used=used,
        flops=found.flops,
        cost=found.cost,
        reason=_reason(found, floor),
    )


def _reason(found: calibration.Calibration, floor: float) -> str:
    """Say how documents are scored, and why."""
    settings = "".join(f" {name} {value:g}" for name, value in found.settings.items())
    ranks = f"a rank correlation of {found.spearman:.4f} with exact scoring"
    if found.accepted:
        return f"scored by {found.scorer}{settings}, at {found.cost:.0%} of exact scoring's FLOPs and {ranks}"
    if not found.trials:
        return f"scored exactly, since {found.scorer} could not be tried"
    if found.spearman < floor:
        return f"scored exactly, since {found.scorer} reaches {ranks}, expected {floor} (bandit.scorer_floor)"
    off = f"off by {found.error:.0%} of exact scores' standard deviation, expected at most {calibration.MOST_ERROR:.0%}"
    return f"scored exactly, since values of {found.scorer} are {off}"


def describe_pilot(influence_N: npt.NDArray[np.float64], arm_N: npt.NDArray[np.int32]) -> PilotSummary:
    """Say what documents drawn at random tell: the deviation that α weighs, and the m that tells arms apart.

    The m given is that of the wanted standard error of an arm's mean.
    """
    found = homogeneity(influence_N, arm_N)
    between, within = (found.between_variance, found.within_variance) if found else (0.0, 0.0)
    error = ERROR_SHARE * float(np.sqrt(between))
    return PilotSummary(
        influence_deviation=float(influence_N.std()),
        between_arms_deviation=float(np.sqrt(between)) if found else None,
        within_arms_deviation=float(np.sqrt(within)) if found else None,
        wanted_standard_error=error or None,
        documents_per_pull=documents_for_error(within, error) if error else None,
    )


def pilot_advice(settings: RoundSettings, pilot: PilotSummary, threshold: float) -> str:
    """Say what the pilot chose, which keys choose otherwise, and what it advises."""
    bandit, policy = settings.bandit, settings.policy
    given = " as configured" if bandit.threshold is not None else f", its {bandit.threshold_quantile} quantile"
    weighed = f"α = {policy.alpha:g} (bandit.alpha) weighs " if policy.alpha else ""
    needed = pilot.documents_per_pull
    advised = f"{needed} documents drawn at random tell an arm's mean" if needed else "arms' means do not differ"
    return (
        f"τ = {threshold:.4g}{given} (bandit.threshold); {weighed}σ = {pilot.influence_deviation:.4g}; "
        f"{advised}, a pull draws {policy.documents_per_pull} (bandit.documents_per_pull, bandit.active_share)"
    )


def choose_threshold(store: Store, stage: Stage, number: int, settings: BanditConfig, scores: pa.Table) -> float:
    """Return τ: configured, or a quantile of the pilot's `scores`, which its manifest then holds for the stage."""
    if settings.threshold is not None:
        return settings.threshold
    if number == 0:
        return float(np.quantile(scores["influence"].to_numpy(), settings.threshold_quantile))
    return rounds.read_round(store, stage.run, stage.number, 0).info.threshold
