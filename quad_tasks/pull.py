"""Stage: one round of the bandit: choose arms, draw their next documents, score them, commit.

The ledger is the truth: a round's choice follows from the rounds committed before it and the seed, and a round counts
once its manifest is committed. State is read back from the ledger, never passed between rounds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import bandit, contextual, wasserstein
from quad_tasks.core.diversity import effective_arms
from quad_tasks.core.influence import score_documents
from quad_tasks.core.model import encode, make_batches, pick_device
from quad_tasks.records import BanditState, Pull, Stage
from quad_tasks.storage import rounds
from quad_tasks.storage.factors import load_tensors
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import column_vectors, read_positions, read_table
from quad_tasks.storage.store import Store, open_store

SCORE_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("arm", pa.int32()),
        ("n_tokens", pa.int64()),
        ("n_targets", pa.int64()),
        ("influence", pa.float64()),
        ("accepted", pa.bool_()),
    ]
)
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
PREDICTED_SCORED_SHARE = 0.1
"""Share of the pool scored where a regression ranks the rest: beyond it a pilot's regression gained little."""
PRESET_CHOICES = {
    "paper": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "released": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "thompson": ("arms_per_round", "documents_per_pull", "propagation"),
    "contextual": ("alpha", "arms_per_round", "documents_per_pull"),
}
"""What of a configuration each preset takes."""
Draw = tuple[int, int, int]
"""One pull before it is scored: arm, cursor, documents."""


@step("choose arms")
def choose_round(config: RunConfig, stage: Stage, number: int) -> list[Draw]:
    """Choose a round's pulls; round 0 is the random pilot, which estimates τ and gives every arm's mean a start."""
    state = load_state(config, stage, number)
    generator = np.random.default_rng([config.seed, 4, stage.number, number])
    if number == 0:
        return _choose_pilot(state, config.bandit.pilot_documents, generator)
    chosen = bandit.choose_arms(state, policy(config), generator, _arm_features(config.workspace, stage.version))
    m = config.bandit.documents_per_pull
    left = state.n_documents - state.cursor
    return [(int(arm), int(state.cursor[arm]), int(min(m, left[arm]))) for arm in np.sort(chosen)]


def _choose_pilot(state: BanditState, documents: int, generator: np.random.Generator) -> list[Draw]:
    """Draw documents uniformly from all that are left, each arm by its cursor: an arm's order is random already."""
    left = state.n_documents - state.cursor
    n = min(documents, int(left.sum()))
    counts = generator.multivariate_hypergeometric(left, n, method="marginals")
    return [(int(arm), int(state.cursor[arm]), int(counts[arm])) for arm in np.flatnonzero(counts)]


@step("score pulls")
def score_round(config: RunConfig, stage: Stage, draws: list[Draw]) -> list[pa.Table]:
    """Score every drawn document against the direction; one table a pull, its documents in arm order."""
    device = pick_device(config.compute.device)
    model = config.model
    settings = (model.window_tokens, model.batch_tokens, model.dtype, device)
    items = [(config.workspace, stage, draw, *settings) for draw in draws]
    return spread(score_pull, items, "score", "pulls")


def score_pull(
    workspace: str, stage: Stage, draw: Draw, window_tokens: int, batch_tokens: int, dtype: str, device: str
) -> pa.Table:
    """Draw one pull's documents and score them, windows of a document summed."""
    arm, cursor, n = draw
    store = open_store(workspace)
    start = int(load_arms(workspace, stage.version)["position"][arm].as_py()) + cursor
    rows = read_positions(store, stage.version, np.arange(start, start + n), ["id", "source", "text"])
    model, tokenizer = load_checkpoint(workspace, stage.checkpoint, dtype, device)
    documents = encode(tokenizer, rows["text"].to_pylist())
    batches, owner = make_batches(documents, window_tokens, batch_tokens)
    scores = score_documents(model, batches, _load_direction(workspace, stage.direction, dtype, device))
    influence = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, torch.as_tensor(scores.influence))
    targets = torch.zeros(n, dtype=torch.int64).index_add_(0, owner, torch.as_tensor(scores.n_tokens))
    return pa.table(
        {
            "position": np.arange(start, start + n),
            "id": rows["id"],
            "source": rows["source"],
            "arm": np.full(n, arm, dtype=np.int32),
            "n_tokens": np.array([len(ids) for ids in documents]),
            "n_targets": targets.numpy(),
            "influence": (influence / targets).numpy(),
        }
    )


