"""What is left to gain, estimated from held-out documents, beside what full scoring then gained, by simulation."""

import dataclasses
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

from quad_tasks.core.selection import remaining
from quad_tasks.core.selection.remaining import WIDENED, OutOfFold, Scored, Unscored, choose_refitted


class Sampled(NamedTuple):
    """Rows of the unscored documents drawn for, of those that refits predict, and what they predict, [F, S]."""

    rows: np.ndarray
    refitted: np.ndarray
    refits: np.ndarray


def sample_unscored(measured, predicted, generator):
    unscored = np.flatnonzero(np.isnan(measured))
    rows = unscored[remaining.sample_unscored(len(unscored), generator)]
    return rows, rows[choose_refitted(predicted[rows])]


def estimate_remaining(measured, predicted, tokens, budget, held_out, sampled, generator):
    """Estimate from arrays over the whole pool."""
    scored, rows = ~np.isnan(measured), sampled.rows
    refitted, left = np.searchsorted(rows, sampled.refitted), int(tokens[~scored].sum())
    unscored = Unscored(predicted[rows], tokens[rows], left, refitted, sampled.refits)
    known = Scored(measured[scored], tokens[scored])
    return remaining.estimate_remaining(known, unscored, budget, held_out, generator)


def best_mean(order, truth, tokens, budget):
    """Mean influence per token of the first documents of `order` that fill the budget, the last one in part."""
    taken = np.clip(budget - (np.cumsum(tokens[order]) - tokens[order]), 0, tokens[order])
    return (truth[order] * taken).sum() / taken.sum()


def true_left(measured, predicted, truth, tokens, budget):
    now, full = (
        best_mean(np.argsort(-x), truth, tokens, budget)
        for x in (np.where(np.isnan(measured), predicted, measured), truth)
    )
    return (full - now) / (full - np.average(truth, weights=tokens))


def laboratory(generator, n=1500, n_features=6):
    """A pool whose influence is in part linear in what a regression sees; short documents' influence varies more."""
    tokens = generator.integers(40, 800, n)
    features = generator.standard_normal((n, n_features))
    curved = np.maximum(features[:, 0], 0) ** 2
    noise = generator.standard_t(5, n) * np.sqrt(300 / tokens) * generator.uniform(0.3, 1.5)
    return features, features @ generator.standard_normal(n_features) * 0.5 + curved + noise, tokens


def fit(features, influence):
    design = np.column_stack([np.ones(len(features)), features])
    return np.linalg.lstsq(design, influence, rcond=None)[0]


def predict(weights, features):
    return np.column_stack([np.ones(len(features)), features]) @ weights


def rounds(generator, folds=5, n_features=6):
    """Score a random pilot, then documents near the cut and at random; yield an estimate and the truth each time."""
    features, truth, tokens = laboratory(generator, n_features=n_features)
    budget, order = int(0.12 * tokens.sum()), generator.permutation(len(truth))
    at_random, active = list(order[:128]), []
    for _ in range(3):
        scored = np.array(at_random + active)
        held_out, refits = np.empty(len(at_random)), np.empty((folds, len(truth)))
        for fold in range(folds):
            out = np.arange(len(at_random)) % folds == fold
            fitted = np.setdiff1d(scored, np.array(at_random)[out])
            refits[fold] = predict(fit(features[fitted], truth[fitted]), features)
            held_out[out] = refits[fold][np.array(at_random)[out]]
        predicted = predict(fit(features[scored], truth[scored]), features)
        measured = np.full(len(truth), np.nan)
        measured[scored] = truth[scored]
        rows, refitted = sample_unscored(measured, predicted, generator)
        found = estimate_remaining(
            measured,
            predicted,
            tokens,
            budget,
            OutOfFold(held_out, truth[at_random], tokens[at_random]),
            Sampled(rows, refitted, refits[:, refitted]),
            generator,
        )
        yield found, true_left(measured, predicted, truth, tokens, budget)
        unscored = np.setdiff1d(order, scored)
        cut = np.quantile(predicted, 0.88)
        active += unscored[np.argsort(np.abs(predicted[unscored] - cut))[:60]].tolist()
        at_random += [i for i in order[len(at_random) :] if i not in set(active)][:30]


def sampled(measured, predicted=None, generator=None):
    """The unscored documents, without refits."""
    predicted = np.zeros(len(measured)) if predicted is None else predicted
    rows, refitted = sample_unscored(measured, predicted, generator or np.random.default_rng(0))
    return Sampled(rows, refitted, np.empty((0, len(refitted))))


