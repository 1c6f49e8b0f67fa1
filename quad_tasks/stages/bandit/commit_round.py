"""Stage: commit a round of the bandit, once its documents are scored (`score_round`): update the arms, choose τ.

A round counts once its manifest is committed. Arms' rewards and means come from the pulls alone, whose documents are a
random sample of their arms; where a pull comes upon a document scored before, its score is taken from the ledger. A
pull counts as the share of a whole one that was scored along the stage's direction.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core import bandit, carry_over, wasserstein
from quad_tasks.core.evaluation import diagnosis
from quad_tasks.core.evaluation.diversity import effective_arms
from quad_tasks.core.evaluation.homogeneity import add_pulls
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.manifests.run import Calibration, RoundInfo
from quad_tasks.records import BanditState, Finding, Pull, Stage
from quad_tasks.runtime.events import record_round
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_ui import show_round
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.cost import round_cost, scored_tokens
from quad_tasks.stages.bandit.draw_pulls import Draw, covered_positions
from quad_tasks.stages.bandit.estimate_left import estimate_left
from quad_tasks.stages.bandit.ledger import (
    SCORE_SCHEMA,
    SET_COLUMN,
    SPREAD_COLUMNS,
    LedgerState,
    load_arms,
    read_ledger,
    stage_scores,
)
from quad_tasks.stages.bandit.pilot import choose_threshold, describe_pilot, pilot_advice
from quad_tasks.stages.bandit.plan_round import Plan
from quad_tasks.stages.bandit.round_settings import RoundSettings
from quad_tasks.stages.bandit.score_index import ScoreIndex, add_scores, empty_index, scores_within
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import column_vectors
from quad_tasks.storage.store import Store

ARM_SCHEMA = pa.schema(
    [("arm", pa.int32()), ("cursor", pa.int64()), ("pulls", pa.float64()), ("reward_sum", pa.float64())]
)
PULL_SCHEMA = pa.schema(
    [
        ("arm", pa.int32()),
        ("cursor", pa.int64()),
        ("n_documents", pa.int64()),
        ("n_scored", pa.int64()),
        ("n_targets", pa.int64()),
        ("reward", pa.float64()),
        ("reward_variance", pa.float64()),
        ("ucb_score", pa.float64()),
    ]
)
RESCORED_SCHEMA = pa.schema([("position", pa.int64()), ("influence", pa.float64()), ("before", pa.float64())])


@stage_task("commit round")
def commit_round(
    store: Store,
    stage: Stage,
    number: int,
    settings: RoundSettings,
    plan: Plan,
    scores: list[pa.Table],
    calibration: Calibration | None = None,
) -> None:
    """Update the arms and commit the round to the ledger; its manifest says what it cost and what it found."""
    ledger = read_ledger(store, stage, number, settings.bandit.discount)
    first_K = load_arms(store, stage.version)["position"].to_numpy()
    rescored = _compare_rescored(ledger, scores[len(plan.chunks) :])
    before = _carry_over(ledger.state, rescored)
    pulled_N = np.concatenate([np.empty(0, np.int64), *(covered_positions(first_K, draw) for draw in plan.draws)])
    by_set = _label_active(settings.reference_sets, scores[: len(plan.chunks)], pulled_N)
    table = by_set.select(SCORE_SCHEMA.names)
    sample = _pilot_sample(pa.concat_tables([stage_scores(ledger, stage), table]), pulled_N) if number == 0 else table
    threshold = choose_threshold(store, stage, number, settings.bandit, sample)
    policy = bandit.centre_rewards(settings.policy, threshold)
    known = add_scores(ledger.known if ledger.direction == stage.direction else empty_index(), table)
    pulls = [_pull(draw, int(first_K[draw.arm]), known) for draw in plan.draws]
    after = bandit.update(before, pulls, policy, _neighbours(store, stage.version, policy, settings.seed))
    pull_rows = pa.Table.from_pylist(_pull_rows(pulls, bandit.ucb_scores(before, policy)), PULL_SCHEMA)
    findings = _findings(store, stage, settings, ledger, pull_rows, table, rescored)
    accepted = table["influence"].to_numpy() > threshold
    n_tokens = scored_tokens(scores)
    count, total, squares = (float(x) for x in after.reward_moments)
    info = RoundInfo(
        kind="pilot" if number == 0 else "bandit",
        threshold=threshold,
        direction=stage.direction,
        reward_moments=(count, total, squares),
        arms=len(pulls),
        **_count_scored(table, accepted),
        mean_reward=float(np.mean([p.reward for p in pulls if p.n_targets] or [0.0])),
        effective_arms=float(effective_arms(after.cursor.astype(np.float64))),
        findings=tuple(findings),
        scorer=dict(plan.scorer),
        calibration=calibration,
        pilot=describe_pilot(sample["influence"].to_numpy(), sample["arm"].to_numpy()) if number == 0 else None,
        cost=round_cost(store, stage.version, settings.reading, ledger, n_tokens, plan.scorer, calibration),
        cut=plan.cut,
        remaining=estimate_left(store, stage, number, settings, ledger, table, after, plan.cut),
    )
    written = {
        "arms": _changed_arms(ledger.state, after),
        "pulls": pull_rows,
        "scores": by_set.append_column("accepted", pa.array(accepted)),
    }
    if plan.rescored:
        written["rescored"] = rescored
    rounds.commit_round(store, stage.run, stage.number, number, written, info)
    record_round(store, stage.run, stage.number, number, info)
    _announce(store, stage, number, settings, info)
    show_round(stage, number, info, pull_rows.to_pylist())


def _count_scored(table: pa.Table, accepted: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Count the documents and tokens a round scored, those above τ among them, as its manifest names them."""
    n_tokens = table["n_tokens"].to_numpy()
    return {
        "documents": table.num_rows,
        "active_documents": int(table["active"].to_numpy().sum()),
        "tokens": int(n_tokens.sum()),
        "accepted_documents": int(accepted.sum()),
        "accepted_tokens": int(n_tokens[accepted].sum()),
    }