@step("commit round")
def commit_round(config: RunConfig, stage: Stage, number: int, draws: list[Draw], scores: list[pa.Table]) -> None:
    """Update the arms and commit the round to the ledger; its manifest says what it cost and what it found."""
    store = open_store(config.workspace)
    before = load_state(config, stage, number)
    settings = policy(config)
    pulls = [_pull(draw, table) for draw, table in zip(draws, scores, strict=True)]
    after = bandit.update(before, pulls, settings, _neighbours(config, stage.version))
    table = pa.concat_tables(scores)
    threshold = _threshold(config, stage, number, table)
    accepted = table["influence"].to_numpy() > threshold
    table = table.append_column("accepted", pa.array(accepted)).select(SCORE_SCHEMA.names).cast(SCORE_SCHEMA)
    ucb = bandit.ucb_scores(before, settings)
    pulled = pa.Table.from_pylist([_pull_row(p, ucb) for p in pulls], PULL_SCHEMA)
    n_tokens = table["n_tokens"].to_numpy()
    info = {
        "kind": "pilot" if number == 0 else "bandit",
        "threshold": threshold,
        "direction": stage.direction,
        "reward_moments": [float(x) for x in after.reward_moments],
        "arms": len(pulls),
        "documents": table.num_rows,
        "tokens": int(n_tokens.sum()),
        "accepted_documents": int(accepted.sum()),
        "accepted_tokens": int(n_tokens[accepted].sum()),
        "mean_reward": float(np.mean([p.reward for p in pulls])),
        "effective_arms": float(effective_arms(after.cursor.astype(np.float64))),
    }
    written = {"arms": _changed_arms(before, after), "pulls": pulled, "scores": table}
    rounds.commit_round(store, stage.run, stage.number, number, written, info)


def _pull(draw: Draw, table: pa.Table) -> Pull:
    rewards = table["influence"].to_numpy()
    targets = int(table["n_targets"].to_numpy().sum())
    return Pull(*draw, targets, float(rewards.mean()), float(rewards.var()))


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


@dataclass
class _Reading:
    """How far this process has read a run's ledger, so that going on costs the new rounds only.

    Attributes:
        stage: the stage it is in.
        round: the next round to read.
        state: the state before that round.
        accepted_tokens: tokens above τ in the stage's rounds before it.
    """

    state: BanditState
    stage: int = 0
    round: int = 0
    accepted_tokens: int = 0


def load_state(config: RunConfig, stage: Stage, number: int) -> BanditState:
    """Return the state before round `number`, from the ledger: all arms of all rounds before it, stage by stage."""
    return _read_up_to(config, stage, number).state


def _read_up_to(config: RunConfig, stage: Stage, number: int) -> _Reading:
    store = open_store(config.workspace)
    reading = _reading(config.workspace, stage.run, stage.version)
    if (reading.stage, reading.round) > (stage.number, number):
        _reading.cache_clear()
        reading = _reading(config.workspace, stage.run, stage.version)
    while reading.stage < stage.number:
        _read_rounds(store, stage.run, reading, rounds.count_rounds(store, stage.run, reading.stage))
        if reading.round > 0:
            reading.state = bandit.discount(reading.state, config.bandit.discount)
        reading.stage, reading.round, reading.accepted_tokens = reading.stage + 1, 0, 0
    _read_rounds(store, stage.run, reading, number)
    return reading


@functools.lru_cache(maxsize=1)
def _reading(workspace: str, run: str, version: str) -> _Reading:
    return _Reading(bandit.initial_state(load_arms(workspace, version)["n_documents"].to_numpy()))