@pytest.mark.parametrize(("n_features", "most_width"), [(6, 0.3), (40, 0.2)])
def test_what_is_left_lies_inside_its_interval_in_nine_of_ten_rounds(monkeypatch, n_features, most_width):
    """Forty features on some hundred scores: the fit itself is uncertain, for many documents alike."""
    monkeypatch.setattr("quad_tasks.core.selection.remaining.DRAWS", 60)
    outcomes = [one for seed in range(40) for one in rounds(np.random.default_rng(seed), n_features=n_features)]
    inside = [found.low <= truth <= found.high for found, truth in outcomes]
    assert np.mean(inside) >= 0.9
    errors = [found.left - truth for found, truth in outcomes]
    assert abs(np.mean(errors)) < 0.03
    assert np.mean([found.high - found.low for found, _ in outcomes]) < most_width


def test_nothing_is_left_where_all_that_counts_is_scored():
    """Errors of held-out documents are small beside the gap between scored good documents and the others."""
    generator, n = np.random.default_rng(0), 400
    measured = np.full(n, np.nan)
    measured[:50] = 10.0
    held_out = generator.normal(size=30)
    found = estimate_remaining(
        measured,
        np.zeros(n),
        np.full(n, 10),
        500,
        OutOfFold(held_out, held_out + generator.normal(0, 0.1, 30), np.full(30, 10)),
        sampled(measured),
        generator,
    )
    assert (found.left, found.low, found.high) == (0, 0, 0)
    assert found.gain == found.full_gain == pytest.approx(10 * 350 / 400, abs=0.05)


def test_a_prediction_that_says_nothing_leaves_what_the_scored_do_not_hold():
    """Influence is 0 or 1 at random, a tenth scored, a tenth wanted: a random choice has half, full scoring all."""
    generator, n = np.random.default_rng(1), 2000
    truth = generator.integers(0, 2, n).astype(float)
    measured = np.where(np.arange(n) < 20, truth, np.nan)
    found = estimate_remaining(
        measured,
        np.full(n, 0.5),
        np.full(n, 10),
        2000,
        OutOfFold(np.full(200, 0.5), truth[-200:], np.full(200, 10)),
        sampled(measured),
        generator,
    )
    scored_ones = truth[:20].sum()
    assert found.left == pytest.approx(1 - scored_ones / 200, abs=0.1)
    assert found.low < 1 - scored_ones / 200 < found.high


def test_a_large_pool_is_estimated_from_a_sample(monkeypatch):
    monkeypatch.setattr("quad_tasks.core.selection.remaining.MOST_DOCUMENTS", 500)
    features, truth, tokens = laboratory(np.random.default_rng(2), 3000)
    scored = np.arange(300)
    predicted = predict(fit(features[scored], truth[scored]), features)
    measured = np.where(np.arange(3000) < 300, truth, np.nan)
    held_out = OutOfFold(predicted[scored], truth[scored], tokens[scored])
    budget = int(0.1 * tokens.sum())
    generator = np.random.default_rng(3)
    unscored = sampled(measured, predicted, generator)
    assert len(unscored.rows) == 500
    found = estimate_remaining(measured, predicted, tokens, budget, held_out, unscored, generator)
    assert found.low <= true_left(measured, predicted, truth, tokens, budget) <= found.high


def test_too_few_errors_or_a_budget_for_nothing_or_everything_leave_no_estimate():
    values, tokens = np.full(40, np.nan), np.full(40, 10)
    few, many = (OutOfFold(np.zeros(n), np.zeros(n), np.full(n, 10)) for n in (15, 16))
    generator, unscored = np.random.default_rng(0), sampled(values)
    assert estimate_remaining(values, np.zeros(40), tokens, 100, few, unscored, generator) is None
    for budget in (-10, 0, 400):
        assert estimate_remaining(values, np.zeros(40), tokens, budget, many, unscored, generator) is None
    assert estimate_remaining(values, np.zeros(40), tokens, 100, many, unscored, generator) is not None


def test_refits_are_those_of_the_best_predicted(monkeypatch):
    monkeypatch.setattr("quad_tasks.core.selection.remaining.REFITTED_DOCUMENTS", 2)
    measured = np.array([np.nan, 1.0, np.nan, np.nan, np.nan])
    rows, refitted = sample_unscored(measured, np.array([3.0, 9.0, 1.0, 5.0, 2.0]), np.random.default_rng(0))
    assert rows.tolist() == [0, 2, 3, 4]
    assert refitted.tolist() == [0, 3]