def _pilot_sample(known: pa.Table, pulled: npt.NDArray[np.int64]) -> pa.Table:
    """Keep the pilot's documents, those scored before among them; all that is known where the pilot drew none."""
    drawn = np.isin(known["position"].to_numpy(), pulled)
    return known.filter(pa.array(drawn)) if drawn.any() else known


def _findings(
    store: Store,
    stage: Stage,
    settings: RoundSettings,
    ledger: LedgerState,
    pulls: pa.Table,
    scores: pa.Table,
    rescored: pa.Table,
) -> list[Finding]:
    """Diagnose a stage by its pulls so far: those before a round and its own, its scores, and what was rescored."""
    pulled = [*ledger.pulled, pulls["arm"].to_numpy().astype(np.int64)]
    findings = diagnosis.diagnose_rounds(
        add_pulls(ledger.spread, *(pulls[name].to_numpy() for name in SPREAD_COLUMNS)),
        np.concatenate(pulled),
        np.repeat(np.arange(len(pulled)), [len(arms) for arms in pulled]),
        int(np.count_nonzero(load_arms(store, stage.version)["n_documents"].to_numpy())),
        diagnosis.PullSize(settings.pull.random_documents, settings.pull.documents_per_pull),
        ledger.stage_tokens + int(scores["n_tokens"].to_numpy().sum()),
        settings.stage_tokens,
    )
    stale = diagnosis.stale_influence(rescored["before"].to_numpy(), rescored["influence"].to_numpy())
    return [*findings, stale] if stale else findings


def _compare_rescored(ledger: LedgerState, scores: list[pa.Table]) -> pa.Table:
    """Put what was scored again beside what it scored before."""
    if not scores:
        return RESCORED_SCHEMA.empty_table()
    before = pa.concat_tables(ledger.scores)
    known = dict(zip(before["position"].to_pylist(), before["influence"].to_pylist(), strict=True))
    new = scores[0].select(["position", "influence"])
    return new.append_column("before", pa.array([known[p] for p in new["position"].to_pylist()])).cast(RESCORED_SCHEMA)


def _carry_over(state: BanditState, rescored: pa.Table) -> BanditState:
    """Put what arms' statistics say of another direction on the scale of the stage's, by what was scored along both."""
    if not len(rescored):
        return state
    ratio = carry_over.scale_between(rescored["before"].to_numpy(), rescored["influence"].to_numpy())
    return carry_over.rescale(state, ratio)


