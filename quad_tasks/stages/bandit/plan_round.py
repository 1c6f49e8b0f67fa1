"""Stage: what a round of the bandit is to do: which arms to pull, which documents to score.

A round's choice follows from the rounds committed before it and the seed. A pull takes the next documents of its arm,
which stand in a random order (`draw_pulls.py`). Beside the pulls a round draws actively those of the pool's documents
whose predicted influence lies nearest the selection's cut (`pool_prediction.py`). A document is scored once; a
few are scored again along the next stage's direction, to tell how stale influence has become.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import ConfigError
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.core import bandit, contextual
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection import fill_budget
from quad_tasks.records import Stage
from quad_tasks.runtime.run import delete_as_driver
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.cost import Room, cost_limit, length_costs, pool_cost, reading_cost, scoring_costs
from quad_tasks.stages.bandit.draw_pulls import (
    Draw,
    OpenDocuments,
    closed_positions,
    count_open,
    cut_draws,
    draw_next,
    find_open_documents,
    unscored_positions,
)
from quad_tasks.stages.bandit.ledger import (
    LedgerState,
    load_arms,
    mark_at_random,
    read_chosen,
    read_ledger,
    stage_scores,
)
from quad_tasks.stages.bandit.pool_prediction import PoolPrediction, draw_nearest, predict_pool
from quad_tasks.stages.bandit.predict import feature_source, fit_scored
from quad_tasks.stages.bandit.round_settings import ROUNDING, RoundSettings, scored_limit
from quad_tasks.stages.bandit.score_index import insert_positions
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import prediction_folder, predictions_folder
from quad_tasks.storage.positions import column_vectors
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

EXACT: Mapping[str, Any] = {"scorer": "exact"}
FEWEST_SCORED = 2
"""A regression needs two documents."""
NEAREST_TRIED = 4
"""Documents tried, for each that is drawn actively, where what is left may not pay for all."""
RESCORED_DOCUMENTS = 100
"""Enough for a rank correlation's standard error of 0.1."""


class Plan(NamedTuple):
    """What a round is to do.

    Attributes:
        draws: its pulls, by arm.
        chunks: positions to score, each scored at once: the pulls' documents not scored before, pull by pull, then
            those drawn actively. None holds held-out text; a pull's cursor passes over such documents.
        rescored: positions scored against the direction before, to be scored again; of a stage's round 0 only.
        scorer: how to score: keyword arguments of `influence.score_documents`, and what `cost.scorer_flops` asks for.
        cut: whether the cap on cost left less than the round was to score.
    """

    draws: list[Draw]
    chunks: list[tuple[int, ...]]
    rescored: tuple[int, ...] = ()
    scorer: Mapping[str, Any] = EXACT
    cut: bool = False

    def positions(self) -> npt.NDArray[np.int64]:
        """List what is scored, for the first time or again."""
        return np.array([*(position for chunk in self.chunks for position in chunk), *self.rescored], dtype=np.int64)


