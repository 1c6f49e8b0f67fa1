"""The posterior over arms against dense Gaussian algebra, and its worth to the bandit."""

import numpy as np
import pytest

from quad_tasks.core.bandit import choose_arms, contextual_policy, initial_state, paper_policy, update
from quad_tasks.core.contextual import Variances, _posterior, arm_features, arm_posterior
from quad_tasks.records import Pull

M = 4


def features(n_arms: int, seed: int = 0) -> np.ndarray:
    x_KD = np.random.default_rng(seed).normal(size=(n_arms, 6))
    return x_KD - x_KD.mean(axis=0)


def test_posterior_equals_dense_gaussian_posterioring() -> None:
    generator = np.random.default_rng(1)
    x_KD = features(12)
    pulls_K = np.array([2.0, 0, 1, 0.5, 0, 3, 1, 1, 0, 0, 4, 1])
    means_K = generator.normal(size=12)
    variances = Variances(weight=0.3, residual=0.2, noise=0.7)
    mean_K, deviation_K = _posterior(x_KD, pulls_K, means_K * pulls_K, variances)

    flat = 1e4  # an all but flat prior on the common mean
    prior = flat + 0.3 * x_KD @ x_KD.T + 0.2 * np.eye(12)
    seen = np.flatnonzero(pulls_K)
    gain = prior[:, seen] @ np.linalg.inv(prior[np.ix_(seen, seen)] + np.diag(0.7 / pulls_K[seen]))
    assert mean_K == pytest.approx(gain @ means_K[seen], abs=1e-3)
    assert deviation_K**2 == pytest.approx(np.diag(prior - gain @ prior[seen]), abs=1e-3)


def test_all_arms_look_alike_before_the_first_pull() -> None:
    mean_K, deviation_K = arm_posterior(features(5), np.zeros(5), np.zeros(5), 0.0)
    assert mean_K.tolist() == deviation_K.tolist() == [0.0] * 5


def test_a_much_pulled_arm_keeps_its_own_mean() -> None:
    generator = np.random.default_rng(0)
    pulls_K = np.full(30, 1e6)
    means_K = generator.normal(size=30)
    mean_K, deviation_K = arm_posterior(features(30), pulls_K, pulls_K * means_K, 1.0)
    assert mean_K == pytest.approx(means_K, abs=1e-4)
    assert (deviation_K < 2e-3).all()


def test_features_give_unvisited_arms_a_mean_that_predicts_theirs() -> None:
    generator = np.random.default_rng(0)
    x_KD = features(400)
    truth_K = x_KD @ generator.normal(size=6) + 0.3 * generator.normal(size=400)
    pulls_K = (np.arange(400) < 100).astype(float)
    rewards_K = truth_K + generator.normal(size=400)
    mean_K, deviation_K = arm_posterior(x_KD, pulls_K, pulls_K * rewards_K, float(np.var(rewards_K[:100])))
    assert np.corrcoef(mean_K[100:], truth_K[100:])[0, 1] > 0.9
    assert np.mean(np.abs(mean_K - truth_K)[100:] < 2 * deviation_K[100:]) >= 0.9


def test_feature_groups_are_centred_and_of_unit_variance() -> None:
    generator = np.random.default_rng(0)
    built_KD = arm_features(
        generator.normal(size=(50, 8)), generator.integers(1, 99, 50), generator.integers(99, 999, 50), 3
    )
    assert built_KD.shape == (50, 5)
    assert built_KD.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-12)
    squared = (built_KD**2).mean(axis=0)
    assert [squared[:3].sum(), squared[3], squared[4]] == pytest.approx([1, 1, 1])


def test_features_of_one_arm_are_zero() -> None:
    assert arm_features(np.ones((1, 4)), np.array([3]), np.array([30])).tolist() == [[0.0] * 6]


def total_reward(contextual: bool, seed: int) -> float:
    """Mean of the arms' means over 12 rounds of 5 pulls among 300 arms: too few to visit each."""
    generator = np.random.default_rng(seed)
    x_KD = features(300, seed)
    means_K = x_KD @ generator.normal(size=6) + 0.5 * generator.normal(size=300)
    policy = contextual_policy(0.3, 5, M) if contextual else paper_policy(0.3, 5, M, visit_every_arm=False)
    state, total = initial_state([999] * 300), 0.0
    for _ in range(12):
        arms = choose_arms(state, policy, generator, x_KD if contextual else None)
        total += float(means_K[arms].mean())
        rewards = means_K[arms] + generator.normal(size=len(arms))
        pulls = [Pull(int(a), int(state.cursor[a]), M, M, float(r), 0.0) for a, r in zip(arms, rewards, strict=True)]
        state = update(state, pulls, policy)
    return total / 12


def test_features_find_good_arms_that_no_pull_has_seen() -> None:
    gains = [total_reward(True, seed) - total_reward(False, seed) for seed in range(5)]
    assert np.mean(gains) > 0.5