def _read_rounds(store: Store, run: str, reading: _Reading, end: int) -> None:
    """Apply the rounds from where `reading` stands up to round `end` of its stage."""
    while reading.round < end:
        manifest = rounds.read_round(store, run, reading.stage, reading.round)
        table = rounds.read_round_table(store, manifest, "arms")
        state, arm = reading.state, table["arm"].to_numpy()
        cursor, pulls, reward_sum = state.cursor.copy(), state.pulls.copy(), state.reward_sum.copy()
        cursor[arm], pulls[arm], reward_sum[arm] = table["cursor"], table["pulls"], table["reward_sum"]
        moments = np.array(manifest.info["reward_moments"])
        reading.round += 1
        reading.state = BanditState(state.n_documents, cursor, pulls, reward_sum, moments, reading.round)
        reading.accepted_tokens += manifest.info["accepted_tokens"]


@functools.lru_cache(maxsize=2)
def load_arms(workspace: str, version: str) -> pa.Table:
    """Load a pool version's arm index, with each arm's first `position` in arm order."""
    store = open_store(workspace)
    manifest = read_manifest(store, version)
    table = read_table(store, f"{manifest['tables']}/arms.parquet", None)
    starts = np.cumsum([0, *[part["rows"] for part in manifest["parts"]]])
    position = starts[table["part"].to_numpy()] + table["row"].to_numpy()
    return table.append_column("position", pa.array(position))


@functools.lru_cache(maxsize=2)
def _load_direction(workspace: str, key: str, dtype: str, device: str) -> dict[str, torch.Tensor]:
    arrays, _ = load_tensors(open_store(workspace), f"{key}/direction.safetensors")
    return {name: torch.from_numpy(array).to(device, torch.float32) for name, array in arrays.items()}


@functools.lru_cache(maxsize=2)
def _arm_features(workspace: str, version: str) -> np.ndarray[Any, Any]:
    arms = load_arms(workspace, version)
    sizes = (arms[name].to_numpy() for name in ("n_documents", "n_tokens"))
    return contextual.arm_features(column_vectors(arms["centroid"]), *sizes)


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


def policy(config: RunConfig) -> bandit.Policy:
    """Build the configured policy: its preset, and what the configuration says otherwise.

    Every arm is visited first only where the pilot has a document for each (Quad, section 4: while the budget allows).
    """
    settings = config.bandit
    presets: dict[str, Callable[..., bandit.Policy]] = {
        "paper": bandit.paper_policy,
        "released": bandit.released_policy,
        "thompson": bandit.thompson_policy,
        "contextual": bandit.contextual_policy,
    }
    choices = settings.model_dump(include=set(PRESET_CHOICES[settings.preset]), exclude_none=True)
    if settings.preset == "paper":
        choices["visit_every_arm"] = config.clustering.arms <= settings.pilot_documents
    return presets[settings.preset](**choices)


def rounds_committed(config: RunConfig, stage: Stage) -> int:
    """Count the stage's committed rounds: the next round's number."""
    return rounds.count_rounds(open_store(config.workspace), stage.run, stage.number)


def stop_reason(config: RunConfig, stage: Stage, number: int) -> str | None:
    """Say why a stage ends before round `number` (`exhausted`, `budget`, `max_rounds`, `max_scored`), or None."""
    if number == 0:
        return None
    reading = _read_up_to(config, stage, number)
    state = reading.state
    if np.array_equal(state.cursor, state.n_documents):
        return "exhausted"
    budget = config.selection.budget_tokens / config.training.stages
    if reading.accepted_tokens >= config.bandit.oversample * budget:
        return "budget"
    if number >= config.bandit.max_rounds:
        return "max_rounds"
    scored = float(state.cursor.sum()) / float(state.n_documents.sum())
    share = config.bandit.max_scored_share
    if share is None:
        share = 1.0 if config.selection.mode == "instance" else PREDICTED_SCORED_SHARE
    return "max_scored" if scored >= share * (stage.number + 1) / config.training.stages else None
