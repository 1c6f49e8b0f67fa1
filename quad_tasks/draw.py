"""Stage: what a round of the bandit is to do: which arms to pull, which documents to score.

A round's choice follows from the rounds committed before it and the seed. A pull takes the next documents of its arm,
which stand in a random order. Beside the pulls a round draws actively those of the pool's documents whose predicted
influence lies nearest the selection's cut (`core.prediction.active_draw`). A document is scored once against a
direction; a few are scored again at the next stage's, to tell how stale influence has become.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.choose import read_chosen, stage_budget
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.core import bandit, contextual, prediction, selection
from quad_tasks.predict import fit_scored, predict_positions
from quad_tasks.records import Stage
from quad_tasks.state import Reading, load_arms, load_token_counts, read_state, stage_scores
from quad_tasks.states import states_key
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import column_vectors
from quad_tasks.storage.store import open_store

PRESET_CHOICES = {
    "paper": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "released": ("alpha", "arms_per_round", "documents_per_pull", "propagation"),
    "thompson": ("arms_per_round", "documents_per_pull", "propagation"),
    "contextual": ("alpha", "arms_per_round", "documents_per_pull"),
}
"""What of a configuration each preset takes."""
EXACT: Mapping[str, Any] = {"scorer": "exact"}
RESCORED_DOCUMENTS = 100
"""Enough for a rank correlation's standard error of 0.1."""


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
        rescored: positions scored against the direction before, to be scored again; of a stage's round 0 only.
        scorer: keyword arguments of `influence.score_documents` that say how to score.
    """

    draws: list[Draw]
    chunks: list[tuple[int, ...]]
    rescored: tuple[int, ...] = ()
    scorer: Mapping[str, Any] = EXACT


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
        count[chosen] = np.minimum(random_documents(config), left[chosen])
    arms = np.flatnonzero(count)
    draws = [Draw(int(arm), int(state.cursor[arm]), int(count[arm])) for arm in arms]
    ranges = [pulled_positions(config, stage, draw) for draw in draws]
    chunks = [own[~reading.scored_N[own]] for own in ranges]
    if number > 0:
        chunks += _draw_active(config, stage, reading, np.concatenate(ranges), len(arms), generator)
    rescored = _draw_rescored(stage, reading, generator) if number == 0 else ()
    scorer = read_scorer(config, stage) if number > 0 else EXACT
    return Plan(draws, [tuple(chunk.tolist()) for chunk in chunks if len(chunk)], rescored, scorer)


def read_scorer(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """Return how a stage's rounds score, as its pilot's calibration found; exactly where none was asked for."""
    if config.bandit.scorer == "exact":
        return dict(EXACT)
    pilot = rounds.read_round(open_store(config.workspace), stage.run, stage.number, 0)
    scorer: dict[str, Any] = pilot.info["calibration"]["used"]
    return scorer


def _draw_rescored(stage: Stage, reading: Reading, generator: np.random.Generator) -> tuple[int, ...]:
    """Draw some of the documents scored against another direction than the stage's."""
    if not reading.scores or reading.direction == stage.direction:
        return ()
    scored = pa.concat_tables(reading.scores)["position"].to_numpy()
    return tuple(generator.choice(scored, min(RESCORED_DOCUMENTS, len(scored)), replace=False).tolist())


def _pilot_counts(left: npt.NDArray[np.int64], documents: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw documents uniformly from all that are left, each arm by its cursor: an arm's order is random already."""
    n = min(documents, int(left.sum()))
    return generator.multivariate_hypergeometric(left, n, method="marginals")


def pulled_positions(config: RunConfig, stage: Stage, draw: Draw) -> npt.NDArray[np.int64]:
    """Return the positions of a draw's documents, [n_documents]."""
    start = int(load_arms(config.workspace, stage.version)["position"][draw.arm].as_py()) + draw.cursor
    return np.arange(start, start + draw.n_documents)


def random_documents(config: RunConfig) -> int:
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
    n_active = n_pulls * (size - random_documents(config))
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
    states, everything = states_key(config, stage.version), np.arange(len(reading.scored_N))
    predictor = fit_scored(config.workspace, stage.version, scores, n_arms, generator, states)
    influence = predict_positions(config.workspace, stage.version, predictor, everything, states)
    influence[scores["position"].to_numpy()] = scores["influence"].to_numpy()
    taken = read_chosen(store, stage.run, stage.number)
    influence[taken["position"].to_numpy()] = np.nan
    open_N = np.flatnonzero(~np.isnan(influence))
    budget = stage_budget(config, stage.number) - int(taken["n_tokens"].to_numpy().sum())
    targeted = selection.targeted_budget(budget, config.selection.general_share)
    n_tokens = load_token_counts(config.workspace, stage.version)[open_N]
    return influence, prediction.selection_cut(influence[open_N], n_tokens, targeted)


@functools.lru_cache(maxsize=2)
def _arm_features(workspace: str, version: str) -> np.ndarray[Any, Any]:
    arms = load_arms(workspace, version)
    sizes = (arms[name].to_numpy() for name in ("n_documents", "n_tokens"))
    return contextual.arm_features(column_vectors(arms["centroid"]), *sizes)


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
    choices["documents_per_pull"] = random_documents(config)
    if settings.preset == "paper":
        choices["visit_every_arm"] = config.clustering.arms <= settings.pilot_documents
    return presets[settings.preset](**choices)
