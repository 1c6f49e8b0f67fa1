"""Stage: one round of the bandit as drawn (`draw.py`): score its documents, take the rewards into account, commit.

A round counts once its manifest is committed. Arms' rewards and means come from the pulls alone, whose documents are a
random sample of their arms; where a pull comes upon a document scored before, its score is taken from the ledger.
"""

import functools
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from quad_tasks.artifacts import show_round
from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import bandit, diagnosis, wasserstein
from quad_tasks.core.diversity import effective_arms
from quad_tasks.core.influence import Scorer, calibrate, score_directions
from quad_tasks.core.model import encode, make_batches, pick_device
from quad_tasks.core.scorers import Direction
from quad_tasks.draw import EXACT, Draw, Plan, policy, pulled_positions, random_documents
from quad_tasks.findings import announce_findings
from quad_tasks.fit_factors import load_directions
from quad_tasks.progress import notice
from quad_tasks.records import BanditState, Pull, Stage
from quad_tasks.run import check_driver
from quad_tasks.state import SCORE_SCHEMA, SET_COLUMN, Reading, load_arms, read_state, stage_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import open_store

ARM_SCHEMA = pa.schema(
    [("arm", pa.int32()), ("cursor", pa.int64()), ("pulls", pa.float64()), ("reward_sum", pa.float64())]
)
PULL_SCHEMA = pa.schema(
    [
        ("arm", pa.int32()),
        ("cursor", pa.int64()),
        ("n_documents", pa.int64()),
        ("n_targets", pa.int64()),
        ("reward", pa.float64()),
        ("reward_variance", pa.float64()),
        ("ucb_score", pa.float64()),
    ]
)
RESCORED_SCHEMA = pa.schema([("position", pa.int64()), ("influence", pa.float64()), ("before", pa.float64())])
PREDICTED_SCORED_SHARE = 0.1
"""Share of the pool scored where a regression ranks the rest: beyond it a pilot's regression gained little."""


@step("score pulls")
def score_round(config: RunConfig, stage: Stage, plan: Plan) -> list[pa.Table]:
    """Score a round's documents against the direction; one table a chunk, what is scored again last."""
    device = pick_device(config.compute.device)
    model = config.model
    settings = (model.window_tokens, model.batch_tokens, model.dtype, device, dict(plan.scorer))
    chunks = [*plan.chunks, plan.rescored] if plan.rescored else plan.chunks
    items = [(config.workspace, stage, chunk, *settings) for chunk in chunks]
    return spread(score_chunk, items, "score", "pulls", on_gpu=True)


def score_chunk(
    workspace: str,
    stage: Stage,
    positions: tuple[int, ...],
    window_tokens: int,
    batch_tokens: int,
    dtype: str,
    device: str,
    scorer: dict[str, Any],
) -> pa.Table:
    """Score the documents at `positions`, windows of a document summed.

    With several reference sets, `influence` is the mean by weight of `influence_<set>`, each along its own direction.
    """
    columns = ["id", "source", "arm", "text"]
    rows = read_positions(open_store(workspace), stage.version, np.array(positions), columns)
    model, tokenizer = load_checkpoint(workspace, _fitted_at(workspace, stage.direction), dtype, device)
    documents = encode(tokenizer, rows["text"].to_pylist())
    batches, owner = make_batches(documents, window_tokens, batch_tokens)
    directions, shares = _load_directions(workspace, stage.direction, device)
    along = score_directions(model, batches, directions, **scorer)
    by_document = functools.partial(np.bincount, owner.numpy(), minlength=len(positions))
    n_targets = by_document(weights=next(iter(along.values())).n_tokens)
    by_set = {name: by_document(weights=scores.influence) / n_targets for name, scores in along.items()}
    table = pa.table(
        {
            "position": np.array(positions, dtype=np.int64),
            "id": rows["id"],
            "source": rows["source"],
            "arm": rows["arm"],
            "n_tokens": np.array([len(ids) for ids in documents]),
            "n_targets": n_targets.astype(np.int64),
            "influence": sum(shares[name] * influence for name, influence in by_set.items()),
        }
    )
    for name, influence in by_set.items() if len(by_set) > 1 else ():
        table = table.append_column(f"{SET_COLUMN}{name}", pa.array(influence))
    return table


