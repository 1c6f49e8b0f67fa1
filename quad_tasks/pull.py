"""Stage: one round of the bandit: choose arms, draw their next documents, score them, commit.

A round's choice follows from the rounds committed before it and the seed, and a round counts once its manifest is
committed. A pull takes the next documents of its arm, which stand in a random order. Beside the pulls a round draws
actively those of the pool's documents whose predicted influence lies nearest the selection's cut
(`core.prediction.active_draw`). Arms' rewards and means come from the pulls alone. A document is scored once: where a
pull comes upon one scored before, its score is taken from the ledger.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.choose import read_chosen, stage_budget
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import bandit, contextual, prediction, wasserstein
from quad_tasks.core.diversity import effective_arms
from quad_tasks.core.influence import score_documents
from quad_tasks.core.model import encode, make_batches, pick_device
from quad_tasks.predict import fit_scored, predict_positions
from quad_tasks.records import BanditState, Pull, Stage
from quad_tasks.state import SCORE_SCHEMA, Reading, load_arms, read_state, stage_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.factors import load_tensors
from quad_tasks.storage.positions import column_vectors, read_column, read_positions
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
PREDICTED_SCORED_SHARE = 0.1
"""Share of the pool scored where a regression ranks the rest: beyond it a pilot's regression gained little."""
PRESET_CHOICES = {
    "paper": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "released": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "thompson": ("arms_per_round", "documents_per_pull", "propagation"),
    "contextual": ("alpha", "arms_per_round", "documents_per_pull"),
}
"""What of a configuration each preset takes."""


class Draw(NamedTuple):
    """One pull before it is scored: the next `n_documents` of an arm, a random sample of what is left of it."""

    arm: int
    cursor: int
    n_documents: int


class Plan(NamedTuple):
    """What a round is to do.

    Attributes:
        draws: its pulls, by arm.
        chunks: positions to score, each scored at once: the pulls' documents not scored before, pull by pull, then
            those drawn actively.
    """

    draws: list[Draw]
    chunks: list[tuple[int, ...]]


@step("choose arms")
def choose_round(config: RunConfig, stage: Stage, number: int) -> Plan:
    """Choose a round's pulls; round 0 is the random pilot, which estimates τ and gives every arm's mean a start."""
    reading = read_state(config, stage, number)
    state = reading.state
    generator = np.random.default_rng([config.seed, 4, stage.number, number])
    left = state.n_documents - state.cursor
    if number == 0:
        count = _pilot_counts(left, config.bandit.pilot_documents, generator)
    else:
        chosen = bandit.choose_arms(state, policy(config), generator, _arm_features(config.workspace, stage.version))
        count = np.zeros_like(left)
        count[chosen] = np.minimum(_random_documents(config), left[chosen])
    arms = np.flatnonzero(count)
    draws = [Draw(int(arm), int(state.cursor[arm]), int(count[arm])) for arm in arms]
    ranges = [_positions(config, stage, draw) for draw in draws]
    chunks = [own[~reading.scored_N[own]] for own in ranges]
    if number > 0:
        chunks += _draw_active(config, stage, reading, np.concatenate(ranges), len(arms), generator)
    return Plan(draws, [tuple(chunk.tolist()) for chunk in chunks if len(chunk)])


