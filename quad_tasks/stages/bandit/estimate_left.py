"""Estimate after a round what scoring everything would add, where a regression is due (`core.selection.remaining`).

The documents that pulls have covered are a random sample of their arms. Each part of them is predicted by a fit on all
scored documents but that part; how far such predictions are off says how far those of unscored documents may be.
"""

from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection.remaining import (
    LEAST_HELD_OUT,
    OutOfFold,
    Scored,
    Unscored,
    choose_refitted,
    estimate_remaining,
    sample_unscored,
)
from quad_tasks.manifests.run import LeftToGain
from quad_tasks.records import BanditState, Stage
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.draw_pulls import closed_positions
from quad_tasks.stages.bandit.ledger import (
    REFIT_GROWTH,
    LedgerState,
    count_tokens_without,
    load_arms,
    mark_at_random,
    stage_scores,
)
from quad_tasks.stages.bandit.plan_round import predicted_pool, targeted_tokens
from quad_tasks.stages.bandit.pool_prediction import read_values
from quad_tasks.stages.bandit.predict import FeatureSource, feature_source, fit_scored, predict_block
from quad_tasks.stages.bandit.round_settings import RoundSettings
from quad_tasks.storage.positions import nth_open, read_positions
from quad_tasks.storage.store import Store

FOLDS = 5
"""Parts that are held out in turn."""


def estimate_left(
    store: Store,
    stage: Stage,
    number: int,
    settings: RoundSettings,
    ledger: LedgerState,
    table: pa.Table,
    after: BanditState,
    is_last: bool,
) -> LeftToGain | None:
    """Estimate what is left to gain after a round.

    Args:
        store: the workspace.
        stage: the round's stage.
        number: the round.
        settings: of the stage's rounds.
        ledger: before the round.
        table: the round's scores.
        after: the arms after the round.
        is_last: whether the stage ends with the round, so that an estimate is due.

    Returns:
        The estimate; None where no regression is due after the round or used at all, or too little is known.
    """
    known = pa.concat_tables([stage_scores(ledger, stage), table])
    if not (settings.predicts and (is_last or len(known) >= REFIT_GROWTH * ledger.fitted_documents)):
        return None
    scores = mark_at_random(store, stage.version, known, after.cursor)
    at_random = np.flatnonzero(scores["at_random"].to_numpy(zero_copy_only=False))
    if len(at_random) < LEAST_HELD_OUT:
        return None
    fitted = replace(
        ledger,
        state=after,
        direction=stage.direction,
        scores=[known],
        fitted_round=number + 1,
        fitted_documents=len(known),
        fitted_cursor=after.cursor,
    )
    blocks = predicted_pool(store, stage, settings, fitted).blocks
    scored, shut = _scored_and_shut(store, stage, known)
    generator = make_generator(settings.seed, Stream.REMAINING, stage.number, number)
    n_unscored = ledger.n_documents - len(shut)
    positions_U = nth_open(shut, sample_unscored(n_unscored, generator))
    predicted_U = read_values(store, blocks, positions_U)
    refitted_S = choose_refitted(predicted_U)
    held_out, refits_FS = _hold_out(store, stage, settings, scores, at_random, positions_U[refitted_S], generator)
    n_tokens_U = read_positions(store, stage.version, positions_U, ["n_tokens"])["n_tokens"].to_numpy().astype(np.int64)
    all_tokens = count_tokens_without(store, stage.version, shut)
    unscored = Unscored(predicted_U, n_tokens_U, all_tokens, refitted_S, refits_FS)
    found = estimate_remaining(scored, unscored, targeted_tokens(store, stage, settings), held_out, generator)
    return LeftToGain(**asdict(found)) if found else None


def _scored_and_shut(store: Store, stage: Stage, known: pa.Table) -> tuple[Scored, npt.NDArray[np.int64]]:
    """Return the scored documents that may be selected, in the order of positions, and what is no open unscored one."""
    closed, position = closed_positions(store, stage), known["position"].to_numpy()
    rows = np.argsort(position)
    rows = rows[~np.isin(position[rows], closed)]
    scored = Scored(known["influence"].to_numpy()[rows], known["n_tokens"].to_numpy()[rows])
    return scored, np.union1d(closed, position)


def _hold_out(
    store: Store,
    stage: Stage,
    settings: RoundSettings,
    scores: pa.Table,
    at_random: npt.NDArray[np.int64],
    unscored: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> tuple[OutOfFold, npt.NDArray[np.float64]]:
    """Predict each document drawn at random by a fit without it, and unscored ones by all these fits, over Dask."""
    features = feature_source(store, stage.version, settings.bandit.features, settings.use)
    folds = np.array_split(generator.permutation(at_random), FOLDS)
    seeds = generator.integers(2**32, size=FOLDS).tolist()
    n_arms = len(load_arms(store, stage.version))
    common = (store, stage.version, n_arms, scores)
    items = [(*common, fold, seed, unscored, features) for fold, seed in zip(folds, seeds, strict=True)]
    predicted = map_tasks(predict_fold, items, "hold out", "folds")
    rows = scores.take(np.concatenate(folds))
    held_out_H = np.concatenate([of_fold for of_fold, _ in predicted])
    return (
        OutOfFold(held_out_H, rows["influence"].to_numpy(), rows["n_tokens"].to_numpy()),
        np.stack([of_unscored for _, of_unscored in predicted]),
    )


def predict_fold(
    store: Store,
    version: str,
    n_arms: int,
    scores: pa.Table,
    fold: npt.NDArray[np.int64],
    seed: int,
    unscored: npt.NDArray[np.int64],
    features: FeatureSource,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Predict a fold's scored documents, and unscored ones at their positions, by a fit on the others, on a worker."""
    kept = np.setdiff1d(np.arange(len(scores)), fold)
    predictor = fit_scored(store, version, scores.take(kept), n_arms, np.random.default_rng(seed), features)
    positions = np.concatenate([scores["position"].to_numpy()[fold], unscored])
    predicted = predict_block(predictor, store, version, positions, features)
    return predicted[: len(fold)], predicted[len(fold) :]