def test_a_fit_that_may_be_off_for_all_widens_the_interval_by_the_grouped_jackknife():
    """Two refits, 0.5 above and below: unscored documents lie 0.5 off together, held-out errors are 0."""
    n = 200
    measured = np.where(np.arange(n) < 20, 1.0, np.nan)
    tokens, predicted = np.full(n, 10), np.where(np.arange(n) < 40, 1.0, 0.0)
    rows, refitted = sample_unscored(measured, predicted, np.random.default_rng(0))
    held_out = OutOfFold(np.linspace(0, 1, 40), np.linspace(0, 1, 40), np.full(40, 10))
    refits = np.stack([predicted[refitted] + shift for shift in (-0.5, 0.5)])
    # 200 tokens wanted, 20 documents: now the 20 scored of 1.0; all are 1.5 where the unscored lie 0.5 higher
    found = estimate_remaining(
        measured, predicted, tokens, 200, held_out, Sampled(rows, refitted, refits), np.random.default_rng(1)
    )
    certain = estimate_remaining(
        measured, predicted, tokens, 200, held_out, sampled(measured), np.random.default_rng(1)
    )
    assert (certain.low, certain.high) == (0, 0)
    # 0.5 higher, 20 others would be 1.5, all others 0.5: 1.5 - 1.0 of 1.5 - (20 * 1.0 + 20 * 1.5 + 160 * 0.5) / 200
    higher = (1.5 - 1.0) / (1.5 - 0.65)
    assert found.left == 0  # the estimate is as without
    assert found.high == pytest.approx(WIDENED * higher / 2, rel=0.1)


def test_of_a_large_pool_so_many_numbers_are_drawn_each_as_often(monkeypatch):
    for shuffled in (0, 2**20):
        monkeypatch.setattr(remaining, "SHUFFLED_DOCUMENTS", shuffled)
        monkeypatch.setattr(remaining, "MOST_DOCUMENTS", 5)
        drawn = np.array([remaining.sample_unscored(20, np.random.default_rng(seed)) for seed in range(2000)])
        assert (np.diff(drawn, axis=1) > 0).all()
        assert np.bincount(drawn.ravel(), minlength=20) / 2000 == pytest.approx(np.full(20, 0.25), abs=0.05)


def at_once(scored, unscored, budget, held_out, generator):
    """The estimate by its formula for all draws at once, [B, N] arrays."""

    def filled(influence_BN):
        order_BN = np.argsort(-influence_BN, axis=1, kind="stable")
        weight_BN = weight_N[order_BN]
        before_BN = np.cumsum(weight_BN, axis=1) - weight_BN
        taken_BN = np.empty_like(weight_BN)
        np.put_along_axis(taken_BN, order_BN, np.clip(budget - before_BN, 0.0, weight_BN), axis=1)
        return taken_BN

    def compare(drawn_BN):
        random_B = drawn_BN @ weight_N / weight_N.sum()
        now_B = drawn_BN @ filled(known_N[None])[0] / budget
        full_B = (drawn_BN * filled(drawn_BN)).sum(axis=1) / budget
        return np.clip((full_B - now_B) / (full_B - random_B), 0, 1), now_B - random_B, full_B - random_B

    n_scored = len(scored.measured_M)
    weight_N = np.concatenate([scored.n_tokens_M, unscored.n_tokens_U]).astype(np.float64)
    weight_N[n_scored:] *= unscored.all_tokens / weight_N[n_scored:].sum()
    known_N = np.concatenate([scored.measured_M, unscored.predicted_U])
    drawn_BN = np.repeat(known_N[None], remaining.DRAWS, axis=0)
    drawn_BN[:, n_scored:] += remaining._draw_errors(unscored.predicted_U, unscored.n_tokens_U, held_out, generator)
    left_B, gain_B, full_gain_B = compare(drawn_BN)
    drawn_BN[:, n_scored + unscored.refitted_S] += remaining._draw_refits(unscored, generator)
    shared_B, _, _ = compare(drawn_BN)
    ends = left_B.mean() + WIDENED * (np.quantile(shared_B, [0.025, 0.975]) - shared_B.mean())
    return (left_B.mean(), *np.clip(ends, 0, 1), gain_B.mean(), full_gain_B.mean(), len(held_out.measured_H))


def test_many_scored_documents_take_the_memory_of_a_few_rows_and_not_of_one_a_draw():
    generator, n_scored = np.random.default_rng(0), 20_000
    scored = Scored(generator.normal(size=n_scored), generator.integers(40, 800, n_scored))
    predicted = generator.normal(size=300)
    refits = predicted[:50] + generator.normal(0, 0.3, (5, 50))
    unscored = Unscored(predicted, generator.integers(40, 800, 300), 2_000_000, np.arange(50), refits)
    held_out = OutOfFold(*generator.normal(size=(2, 60)), generator.integers(40, 800, 60))
    common = (scored, unscored, 1_000_000, held_out)
    tracemalloc.start()
    found = remaining.estimate_remaining(*common, np.random.default_rng(1))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    of_a_row = 8 * (n_scored + 300)
    assert peak_bytes < 30 * of_a_row < remaining.DRAWS * of_a_row
    assert dataclasses.astuple(found) == pytest.approx(at_once(*common, np.random.default_rng(1)), rel=1e-12)
