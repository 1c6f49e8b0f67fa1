"""The analysis of variance against known truths, and summed up pull by pull against one pass over the documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f_oneway

from quad_tasks.core.evaluation.homogeneity import (
    add_pulls,
    documents_for_error,
    homogeneity,
    no_spread,
    spread_homogeneity,
)


def influence(arm: np.ndarray, between: float, within: float, seed: int = 0) -> np.ndarray:
    """Draw influence from the random-effects model itself."""
    generator = np.random.default_rng(seed)
    return generator.normal(0, between, arm.max() + 1)[arm] + generator.normal(0, within, len(arm))


def test_homogeneity_recovers_the_variances_it_was_drawn_from() -> None:
    generator = np.random.default_rng(0)
    arm = np.repeat(np.arange(4000), generator.integers(1, 9, 4000))
    found = homogeneity(influence(arm, between=2, within=3), arm)
    assert found is not None
    assert found.between_variance == pytest.approx(4, rel=0.06)
    assert found.within_variance == pytest.approx(9, rel=0.03)
    assert found.intraclass_correlation == pytest.approx(4 / 13, rel=0.05)


def test_homogeneity_equals_the_f_statistic_of_a_balanced_design() -> None:
    size, arm = 5, np.repeat(np.arange(12), 5)
    values = influence(arm, between=1, within=1)
    f = f_oneway(*values.reshape(12, size)).statistic
    found = homogeneity(values, arm)
    assert found is not None
    assert found.intraclass_correlation == pytest.approx((f - 1) / (f - 1 + size), rel=1e-12)


def test_homogeneity_does_not_depend_on_order_shift_or_unit() -> None:
    arm = np.repeat(np.arange(9), np.arange(1, 10))
    values = influence(arm, between=1, within=1)
    order = np.random.default_rng(0).permutation(len(arm))
    first, second = homogeneity(values, arm), homogeneity(1e-6 * values[order] + 5, arm[order])
    assert first is not None
    assert second is not None
    assert second.intraclass_correlation == pytest.approx(first.intraclass_correlation, rel=1e-6)


@pytest.mark.parametrize("arm", [[0, 0, 0], [0, 1, 2], []], ids=["one arm", "one document each", "none"])
def test_variances_that_cannot_be_split_are_not(arm: list[int]) -> None:
    assert homogeneity(np.arange(len(arm)), np.array(arm, int)) is None


def test_a_pull_of_the_documents_needed_has_the_wanted_error() -> None:
    m = documents_for_error(within_variance=9.0, standard_error=0.5)
    assert m == 36
    means = np.random.default_rng(0).normal(0, 3, (20_000, m)).mean(axis=1)
    assert means.std() == pytest.approx(0.5, rel=0.02)


rounds = st.lists(st.dictionaries(st.integers(0, 5), st.integers(0, 4), max_size=6), max_size=6)


@given(rounds, st.sampled_from([0.0, 1e6]))
def test_pulls_added_round_by_round_tell_what_one_pass_over_their_documents_does(
    sizes: list[dict[int, int]], shift: float
) -> None:
    generator, spread = np.random.default_rng(0), no_spread(6)
    values, arms = [np.empty(0)], [np.empty(0, int)]
    for of_round in sizes:
        own = [shift + arm + generator.normal(size=n) for arm, n in of_round.items()]
        told = [(float(v.mean()), float(v.var())) if len(v) else (0.0, 0.0) for v in own]
        arm_P, n_P = np.array([*of_round], int), np.array([*of_round.values()], int)
        spread = add_pulls(spread, arm_P, n_P, np.array([m for m, _ in told]), np.array([v for _, v in told]))
        values += own
        arms.append(np.repeat(arm_P, n_P))
    expected = homogeneity(np.concatenate(values), np.concatenate(arms))
    found = spread_homogeneity(spread)
    assert spread.n_K.tolist() == np.bincount(np.concatenate(arms), minlength=6).tolist()
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.within_variance == pytest.approx(expected.within_variance, rel=1e-8, abs=1e-12)
        assert found.between_variance == pytest.approx(expected.between_variance, rel=1e-6, abs=1e-8)