@stage_task("plan round")
def plan_round(store: Store, stage: Stage, number: int, settings: RoundSettings) -> Plan:
    """Plan a round's pulls; round 0 is the random pilot, which estimates τ and gives every arm's mean a start.

    No round spends more than `bandit.max_cost_share` and `bandit.max_scored_share` leave: pulls are cut from the arm of
    least score on, and the active draw takes what they leave.

    Raises:
        ConfigError: a stage may score fewer than two documents, or cannot pay for them.
    """
    ledger = read_ledger(store, stage, number, settings.bandit.discount)
    generator = make_generator(settings.seed, Stream.ROUND, stage.number, number)
    room = find_room(store, stage, settings, ledger)
    documents = find_open_documents(store, stage, ledger)
    scorer = pilot_scorer(settings) if number == 0 else read_scorer(store, stage, settings)
    costs = functools.partial(scoring_costs, store, stage.version, settings.reading, scorer)
    if math.isinf(room.flops):
        costs = functools.partial(np.zeros_like, dtype=np.float64)  # nothing is to be read to spend of no limit
    if number == 0:
        sizes = _pilot_sizes(store, stage, settings, room, ledger.n_documents, _is_refitted(stage, ledger))
        pilot = _plan_pilot(stage, ledger, documents, room, costs, sizes, generator)
        _refuse_small_pilot(store, stage, settings, ledger, documents, pilot)
        return pilot._replace(scorer=scorer)
    chosen = bandit.choose_arms(ledger.state, settings.policy, generator, _arm_features(store, stage.version))
    draws = [draw_next(documents, arm, settings.pull.random_documents) for arm in chosen.tolist()]
    n_pulled = sum(len(unscored_positions(documents, draw)) for draw in draws)
    kept, left = cut_draws(documents, draws, room, costs)
    draws = sorted(kept)
    chunks = [unscored_positions(documents, draw) for draw in draws]
    pulled = np.concatenate([np.empty(0, np.int64), *chunks])
    n_active = len(chosen) * (settings.pull.documents_per_pull - settings.pull.random_documents)
    n_active = min(n_active, left.documents)
    nearest, n_tokens = _draw_active(store, stage, settings, ledger, pulled, n_active)
    cost_N = length_costs(store, stage.version, settings.reading, scorer, n_tokens)
    fitting = _fitting(nearest, cost_N, left.flops)[:n_active]
    cut = math.isfinite(room.flops) and sum(map(len, chunks)) < n_pulled
    cut |= len(fitting) < min(len(nearest), n_active)
    size = settings.pull.documents_per_pull
    chunks += [fitting[start : start + size] for start in range(0, len(fitting), size)]
    return Plan(draws, _chunks(chunks), scorer=scorer, cut=cut)


def find_room(store: Store, stage: Stage, settings: RoundSettings, ledger: LedgerState) -> Room:
    """Find what a stage may still spend: documents, and FLOPs."""
    documents = scored_limit(settings, ledger.n_documents) - len(ledger.scored_S)
    if settings.cost_cap is None:
        return Room(documents, math.inf)
    known = (store, stage.version, settings.reading)
    read = reading_cost(*known)
    limit = cost_limit(settings.cost_cap, pool_cost(*known), read, settings.stage_share)
    return Room(documents, limit - read - ledger.flops)


