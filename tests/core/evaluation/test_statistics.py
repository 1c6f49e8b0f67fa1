"""Intervals against Student's formula worked out, comparisons against scipy, bootstraps against their resamples."""

import numpy as np
import pytest
from planted_gains import share_covered
from scipy.special import stdtrit
from scipy.stats import ttest_rel

from quad_tasks.core.evaluation.statistics import (
    Interval,
    band,
    bootstrap_interval,
    compare,
    gain_over_documents,
    gain_share,
    interval,
)


def worked_out(values):
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(5, 2, n)
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx(worked_out(values), rel=1e-12)


def test_two_repeats_give_the_interval_worked_by_hand():
    # mean 2, standard error 1; the 97.5 per cent point of Student's t with one degree of freedom is tan(0.475 pi)
    found = interval([1.0, 3.0])
    half = np.tan(0.475 * np.pi)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-12)


def test_equal_repeats_have_an_interval_of_no_width():
    assert interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_a_band_is_the_interval_of_every_round():
    values_SR = np.random.default_rng(0).normal(size=(5, 4))
    found = band(values_SR)
    for number, values_S in enumerate(values_SR.T):
        expected = worked_out(values_S)
        assert (found.mean[number], found.low[number], found.high[number]) == pytest.approx(expected, rel=1e-12)


def test_methods_are_compared_by_pairs():
    first, second = [1.0, 2.0, 3.0], [1.5, 2.4, 3.6]
    found, test = compare(first, second), ttest_rel(first, second)
    low, high = test.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, low, high), rel=1e-12)
    assert found.p == pytest.approx(test.pvalue, rel=1e-12)


@pytest.mark.parametrize(("first", "p"), [([5.0, 4.2], 0.0), ([6.0, 5.2], 1.0)])
def test_differences_without_spread_are_certain(first, p):
    found = compare(first, [6.0, 5.2])
    assert found.p == p
    assert found.low == pytest.approx(found.high)


def test_the_gain_share_is_of_the_best_ones_gain_seed_by_seed():
    share = gain_share([5.0, 5.0], [4.5, 4.0], [4.0, 3.0])
    assert (share.mean, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_bootstrap_takes_percentiles_of_the_statistic_over_its_resamples():
    values = np.random.default_rng(1).normal(size=30)
    found = bootstrap_interval(lambda rows: float(values[rows].mean()), 30, 500, np.random.default_rng(0))
    resampled = values[np.random.default_rng(0).integers(30, size=(500, 30))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), rel=1e-12)
    assert found.mean == values.mean()


@pytest.mark.parametrize(
    ("n_repeats", "n_documents", "seed_deviation"),
    [(1, 16, 0.0), (1, 100, 0.0), (2, 8, 0.05), (2, 30, 0.02), (3, 300, 0.2), (5, 200, 0.0)],
)
def test_the_gains_interval_covers_the_truth_between_92_and_98_times_in_a_hundred(
    n_repeats, n_documents, seed_deviation
):
    assert 0.92 <= share_covered(n_repeats, n_documents, seed_deviation, trials=1200) <= 0.98


@pytest.mark.parametrize("n_repeats", [1, 2])
@pytest.mark.parametrize("n_documents", [0, 1])
def test_a_single_document_gives_the_gain_no_interval(n_repeats, n_documents):
    losses = np.ones((n_repeats, n_documents))
    assert gain_over_documents(losses, 0.5 * losses, np.ones(n_documents)) is None


def test_one_repeats_gain_has_students_interval_over_documents_of_equal_length():
    saved_N = np.random.default_rng(3).normal(size=40)
    found = gain_over_documents(saved_N[None], np.zeros((1, 40)), np.ones(40))
    assert (found.mean, found.low, found.high) == pytest.approx(worked_out(saved_N), rel=1e-9)


def test_two_documents_of_which_one_is_nearly_all_still_give_a_finite_interval():
    found = gain_over_documents(np.array([[1.0, 900.0]]), np.zeros((1, 2)), np.array([1, 10_000]))
    assert np.isfinite([found.low, found.high]).all()


def test_a_document_without_a_target_tells_nothing_of_the_gain():
    saved_SN, target_N = np.array([[0.0, 4.0, 9.0], [0.0, 5.0, 6.0]]), np.array([0, 20, 30])
    zeros = np.zeros((2, 2))
    found = gain_over_documents(saved_SN, np.zeros((2, 3)), target_N)
    assert found == gain_over_documents(saved_SN[:, 1:], zeros, target_N[1:])
    assert gain_over_documents(saved_SN[:, :2], zeros, target_N[:2]) is None


def test_repeats_alone_give_students_interval_over_them_however_long_a_document_is():
    gain_S, target_N = np.array([0.2, 0.5, 0.3]), np.array([5, 900, 20])
    found = gain_over_documents(gain_S[:, None] * target_N, np.zeros((3, 3)), target_N)
    assert (found.mean, found.low, found.high) == pytest.approx(worked_out(gain_S), rel=1e-9)