@step("calibrate scorer")
def calibrate_scorer(config: RunConfig, stage: Stage, plan: Plan) -> dict[str, Any] | None:
    """Try the configured scorer on a part of the pilot; None where it is exact.

    Returns:
        `scorer`, `spearman` with exact scoring, `accepted`, `documents` it was tried on, and what is `used`: keyword
        arguments of `influence.score_documents`.
    """
    settings, model = config.bandit, config.model
    if settings.scorer == "exact":
        return None
    pilot = [position for chunk in plan.chunks for position in chunk]
    generator = np.random.default_rng([config.seed, 16, stage.number])
    sample = generator.permutation(np.array(pilot, dtype=np.int64))[: settings.calibration_documents]
    where = (model.window_tokens, model.batch_tokens, model.dtype, pick_device(config.compute.device))
    item = (config.workspace, stage, tuple(sample.tolist()), *where, settings.scorer, settings.scorer_floor)
    found: dict[str, Any] = spread(calibrate_chunk, [item], "calibrate", "samples", on_gpu=True)[0]
    if not found["accepted"]:
        notice(
            f"stage {stage.number}: scored exactly, since {settings.scorer} reaches a rank correlation of "
            f"{found['spearman']:.4f} with exact scoring, expected {settings.scorer_floor} (bandit.scorer_floor)"
        )
    return found


def calibrate_chunk(
    workspace: str,
    stage: Stage,
    positions: tuple[int, ...],
    window_tokens: int,
    batch_tokens: int,
    dtype: str,
    device: str,
    scorer: Scorer,
    floor: float,
) -> dict[str, Any]:
    """Calibrate a scorer on the documents at `positions`."""
    rows = read_positions(open_store(workspace), stage.version, np.array(positions), ["text"])
    model, tokenizer = load_checkpoint(workspace, _fitted_at(workspace, stage.direction), dtype, device)
    batches, _ = make_batches(encode(tokenizer, rows["text"].to_pylist()), window_tokens, batch_tokens)
    directions, shares = _load_directions(workspace, stage.direction, device)
    found = calibrate(model, batches, directions, scorer, floor, shares)
    used = {"scorer": scorer, **found.settings} if found.accepted else dict(EXACT)
    measured = {"scorer": scorer, "spearman": found.spearman, "accepted": found.accepted}
    return {**measured, "documents": len(positions), "used": used}


@step("commit round")
def commit_round(
    config: RunConfig,
    stage: Stage,
    number: int,
    plan: Plan,
    scores: list[pa.Table],
    calibration: dict[str, Any] | None = None,
) -> None:
    """Update the arms and commit the round to the ledger; its manifest says what it cost and what it found."""
    store = open_store(config.workspace)
    reading = read_state(config, stage, number)
    before, settings = reading.state, policy(config)
    ranges = [pulled_positions(config, stage, draw) for draw in plan.draws]
    by_set = _label_active(config, scores[: len(plan.chunks)], np.concatenate(ranges))
    table = by_set.select(SCORE_SCHEMA.names)
    known = pa.concat_tables([stage_scores(reading, stage), table])
    pulls = [_pull(draw, own, known) for draw, own in zip(plan.draws, ranges, strict=True)]
    after = bandit.update(before, pulls, settings, _neighbours(config, stage.version))
    threshold = _threshold(config, stage, number, table)
    rescored = _compare_rescored(reading, scores[len(plan.chunks) :])
    findings = _findings(config, stage, [*reading.scores[len(reading.scores) - number :], table])
    stale = diagnosis.stale_influence(rescored["before"].to_numpy(), rescored["influence"].to_numpy())
    findings += [stale] if stale else []
    accepted = table["influence"].to_numpy() > threshold
    ucb = bandit.ucb_scores(before, settings)
    n_tokens = table["n_tokens"].to_numpy()
    info = {
        "kind": "pilot" if number == 0 else "bandit",
        "threshold": threshold,
        "direction": stage.direction,
        "reward_moments": [float(x) for x in after.reward_moments],
        "arms": len(pulls),
        "documents": table.num_rows,
        "active_documents": int(table["active"].to_numpy().sum()),
        "tokens": int(n_tokens.sum()),
        "accepted_documents": int(accepted.sum()),
        "accepted_tokens": int(n_tokens[accepted].sum()),
        "mean_reward": float(np.mean([p.reward for p in pulls if p.n_targets] or [0.0])),
        "effective_arms": float(effective_arms(after.cursor.astype(np.float64))),
        "findings": [asdict(finding) for finding in findings],
        "scorer": dict(plan.scorer),
    }
    if number == 0:
        info["calibration"] = calibration
        info["pilot"] = describe_pilot(table["influence"].to_numpy(), table["arm"].to_numpy())
    pull_rows = [_pull_row(pull, ucb) for pull in pulls]
    written = {
        "arms": _changed_arms(before, after),
        "pulls": pa.Table.from_pylist(pull_rows, PULL_SCHEMA),
        "scores": by_set.append_column("accepted", pa.array(accepted)),
    }
    if plan.rescored:
        written["rescored"] = rescored
    check_driver(config.workspace, stage.run)
    rounds.commit_round(store, stage.run, stage.number, number, written, info)
    _announce(config, stage, number, info)
    show_round(stage, number, info, pull_rows)


