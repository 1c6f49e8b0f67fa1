"""Made-up arms against what they were made to be, regret by hand, and UCB1 against its theorem."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.experiments.lab.synthetic_arms import (
    ARM_DEVIATION,
    DIMENSION,
    LENGTH_SCALE,
    Arms,
    bounded_arms,
    draw_rewards,
    make_arms,
    play,
    policies,
    smooth_function,
    ucb1_bound,
    ucb1_policy,
)


def alone(means: list[float]) -> Arms:
    """Arms without features or neighbours."""
    nobody = Neighbours(np.zeros(len(means) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Arms(np.array(means), np.zeros((len(means), 0)), nobody)


@pytest.mark.parametrize("smooth", [True, False])
def test_means_have_the_stated_deviation_and_no_offset(smooth: bool) -> None:
    arms = make_arms(50, smooth, np.random.default_rng(0))
    assert arms.mean_K.mean() == pytest.approx(0, abs=1e-15)
    assert arms.mean_K.std() == pytest.approx(ARM_DEVIATION)


def test_smooth_functions_have_the_covariance_of_their_kernel() -> None:
    generator = np.random.default_rng(0)
    points_KD = generator.normal(size=(6, DIMENSION))
    draws = np.array([smooth_function(points_KD, generator) for _ in range(6000)])
    kernel_KK = np.exp(-squareform(pdist(points_KD, "sqeuclidean")) / (2 * LENGTH_SCALE**2))
    assert draws.T @ draws / len(draws) == pytest.approx(kernel_KK, abs=0.06)


def nearest_correlation(arms: Arms) -> float:
    """Correlation of each arm's mean with that of the arm of nearest features."""
    distance_KK = squareform(pdist(arms.features_KD))
    np.fill_diagonal(distance_KK, np.inf)
    return float(np.corrcoef(arms.mean_K, arms.mean_K[distance_KK.argmin(axis=1)])[0, 1])


def test_near_arms_have_near_means_only_where_means_are_smooth() -> None:
    assert nearest_correlation(make_arms(400, True, np.random.default_rng(1))) > 0.7
    assert abs(nearest_correlation(make_arms(400, False, np.random.default_rng(1)))) < 0.15


@pytest.mark.parametrize("noise", ["gaussian", "student"])
def test_rewards_scatter_about_their_means_as_much_as_arms_do(noise: str) -> None:
    rewards = draw_rewards(np.full(200_000, 0.7), noise, np.random.default_rng(0))  # type: ignore[arg-type]
    assert rewards.mean() == pytest.approx(0.7, abs=3e-4)
    assert rewards.std() == pytest.approx(ARM_DEVIATION, rel=0.1)


def test_student_rewards_have_the_heavier_tail() -> None:
    far = {
        noise: np.mean(np.abs(draw_rewards(np.zeros(100_000), noise, np.random.default_rng(0))) > 5 * ARM_DEVIATION)
        for noise in ("gaussian", "student")
    }
    assert far["student"] > 1e-3 > 1e-4 > far["gaussian"]


def test_bernoulli_rewards_are_zero_or_one_with_the_arms_mean() -> None:
    rewards = draw_rewards(np.full(100_000, 0.3), "bernoulli", np.random.default_rng(0))
    assert set(rewards.tolist()) == {0.0, 1.0}
    assert rewards.mean() == pytest.approx(0.3, abs=0.005)


def test_regret_of_random_pulls_is_the_mean_gap_to_the_best_arms() -> None:
    arms = alone([0.0, 1.0, 2.0, 5.0])
    history = play(None, arms, "gaussian", 2, 4000, np.random.default_rng(0))
    assert history.regret_R[-1] / 4000 == pytest.approx((5 + 2) - 2 * 2.0, rel=0.03)
    assert (np.diff(history.regret_R) >= 0).all()


def test_pulling_every_arm_has_no_regret() -> None:
    arms = alone([0.0, 1.0, 2.0])
    assert play(policies(3)["paper"], arms, "gaussian", 3, 5, np.random.default_rng(0)).regret_R.tolist() == [0.0] * 5


def test_exploitation_counts_pulls_on_the_best_tenth() -> None:
    arms = alone([float(i) for i in range(10)])
    history = play(policies(1)["greedy"], arms, "gaussian", 1, 15, np.random.default_rng(0))
    assert history.exploited_R[:10].sum() == 1.0
    assert history.exploited_R[10:].tolist() == [1.0] * 5


@pytest.mark.parametrize("name", list(policies(4)))
def test_the_same_generator_plays_the_same_game(name: str) -> None:
    arms = make_arms(20, True, np.random.default_rng(0))
    first, second = (play(policies(4)[name], arms, "student", 4, 12, np.random.default_rng(3)) for _ in range(2))
    assert first.regret_R.tolist() == second.regret_R.tolist()


def test_the_bound_equals_the_value_worked_by_hand() -> None:
    bound = ucb1_bound(np.array([0.9, 0.5, 0.9, 0.4]), np.array([1, 100]))
    constant = (1 + math.pi**2 / 3) * 0.9
    assert bound == pytest.approx([constant, 8 * math.log(100) * (1 / 0.4 + 1 / 0.5) + constant])


def test_ucb1_stays_under_its_bound_while_random_pulls_leave_it() -> None:
    arms, pulls_R = bounded_arms(), np.arange(1, 6001)
    bound_R = ucb1_bound(arms.mean_K, pulls_R)
    history = play(ucb1_policy(), arms, "bernoulli", 1, 6000, np.random.default_rng(0))
    chance = play(None, arms, "bernoulli", 1, 6000, np.random.default_rng(0))
    assert (history.regret_R <= bound_R).all()
    assert chance.regret_R[-1] > bound_R[-1]


def mean_regret(name: str, smooth: bool, n_rounds: int = 120) -> float:
    histories = [
        play(policies(4)[name], make_arms(60, smooth, np.random.default_rng(s)), "gaussian", 4, n_rounds,
             np.random.default_rng([s, 1]))
        for s in range(3)
    ]  # fmt: skip
    return float(np.mean([history.regret_R[-1] for history in histories]))


@pytest.mark.parametrize(("smooth", "limit"), [(True, 0.6), (False, 1.1)])
def test_features_pay_where_means_are_smooth_and_cost_little_where_not(smooth: bool, limit: float) -> None:
    assert mean_regret("contextual", smooth) <= limit * mean_regret("paper", smooth)
