"""What a run estimates to be left to gain: where it is due, what it is made of, and that a stage may end by it."""

import itertools
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from small_pool import read_column

from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection.remaining import OutOfFold, Scored, Unscored, estimate_remaining
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit import estimate_left as module
from quad_tasks.stages.bandit.draw_pulls import closed_positions
from quad_tasks.stages.bandit.estimate_left import FOLDS, predict_fold
from quad_tasks.stages.bandit.ledger import load_arms, mark_at_random, read_ledger, stage_scores
from quad_tasks.stages.bandit.plan_round import targeted_tokens
from quad_tasks.stages.bandit.predict import FeatureSource, feature_source, fit_scored, predict_block
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.bandit.stopping import stop_reason, way_to_stop
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store


def committed(config, stage):
    return rounds.list_rounds(open_store(config.workspace), config.run, stage)


def stage_of(config, number=0):
    direction = committed(config, number)[0].info.direction
    return Stage(config.run, number, pinned_pool(open_store(config.workspace), config.run), "", direction)


def stopping_at(config, left):
    return config.model_copy(update={"bandit": config.bandit.model_copy(update={"stop_when_left": left})})


def test_rounds_after_which_a_regression_is_due_say_what_is_left(small_run):
    for number in range(2):
        infos = [one.info for one in committed(small_run, number)]
        first = infos[0].remaining
        assert first is not None
        assert 0 <= first.low <= first.left <= first.high <= 1
        assert first.held_out >= 16
        assert first.full_gain >= first.gain
        assert len([info for info in infos if info.remaining]) <= len(infos)


def test_unscored_documents_of_arms_without_any_score_are_predicted_too(small_run, monkeypatch):
    """Where arms are more than scores, the last arms are often among those nobody has looked at."""
    store, stage, settings = open_store(small_run.workspace), stage_of(small_run), round_settings(small_run, 0)
    ledger = read_ledger(store, stage, 1, small_run.bandit.discount)
    scores = mark_at_random(store, stage.version, stage_scores(ledger, stage), ledger.state.cursor)
    arm, last = scores["arm"].to_numpy(), len(load_arms(store, stage.version)) - 1
    of_last = np.flatnonzero(read_column(store, stage.version, "arm") == last)
    scores = scores.filter(pa.array(arm != last))
    at_random = np.flatnonzero(scores["at_random"].to_numpy(zero_copy_only=False))
    unscored = of_last[:3]
    generator = np.random.default_rng(0)
    _, refits_FS = module._hold_out(store, stage, settings, scores, at_random, unscored, generator)
    assert refits_FS.shape == (FOLDS, 3)
    assert np.isfinite(refits_FS).all()


def test_what_is_left_follows_from_fits_without_the_held_out(small_run, monkeypatch):
    """Each fold is predicted by a fit on all scored documents but its own."""
    store, stage = open_store(small_run.workspace), stage_of(small_run)
    ledger = read_ledger(store, stage, 1, small_run.bandit.discount)
    scores = mark_at_random(store, stage.version, stage_scores(ledger, stage), ledger.state.cursor)
    fold = np.arange(5)
    unscored = np.setdiff1d(np.arange(ledger.n_documents), ledger.scored_S)[:3]
    n_arms = len(load_arms(store, stage.version))
    found, of_unscored = predict_fold(store, stage.version, n_arms, scores, fold, 7, unscored, FeatureSource())
    others = scores.slice(5)
    predictor = fit_scored(store, stage.version, others, n_arms, np.random.default_rng(7))
    expected = predict_block(predictor, store, stage.version, scores["position"].to_numpy()[:5])
    assert found == pytest.approx(expected)
    assert of_unscored == pytest.approx(predict_block(predictor, store, stage.version, unscored))
    changed = scores["influence"].to_numpy().copy()
    changed[:5] += 100
    column = scores.schema.get_field_index("influence")
    altered = scores.set_column(column, "influence", pa.array(changed))
    assert predict_fold(store, stage.version, n_arms, altered, fold, 7, unscored, FeatureSource())[0] == pytest.approx(
        found
    )
    assert FOLDS > 1
    assert module.estimate_remaining is estimate_remaining
    assert OutOfFold._fields == ("predicted_H", "measured_H", "n_tokens_H")


@pytest.mark.parametrize("number", [0, 1])
def test_the_estimate_is_that_of_arrays_over_the_whole_pool(small_run, number):
    """After a stage's pilot; the second stage has documents that the first one chose."""
    store, stage, settings = (
        open_store(small_run.workspace),
        stage_of(small_run, number),
        round_settings(small_run, number),
    )
    ledger = read_ledger(store, stage, 1, small_run.bandit.discount)
    scores = mark_at_random(store, stage.version, stage_scores(ledger, stage), ledger.state.cursor)
    position, n_tokens = scores["position"].to_numpy(), read_column(store, stage.version, "n_tokens").astype(np.int64)
    features = feature_source(store, stage.version, small_run.bandit.features, settings.use)
    regression = make_generator(small_run.seed, Stream.ROUND_REGRESSION, number, 1)
    predictor = fit_scored(store, stage.version, scores, len(ledger.state.n_documents), regression, features)
    influence = predict_block(predictor, store, stage.version, np.arange(len(n_tokens)), features)
    influence[closed_positions(store, stage)] = np.nan
    measured = np.full(len(n_tokens), np.nan)
    measured[position] = scores["influence"].to_numpy()
    is_open = ~np.isnan(influence)
    unscored = np.flatnonzero(is_open & np.isnan(measured))
    scored = np.flatnonzero(is_open & ~np.isnan(measured))
    generator = make_generator(small_run.seed, Stream.REMAINING, number, 0)
    rows = np.sort(generator.permutation(unscored))
    refitted = np.sort(np.argsort(-influence[rows], kind="stable")[:2000])
    at_random = np.flatnonzero(scores["at_random"].to_numpy(zero_copy_only=False))
    held_out, refits = module._hold_out(store, stage, settings, scores, at_random, rows[refitted], generator)
    expected = estimate_remaining(
        Scored(measured[scored], n_tokens[scored]),
        Unscored(influence[rows], n_tokens[rows], int(n_tokens[unscored].sum()), refitted, refits),
        targeted_tokens(store, stage, settings),
        held_out,
        generator,
    )
    found = committed(small_run, number)[0].info.remaining
    assert len(scored)
    assert found.model_dump() == pytest.approx(asdict(expected))


def test_a_stage_ends_once_little_is_left(small_run):
    store, stage = open_store(small_run.workspace), stage_of(small_run)
    left = committed(small_run, 0)[0].info.remaining.left

    def reason(share):
        return stop_reason(store, stage, 1, round_settings(stopping_at(small_run, share), 0))

    assert reason(min(1.0, left + 1e-6)) == "little_left"
    assert reason(None) != "little_left"
    if left > 0:
        assert reason(left / 2) != "little_left"


def test_the_bar_counts_to_the_nearest_stop(small_run):
    store, stage = open_store(small_run.workspace), stage_of(small_run)
    settings = round_settings(small_run, 0)
    way = [way_to_stop(store, stage, number, settings) for number in range(len(committed(small_run, 0)) + 1)]
    assert way[0] == 0
    assert all(0 <= before <= after <= 1 for before, after in itertools.pairwise(way))
    reason = stop_reason(store, stage, len(way) - 1, settings)
    assert reason is not None
    assert way[-1] > 0.9