def _findings(config: RunConfig, stage: Stage, scores: list[pa.Table]) -> list[diagnosis.Finding]:
    """Diagnose a stage by its rounds' score tables, from round 0 on."""
    table = pa.concat_tables(scores)
    at_random = ~table["active"].to_numpy(zero_copy_only=False)
    round_N = np.repeat(np.arange(len(scores)), [len(part) for part in scores])
    arms = load_arms(config.workspace, stage.version)
    return diagnosis.diagnose_rounds(
        table["influence"].to_numpy()[at_random],
        table["arm"].to_numpy()[at_random],
        round_N[at_random],
        int(np.count_nonzero(arms["n_documents"].to_numpy())),
        random_documents(config),
        int(table["n_tokens"].to_numpy().sum()),
        config.selection.budget_tokens // config.training.stages,
    )


def describe_pilot(influence_N: npt.NDArray[np.float64], arm_N: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Say what documents drawn at random tell: the deviation that α weighs, and the m that tells arms apart.

    Returns:
        `influence_deviation`, `between_arms_deviation`, `within_arms_deviation`, the `wanted_standard_error` of an
        arm's mean and the `documents_per_pull` that gives it; None where arms do not differ.
    """
    spread = diagnosis.homogeneity(influence_N, arm_N)
    between, within = (spread.between_variance, spread.within_variance) if spread else (0.0, 0.0)
    error = diagnosis.ERROR_SHARE * float(np.sqrt(between))
    return {
        "influence_deviation": float(influence_N.std()),
        "between_arms_deviation": float(np.sqrt(between)) if spread else None,
        "within_arms_deviation": float(np.sqrt(within)) if spread else None,
        "wanted_standard_error": error or None,
        "documents_per_pull": diagnosis.documents_for_error(within, error) if error else None,
    }


def _compare_rescored(reading: Reading, scores: list[pa.Table]) -> pa.Table:
    """Put what was scored again beside what it scored before."""
    if not scores:
        return RESCORED_SCHEMA.empty_table()
    before = pa.concat_tables(reading.scores)
    known = dict(zip(before["position"].to_pylist(), before["influence"].to_pylist(), strict=True))
    new = scores[0].select(["position", "influence"])
    return new.append_column("before", pa.array([known[p] for p in new["position"].to_pylist()])).cast(RESCORED_SCHEMA)


def _announce(config: RunConfig, stage: Stage, number: int, info: dict[str, Any]) -> None:
    """Say what the pilot chose and what a round newly found, on the console."""
    if number == 0:
        notice(f"pilot of stage {stage.number}: {_advice(config, info)}")
    known = []
    if number > 0:
        last = rounds.read_round(open_store(config.workspace), stage.run, stage.number, number - 1)
        known = [finding["signature"] for finding in last.info["findings"]]
    announce_findings(f"stage {stage.number} round {number}", info["findings"], known)


def _advice(config: RunConfig, info: dict[str, Any]) -> str:
    """Say what the pilot chose, which keys choose otherwise, and what it advises."""
    pilot, settings = info["pilot"], policy(config)
    given = (
        " as configured"
        if config.bandit.threshold is not None
        else f", its {config.bandit.threshold_quantile} quantile"
    )
    weighed = f"α = {settings.alpha:g} (bandit.alpha) weighs " if settings.alpha else ""
    needed = pilot["documents_per_pull"]
    advised = f"{needed} documents drawn at random tell an arm's mean" if needed else "arms' means do not differ"
    return (
        f"τ = {info['threshold']:.4g}{given} (bandit.threshold); {weighed}σ = {pilot['influence_deviation']:.4g}; "
        f"{advised}, a pull draws {settings.documents_per_pull} (bandit.documents_per_pull, bandit.active_share)"
    )


def _label_active(config: RunConfig, scores: list[pa.Table], pulled: npt.NDArray[np.int64]) -> pa.Table:
    """Join a round's scores, those along each of several reference sets last, and tell those that no pull has drawn."""
    names = list(config.reference.sets) if len(config.reference.sets) > 1 else []
    schema = pa.schema([*SCORE_SCHEMA, *((f"{SET_COLUMN}{name}", pa.float64()) for name in names)])
    if not scores:
        return schema.empty_table()
    table = pa.concat_tables(scores)
    active = ~np.isin(table["position"].to_numpy(), pulled)
    return table.append_column("active", pa.array(active)).select(schema.names).cast(schema)


def _pull(draw: Draw, own: npt.NDArray[np.int64], known: pa.Table) -> Pull:
    """Sum up a draw; what was scored of it against another direction says nothing here."""
    rows = np.flatnonzero(np.isin(known["position"].to_numpy(), own))
    rewards, targets = known["influence"].to_numpy()[rows], int(known["n_targets"].to_numpy()[rows].sum())
    mean, variance = (float(rewards.mean()), float(rewards.var())) if len(rows) else (0.0, 0.0)
    return Pull(*draw, targets, mean, variance)


def _pull_row(pull: Pull, ucb: np.ndarray[Any, Any]) -> dict[str, Any]:
    score = float(ucb[pull.arm])
    row = {name: getattr(pull, name) for name in PULL_SCHEMA.names[:-1]}
    return {**row, "ucb_score": score if np.isfinite(score) else None}


def _threshold(config: RunConfig, stage: Stage, number: int, scores: pa.Table) -> float:
    """Return τ: configured, or the pilot's quantile, which the pilot's manifest then holds for the stage."""
    if config.bandit.threshold is not None:
        return config.bandit.threshold
    if number == 0:
        return float(np.quantile(scores["influence"].to_numpy(), config.bandit.threshold_quantile))
    return float(rounds.read_round(open_store(config.workspace), stage.run, stage.number, 0).info["threshold"])


def _changed_arms(before: BanditState, after: BanditState) -> pa.Table:
    """Keep the arms a round changed: the ledger grows with what was pulled."""
    changed = np.flatnonzero((before.cursor != after.cursor) | (before.pulls != after.pulls))
    columns = [changed, after.cursor[changed], after.pulls[changed], after.reward_sum[changed]]
    return pa.table(columns, names=ARM_SCHEMA.names).cast(ARM_SCHEMA)


def load_state(config: RunConfig, stage: Stage, number: int) -> BanditState:
    """Return the arms' state before round `number`, from the ledger."""
    return read_state(config, stage, number).state


@functools.lru_cache(maxsize=4)
def _fitted_at(workspace: str, direction: str) -> str:
    """Return the checkpoint a direction was fitted at: influence along it is measured there."""
    checkpoint: str = read_manifest(open_store(workspace), f"{direction}/manifest.json")["checkpoint"]
    return checkpoint


@functools.lru_cache(maxsize=2)
def _load_directions(workspace: str, key: str, device: str) -> tuple[dict[str, Direction], dict[str, float]]:
    directions, shares = load_directions(open_store(workspace), key)
    here: dict[str, Direction] = {
        name: {block: tensor.to(device, torch.float32) for block, tensor in direction.items()}
        for name, direction in directions.items()
    }
    return here, shares


def _neighbours(config: RunConfig, version: str) -> wasserstein.Neighbours | None:
    settings = policy(config)
    if settings.propagation == "none":
        return None
    return _load_neighbours(config.workspace, version, settings.bandwidth, config.seed)


@functools.lru_cache(maxsize=1)
def _load_neighbours(workspace: str, version: str, bandwidth: float | None, seed: int) -> wasserstein.Neighbours:
    arms = load_arms(workspace, version)
    centroids, variances = (column_vectors(arms[name]) for name in ("centroid", "variance"))
    if bandwidth is None:
        bandwidth = wasserstein.choose_bandwidth(centroids, variances, np.random.default_rng([seed, 5]))
    return wasserstein.neighbour_lists(centroids, variances, bandwidth)


def rounds_committed(config: RunConfig, stage: Stage) -> int:
    """Count the stage's committed rounds: the next round's number."""
    return rounds.count_rounds(open_store(config.workspace), stage.run, stage.number)


def accepted_tokens(config: RunConfig, stage: Stage, number: int) -> int:
    """Count the tokens above τ in the stage's rounds before round `number`."""
    return read_state(config, stage, number).accepted_tokens


def wanted_tokens(config: RunConfig) -> int:
    """Return how many tokens above τ end a stage."""
    return math.ceil(config.bandit.oversample * config.selection.budget_tokens / config.training.stages)


def stop_reason(config: RunConfig, stage: Stage, number: int) -> str | None:
    """Say why a stage ends before round `number` (`exhausted`, `budget`, `max_rounds`, `max_scored`), or None."""
    if number == 0:
        return None
    reading = read_state(config, stage, number)
    state = reading.state
    if np.array_equal(state.cursor, state.n_documents):
        return "exhausted"
    if reading.accepted_tokens >= wanted_tokens(config):
        return "budget"
    if number >= config.bandit.max_rounds:
        return "max_rounds"
    scored = float(reading.scored_N.mean())
    share = config.bandit.max_scored_share
    if share is None:
        share = 1.0 if config.selection.mode == "instance" else PREDICTED_SCORED_SHARE
    return "max_scored" if scored >= share * (stage.number + 1) / config.training.stages else None