def _pilot_counts(left: npt.NDArray[np.int64], documents: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw documents uniformly from all that are left, each arm by its cursor: an arm's order is random already."""
    n = min(documents, int(left.sum()))
    return generator.multivariate_hypergeometric(left, n, method="marginals")


def _positions(config: RunConfig, stage: Stage, draw: Draw) -> npt.NDArray[np.int64]:
    start = int(load_arms(config.workspace, stage.version)["position"][draw.arm].as_py()) + draw.cursor
    return np.arange(start, start + draw.n_documents)


def _random_documents(config: RunConfig) -> int:
    """Return how many of a pull's documents are drawn at random, at least one."""
    return config.bandit.documents_per_pull - int(config.bandit.active_share * config.bandit.documents_per_pull)


def _draw_active(
    config: RunConfig,
    stage: Stage,
    reading: Reading,
    pulled: npt.NDArray[np.int64],
    n_pulls: int,
    generator: np.random.Generator,
) -> list[npt.NDArray[np.int64]]:
    """Draw the pool's unscored documents predicted nearest the cut, as many as the round's pulls leave for it."""
    size = config.bandit.documents_per_pull
    n_active = n_pulls * (size - _random_documents(config))
    if n_active == 0:
        return []
    predicted, cut = _predicted(config, stage, reading)
    unscored = ~reading.scored_N & ~np.isnan(predicted)
    unscored[pulled] = False
    left = np.flatnonzero(unscored)
    rows, _ = prediction.active_draw(predicted[left], cut, n_active, 0.0, generator)
    drawn = left[rows]
    return [drawn[start : start + size] for start in range(0, len(drawn), size)]


@functools.lru_cache(maxsize=1)
def _predicted_pools() -> dict[tuple[str, str, str, int, int], tuple[npt.NDArray[np.float64], float]]:
    """Keep the last prediction of the pool in this process: a few rounds use each."""
    return {}


def _predicted(config: RunConfig, stage: Stage, reading: Reading) -> tuple[npt.NDArray[np.float64], float]:
    """Predict the pool from what was scored before round `reading.fitted_round`.

    Returns:
        [N] influence per token, measured where scored, NaN for what an earlier stage has chosen; and the influence at
        which a selection by it would end.
    """
    kept = _predicted_pools()
    key = (config.workspace, stage.run, stage.version, stage.number, reading.fitted_round)
    if key not in kept:
        kept.clear()
        kept[key] = _predict_pool(config, stage, reading)
    return kept[key]


def _predict_pool(config: RunConfig, stage: Stage, reading: Reading) -> tuple[npt.NDArray[np.float64], float]:
    store = open_store(config.workspace)
    scores = stage_scores(reading, stage).slice(0, reading.fitted_documents)
    generator = np.random.default_rng([config.seed, 15, stage.number, reading.fitted_round])
    n_arms = len(reading.state.n_documents)
    predictor = fit_scored(config.workspace, stage.version, scores, n_arms, generator)
    influence = predict_positions(config.workspace, stage.version, predictor, np.arange(len(reading.scored_N)))
    influence[scores["position"].to_numpy()] = scores["influence"].to_numpy()
    taken = read_chosen(store, stage.run, stage.number)
    influence[taken["position"].to_numpy()] = np.nan
    open_N = np.flatnonzero(~np.isnan(influence))
    budget = stage_budget(config, stage.number) - int(taken["n_tokens"].to_numpy().sum())
    targeted = max(int((1 - config.selection.general_share) * budget), 1)
    n_tokens = read_column(store, stage.version, "n_tokens")[open_N].astype(np.int64)
    return influence, prediction.selection_cut(influence[open_N], n_tokens, targeted)


@step("score pulls")
def score_round(config: RunConfig, stage: Stage, plan: Plan) -> list[pa.Table]:
    """Score a round's documents against the direction; one table a chunk, its rows in the chunk's order."""
    device = pick_device(config.compute.device)
    model = config.model
    settings = (model.window_tokens, model.batch_tokens, model.dtype, device)
    items = [(config.workspace, stage, chunk, *settings) for chunk in plan.chunks]
    return spread(score_chunk, items, "score", "pulls")


def score_chunk(
    workspace: str,
    stage: Stage,
    positions: tuple[int, ...],
    window_tokens: int,
    batch_tokens: int,
    dtype: str,
    device: str,
) -> pa.Table:
    """Score the documents at `positions`, windows of a document summed."""
    columns = ["id", "source", "arm", "text"]
    rows = read_positions(open_store(workspace), stage.version, np.array(positions), columns)
    model, tokenizer = load_checkpoint(workspace, stage.checkpoint, dtype, device)
    documents = encode(tokenizer, rows["text"].to_pylist())
    batches, owner = make_batches(documents, window_tokens, batch_tokens)
    scores = score_documents(model, batches, _load_direction(workspace, stage.direction, dtype, device))
    n = len(positions)
    influence = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, torch.as_tensor(scores.influence))
    targets = torch.zeros(n, dtype=torch.int64).index_add_(0, owner, torch.as_tensor(scores.n_tokens))
    return pa.table(
        {
            "position": np.array(positions, dtype=np.int64),
            "id": rows["id"],
            "source": rows["source"],
            "arm": rows["arm"],
            "n_tokens": np.array([len(ids) for ids in documents]),
            "n_targets": targets.numpy(),
            "influence": (influence / targets).numpy(),
        }
    )


@step("commit round")
def commit_round(config: RunConfig, stage: Stage, number: int, plan: Plan, scores: list[pa.Table]) -> None:
    """Update the arms and commit the round to the ledger; its manifest says what it cost and what it found."""
    store = open_store(config.workspace)
    reading = read_state(config, stage, number)
    before, settings = reading.state, policy(config)
    ranges = [_positions(config, stage, draw) for draw in plan.draws]
    table = _label_active(scores, np.concatenate(ranges))
    known = pa.concat_tables([stage_scores(reading, stage), table])
    pulls = [_pull(draw, own, known) for draw, own in zip(plan.draws, ranges, strict=True)]
    after = bandit.update(before, pulls, settings, _neighbours(config, stage.version))
    threshold = _threshold(config, stage, number, table)
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
        "mean_reward": float(np.mean([p.reward for p in pulls])),
        "effective_arms": float(effective_arms(after.cursor.astype(np.float64))),
    }
    written = {
        "arms": _changed_arms(before, after),
        "pulls": pa.Table.from_pylist([_pull_row(p, ucb) for p in pulls], PULL_SCHEMA),
        "scores": table.append_column("accepted", pa.array(accepted)),
    }
    rounds.commit_round(store, stage.run, stage.number, number, written, info)


def _label_active(scores: list[pa.Table], pulled: npt.NDArray[np.int64]) -> pa.Table:
    """Join a round's scores and tell those that no pull has drawn."""
    if not scores:
        return SCORE_SCHEMA.empty_table()
    table = pa.concat_tables(scores)
    active = ~np.isin(table["position"].to_numpy(), pulled)
    return table.append_column("active", pa.array(active)).cast(SCORE_SCHEMA)


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
    choices["documents_per_pull"] = _random_documents(config)
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
    reading = read_state(config, stage, number)
    state = reading.state
    if np.array_equal(state.cursor, state.n_documents):
        return "exhausted"
    budget = config.selection.budget_tokens / config.training.stages
    if reading.accepted_tokens >= config.bandit.oversample * budget:
        return "budget"
    if number >= config.bandit.max_rounds:
        return "max_rounds"
    scored = float(reading.scored_N.mean())
    share = config.bandit.max_scored_share
    if share is None:
        share = 1.0 if config.selection.mode == "instance" else PREDICTED_SCORED_SHARE
    return "max_scored" if scored >= share * (stage.number + 1) / config.training.stages else None