def _announce(store: Store, stage: Stage, number: int, settings: RoundSettings, info: RoundInfo) -> None:
    """Say what the pilot chose and what a round newly found, on the console."""
    if info.pilot is not None:
        notice(f"pilot of stage {stage.number}: {pilot_advice(settings, info.pilot, info.threshold)}")
    if info.remaining is not None:
        notice(f"stage {stage.number} round {number}: {describe_remaining(info)}")
    known = []
    if number > 0:
        last = rounds.read_round(store, stage.run, stage.number, number - 1)
        known = [finding.signature for finding in last.info.findings]
    announce_findings(f"stage {stage.number} round {number}", info.findings, known)


def describe_remaining(info: RoundInfo) -> str:
    """Say what scoring everything would add, with its interval, and what the run has cost so far."""
    if (found := info.remaining) is None:
        return ""
    cost = f", at {info.cost.share:.1%} of its cost" if info.cost else ""
    return (
        f"scoring everything would add about {found.left:.0%} ({found.low:.0%} to {found.high:.0%}) of full scoring's "
        f"gain{cost}"
    )


def _label_active(names: Sequence[str], scores: list[pa.Table], pulled: npt.NDArray[np.int64]) -> pa.Table:
    """Join a round's scores, those along each of several reference sets last, and tell those that no pull has drawn."""
    schema = pa.schema([*SCORE_SCHEMA, *((f"{SET_COLUMN}{name}", pa.float64()) for name in names)])
    if not scores:
        return schema.empty_table()
    table = pa.concat_tables(scores)
    active = ~np.isin(table["position"].to_numpy(), pulled)
    return table.append_column("active", pa.array(active)).select(schema.names).cast(schema)


def _pull(draw: Draw, first: int, known: ScoreIndex) -> Pull:
    """Sum up a draw of an arm whose documents begin at `first`; what was scored along another direction says nothing.

    Args:
        draw: of the arm.
        first: position of the arm's first document.
        known: what is scored along the stage's direction, the round's scores among them.
    """
    start = first + draw.cursor
    rewards, targets = scores_within(known, start, start + draw.n_documents)
    mean, variance = (float(rewards.mean()), float(rewards.var())) if len(rewards) else (0.0, 0.0)
    return Pull(*draw, int(targets.sum()), mean, variance, len(rewards))


def _pull_rows(pulls: Sequence[Pull], ucb: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    scores = [float(ucb[pull.arm]) for pull in pulls]
    return [
        {name: getattr(pull, name) for name in PULL_SCHEMA.names[:-1]}
        | {"ucb_score": score if np.isfinite(score) else None}
        for pull, score in zip(pulls, scores, strict=True)
    ]


def _changed_arms(before: BanditState, after: BanditState) -> pa.Table:
    """Keep the arms a round changed: the ledger grows with what was pulled."""
    moved = (before.cursor != after.cursor) | (before.pulls != after.pulls)
    changed = np.flatnonzero(moved | (before.reward_sum != after.reward_sum))
    columns = [changed, after.cursor[changed], after.pulls[changed], after.reward_sum[changed]]
    return pa.table(columns, names=ARM_SCHEMA.names).cast(ARM_SCHEMA)


def _neighbours(store: Store, version: str, policy: bandit.Policy, seed: int) -> wasserstein.Neighbours | None:
    if policy.propagation == "none":
        return None
    return _load_neighbours(store, version, policy.bandwidth, seed)


@functools.lru_cache(maxsize=1)
def _load_neighbours(store: Store, version: str, bandwidth: float | None, seed: int) -> wasserstein.Neighbours:
    """Find the arms' neighbours; none where there is a single arm, or arms coincide so that no distance tells them."""
    arms = load_arms(store, version)
    centroids, variances = (column_vectors(arms[name]) for name in ("centroid", "variance"))
    if bandwidth is None and len(arms) > 1:
        bandwidth = wasserstein.choose_bandwidth(centroids, variances, make_generator(seed, Stream.BANDWIDTH))
    if not bandwidth:
        return wasserstein.no_neighbours(len(arms))
    return wasserstein.neighbour_lists(centroids, variances, bandwidth)