def _pilot_sizes(
    store: Store, stage: Stage, settings: RoundSettings, room: Room, n_documents: int, refitted: bool
) -> tuple[int, int]:
    """Return how many documents a pilot draws, and how many it may score again.

    Raises:
        ConfigError: two documents are more than the stage may score or pay for.
    """
    if room.documents < FEWEST_SCORED:
        raise ConfigError(
            f"bandit.max_scored_share: expected to leave stage {stage.number} at least {FEWEST_SCORED} of "
            f"{n_documents} documents to score, got {room.documents}"
        )
    if math.isinf(room.flops):
        n_pilot = max(FEWEST_SCORED, math.ceil(room.documents / 2))
        return min(settings.bandit.pilot_documents, n_pilot), RESCORED_DOCUMENTS
    pool = pool_cost(store, stage.version, settings.reading, pilot_scorer(settings)["scorer"])
    payable = math.floor(room.flops / (pool / n_documents) + ROUNDING)
    if payable < FEWEST_SCORED:
        raise _cost_share_too_small(store, stage, settings, payable)
    rescored = min(RESCORED_DOCUMENTS, payable // 4) if refitted else 0
    n_pilot = max(FEWEST_SCORED, math.ceil(min(room.documents, payable - rescored) / 2))
    return min(settings.bandit.pilot_documents, n_pilot), rescored


def _cost_share_too_small(store: Store, stage: Stage, settings: RoundSettings, payable: int) -> ConfigError:
    known = (store, stage.version, settings.reading)
    read = reading_cost(*known) / pool_cost(*known)
    return ConfigError(
        f"bandit.max_cost_share: expected to leave stage {stage.number} the cost of scoring at least {FEWEST_SCORED} "
        f"documents, got that of {max(0, payable)}; hidden states and embeddings of the whole pool take {read:.3g} of "
        "scoring it (bandit.features, embedding.method)"
    )


def _refuse_small_pilot(
    store: Store, stage: Stage, settings: RoundSettings, ledger: LedgerState, documents: OpenDocuments, pilot: Plan
) -> None:
    """Refuse a pilot after which fewer scores are known than a regression needs, before anything is scored.

    Raises:
        ConfigError: the documents drawn cost more than the stage may spend, or hardly any are left to draw.
    """
    n_known = len(stage_scores(ledger, stage)) + sum(map(len, pilot.chunks))
    if n_known >= FEWEST_SCORED:
        return
    if int(count_open(documents).sum()) >= FEWEST_SCORED:
        raise _cost_share_too_small(store, stage, settings, n_known)
    raise ConfigError(
        f"pool.inputs: expected at least {FEWEST_SCORED} documents that stage {stage.number} may score, got {n_known} "
        f"of {ledger.n_documents}: documents that hold held-out text or that earlier stages chose are not scored"
    )


def pilot_scorer(settings: RoundSettings) -> dict[str, Any]:
    """Return how pilots score: exactly, for other scorers to be tried beside it, unless there is no direction."""
    return {"scorer": CONDITIONAL_LOSS} if settings.bandit.scorer == CONDITIONAL_LOSS else dict(EXACT)


def read_scorer(store: Store, stage: Stage, settings: RoundSettings) -> dict[str, Any]:
    """Return how a stage's rounds score, as its pilot's calibration found; exactly where none was asked for."""
    if settings.bandit.scorer in ("exact", CONDITIONAL_LOSS):
        return pilot_scorer(settings)
    calibration = rounds.read_round(store, stage.run, stage.number, 0).info.calibration
    return dict(calibration.used if calibration else EXACT)


def _is_refitted(stage: Stage, ledger: LedgerState) -> bool:
    """Tell whether the stage's direction is another than that of the scores so far."""
    return bool(ledger.scores) and ledger.direction != stage.direction


def _draw_rescored(stage: Stage, ledger: LedgerState, most: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Draw at most this many of the documents scored against another direction than the stage's."""
    if not _is_refitted(stage, ledger):
        return ()
    scored = pa.concat_tables(ledger.scores)["position"].to_numpy()
    return tuple(generator.choice(scored, min(most, len(scored)), replace=False).tolist())


def _plan_pilot(
    stage: Stage,
    ledger: LedgerState,
    documents: OpenDocuments,
    room: Room,
    costs: Callable[[Int64], Float64],
    sizes: tuple[int, int],
    generator: np.random.Generator,
) -> Plan:
    """Plan a pilot: a uniform sample of the documents open beyond the cursors, each arm's share by its random order.

    Where a refitted direction has too few scores and finds too little open, documents are scored again as well.
    """
    (n_pilot, n_rescored), left = sizes, count_open(documents)
    count = generator.multivariate_hypergeometric(left, min(n_pilot, int(left.sum())), method="marginals")
    draws = [draw_next(documents, arm, int(count[arm])) for arm in np.flatnonzero(count).tolist()]
    draws, _ = cut_draws(documents, draws, room, costs)
    chunks = [unscored_positions(documents, draw) for draw in draws]
    rescored = _draw_rescored(stage, ledger, n_rescored, generator)
    known = stage_scores(ledger, stage)["position"].to_numpy()
    if len(known) + int(left.sum()) < FEWEST_SCORED:
        others = np.setdiff1d(ledger.scored_S, known)
        chunks.append(generator.choice(others, min(n_pilot, len(others)), replace=False))
    return Plan(draws, _chunks(chunks), rescored)


def _chunks(positions: Sequence[npt.NDArray[np.int64]]) -> list[tuple[int, ...]]:
    return [tuple(chunk.tolist()) for chunk in positions if len(chunk)]


def _draw_active(
    store: Store,
    stage: Stage,
    settings: RoundSettings,
    ledger: LedgerState,
    pulled: npt.NDArray[np.int64],
    n_active: int,
) -> tuple[Int64, Int64]:
    """List the pool's unscored documents predicted nearest the cut, nearest first, several times as many as wanted.

    Returns:
        Their positions, and the tokens of each.
    """
    if n_active <= 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    excluded = insert_positions(ledger.scored_S, pulled)
    return draw_nearest(store, predicted_pool(store, stage, settings, ledger), excluded, NEAREST_TRIED * n_active)


def _fitting(positions: Int64, cost_N: Float64, flops: float) -> Int64:
    """Keep, in order, each position whose cost still fits."""
    kept = []
    for position, cost in zip(positions.tolist(), cost_N.tolist(), strict=True):
        if cost <= flops:
            kept.append(position)
            flops -= cost
    return np.array(kept, dtype=np.int64)


@functools.lru_cache(maxsize=1)
def _predicted_pools() -> dict[tuple[Store, str, str, int, int], PoolPrediction]:
    """Keep the last prediction of the pool in this process: a few rounds use each."""
    return {}


def predicted_pool(store: Store, stage: Stage, settings: RoundSettings, ledger: LedgerState) -> PoolPrediction:
    """Predict the pool from what was scored before round `ledger.fitted_round`.

    Influence is as measured where it was; what an earlier stage has chosen or what holds held-out text is closed.
    """
    kept = _predicted_pools()
    key = (store, stage.run, stage.version, stage.number, ledger.fitted_round)
    if key not in kept:
        drop_predictions(store, stage)
        kept[key] = _predict_pool(store, stage, settings, ledger)
    return kept[key]


def drop_predictions(store: Store, stage: Stage) -> None:
    """Delete the stage's predictions of the pool, a killed driver's too; other runs' are theirs.

    Raises:
        LeaseLost: another process drives the run, and the predictions may be its own.
    """
    _predicted_pools().clear()
    delete_as_driver(store, stage.run, predictions_folder(stage.run, stage.number))


def _predict_pool(store: Store, stage: Stage, settings: RoundSettings, ledger: LedgerState) -> PoolPrediction:
    scores = stage_scores(ledger, stage).slice(0, ledger.fitted_documents)
    scores = mark_at_random(store, stage.version, scores, ledger.fitted_cursor)
    generator = make_generator(settings.seed, Stream.ROUND_REGRESSION, stage.number, ledger.fitted_round)
    n_arms = len(ledger.state.n_documents)
    features = feature_source(store, stage.version, settings.bandit.features, settings.use)
    predictor = fit_scored(store, stage.version, scores, n_arms, generator, features)
    return predict_pool(
        store,
        stage.version,
        prediction_folder(stage.run, stage.number, ledger.fitted_round),
        ledger.n_documents,
        predictor,
        features,
        (scores["position"].to_numpy(), scores["influence"].to_numpy()),
        closed_positions(store, stage),
        targeted_tokens(store, stage, settings),
    )


def targeted_tokens(store: Store, stage: Stage, settings: RoundSettings) -> int:
    """Compute the tokens that the stage is to select by influence."""
    taken = read_chosen(store, stage.run, stage.number)
    budget = settings.budget_tokens - int(taken["n_tokens"].to_numpy().sum())
    return fill_budget.targeted_budget(budget, settings.general_share)


@functools.lru_cache(maxsize=2)
def _arm_features(store: Store, version: str) -> np.ndarray[Any, Any]:
    arms = load_arms(store, version)
    sizes = (arms[name].to_numpy() for name in ("n_documents", "n_tokens"))
    return contextual.arm_features(column_vectors(arms["centroid"]), *sizes)
