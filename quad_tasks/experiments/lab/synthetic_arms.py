"""Simulate bandit policies on synthetic arms with known means; measure their regret.

Owns the arms, the game and UCB1's bound. An arm's mean is either a smooth function of its centroid, as influence is
expected to be of a text's embedding, or independent of it. The smooth function is drawn from a Gaussian process with a
squared-exponential kernel, by random Fourier features (Rahimi and Recht 2007), so that no policy's own model is the
truth. Arms never run out. The policies are those of `core.bandit`, unchanged.

Regret is pseudo-regret (Bubeck and Cesa-Bianchi 2012, arXiv 1204.5721): the true means of the k best arms less those of
the k arms pulled, summed over rounds. The noise of rewards is not in it.

Shape suffixes: K arms, D embedding, F random features, R rounds, P pulls of a round.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from quad_tasks.core import bandit, contextual, wasserstein
from quad_tasks.records import Pull

Float64 = npt.NDArray[np.float64]
Noise = Literal["gaussian", "student", "bernoulli"]

DIMENSION = 8
"""Dimension of the centroids, drawn from N(0, I)."""
LENGTH_SCALE = 4.0
"""Of the kernel: the distance of two typical centroids, sqrt(2 * 8). A linear fit then explains most of the means."""
FOURIER_FEATURES = 512
ARM_DEVIATION = 0.02
"""Standard deviation of arms' means, influence per token: that of domains in a pilot on real text. It matters to
`released` alone, whose α and τ are absolute."""
STUDENT_FREEDOM = 3.0
"""The heaviest tail of a whole number of degrees of freedom that still has a variance."""
BEST_SHARE = 0.1
"""Share of the arms, by true mean, on which pulls count as exploitation."""
DOCUMENTS_PER_ARM = 2**40
"""More than any game draws: arms never run out."""


@dataclass(frozen=True, slots=True)
class Arms:
    """Synthetic arms with their true means.

    Attributes:
        mean_K: [K] true mean reward.
        features_KD: [K, D] features that `contextual` regresses on.
        neighbours: arms near each arm, for policies that propagate.
    """

    mean_K: Float64
    features_KD: Float64
    neighbours: wasserstein.Neighbours


@dataclass(frozen=True, slots=True)
class GameHistory:
    """A policy's regret and exploitation, by round.

    Attributes:
        regret_R: [R] cumulative regret, in the unit of rewards.
        exploited_R: [R] share of the round's pulls on the truly best tenth of the arms.
    """

    regret_R: Float64
    exploited_R: Float64


def make_arms(n_arms: int, smooth: bool, generator: np.random.Generator) -> Arms:
    """Draw centroids, and means that are a smooth function of them or independent of them.

    Args:
        n_arms: K >= 2.
        smooth: whether means are a smooth function of centroids.
        generator: draws all of it.
    """
    centroids_KD = generator.normal(size=(n_arms, DIMENSION))
    raw_K = smooth_function(centroids_KD, generator) if smooth else generator.normal(size=n_arms)
    ones_K = np.ones(n_arms, dtype=np.int64)
    still_KD = np.zeros_like(centroids_KD)
    bandwidth = wasserstein.choose_bandwidth(centroids_KD, still_KD, generator)
    return Arms(
        mean_K=ARM_DEVIATION * (raw_K - raw_K.mean()) / raw_K.std(),
        features_KD=contextual.arm_features(centroids_KD, ones_K, ones_K),
        neighbours=wasserstein.neighbour_lists(centroids_KD, still_KD, bandwidth),
    )


def bounded_arms() -> Arms:
    """Build ten arms of means 0.05, 0.15, ... 0.95, where UCB1's bound is tight enough to be informative."""
    n_arms = 10
    nobody = wasserstein.Neighbours(np.zeros(n_arms + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Arms((np.arange(n_arms) + 0.5) / n_arms, np.zeros((n_arms, 0)), nobody)


def smooth_function(points_KD: Float64, generator: np.random.Generator) -> Float64:
    """Draw a function from a Gaussian process and return its value at the points, [K]."""
    frequency_DF = generator.normal(size=(points_KD.shape[1], FOURIER_FEATURES)) / LENGTH_SCALE
    phase_F = generator.uniform(0, 2 * np.pi, FOURIER_FEATURES)
    weight_F = generator.normal(size=FOURIER_FEATURES) * np.sqrt(2 / FOURIER_FEATURES)
    values_K: Float64 = np.cos(points_KD @ frequency_DF + phase_F) @ weight_F
    return values_K


def policies(arms_per_round: int) -> Mapping[str, bandit.Policy | None]:
    """List the policies compared, each with its own constants; None pulls arms at random.

    Args:
        arms_per_round: k, the same for all.

    Returns:
        `uniform`; `greedy`, the paper's without a bonus; `paper`; `propagated`, the paper's with weights passed on to
        neighbours; `released`, its bandwidth that of ten neighbours, since its own is meant for unit embeddings;
        `thompson`; `contextual`.
    """
    paper = bandit.paper_policy(arms_per_round=arms_per_round, documents_per_pull=1)
    return MappingProxyType(
        {
            "uniform": None,
            "greedy": replace(paper, alpha=0.0),
            "paper": paper,
            "propagated": replace(paper, propagation="weights"),
            "released": bandit.released_policy(arms_per_round=arms_per_round, documents_per_pull=1),
            "thompson": bandit.thompson_policy(arms_per_round, 1),
            "contextual": bandit.contextual_policy(arms_per_round=arms_per_round, documents_per_pull=1),
        }
    )


def ucb1_policy() -> bandit.Policy:
    """Build UCB1 itself (Auer et al. 2002, figure 1): one arm a round, α = 1, no σ, for rewards in [0, 1]."""
    return replace(bandit.paper_policy(1.0, arms_per_round=1, documents_per_pull=1), scale_by_deviation=False)


def play(
    policy: bandit.Policy | None,
    arms: Arms,
    noise: Noise,
    arms_per_round: int,
    n_rounds: int,
    generator: np.random.Generator,
) -> GameHistory:
    """Play a game: a policy pulls arms for a number of rounds and learns from noisy rewards.

    Args:
        policy: chooses the arms; None: k distinct arms at random.
        arms: the truth; the policy sees rewards, features and neighbours, never true means.
        noise: how a reward scatters about its arm's mean (`draw_rewards`).
        arms_per_round: k, which is also the policy's.
        n_rounds: R.
        generator: draws rewards, breaks ties and serves the policy's own chance.
    """
    n_arms = len(arms.mean_K)
    rank_K = np.argsort(np.argsort(-arms.mean_K, kind="stable"))
    best = float(np.sort(arms.mean_K)[-arms_per_round:].sum())
    state = bandit.initial_state(np.full(n_arms, DOCUMENTS_PER_ARM))
    lost_R, exploited_R = np.zeros(n_rounds), np.zeros(n_rounds)
    for number in range(n_rounds):
        if policy is None:
            chosen_P = generator.choice(n_arms, arms_per_round, replace=False, shuffle=False)
        else:
            chosen_P = bandit.choose_arms(state, policy, generator, arms.features_KD)
            rewards_P = draw_rewards(arms.mean_K[chosen_P], noise, generator)
            pulls = [
                Pull(arm, cursor, 1, 1, reward, 0.0)
                for arm, cursor, reward in zip(
                    chosen_P.tolist(), state.cursor[chosen_P].tolist(), rewards_P.tolist(), strict=True
                )
            ]
            state = bandit.update(state, pulls, policy, arms.neighbours)
        lost_R[number] = best - arms.mean_K[chosen_P].sum()
        exploited_R[number] = np.mean(rank_K[chosen_P] < BEST_SHARE * n_arms)
    return GameHistory(np.cumsum(lost_R), exploited_R)


def draw_rewards(mean_P: Float64, noise: Noise, generator: np.random.Generator) -> Float64:
    """Draw one reward per pull.

    Args:
        mean_P: [P] true means of the arms pulled; in [0, 1] for `bernoulli`.
        noise: `gaussian` or `student` (three degrees of freedom), both with the standard deviation between arms, so
            that one pull tells half of what there is to know; or `bernoulli`, a reward of 0 or 1.
        generator: draws.
    """
    if noise == "bernoulli":
        return (generator.random(len(mean_P)) < mean_P).astype(np.float64)
    if noise == "gaussian":
        return mean_P + ARM_DEVIATION * generator.normal(size=len(mean_P))
    scale = ARM_DEVIATION * math.sqrt((STUDENT_FREEDOM - 2) / STUDENT_FREEDOM)
    return mean_P + scale * generator.standard_t(STUDENT_FREEDOM, len(mean_P))


def ucb1_bound(mean_K: Float64, pulls_R: npt.NDArray[np.integer]) -> Float64:
    """Compute the bound on UCB1's expected regret (Auer et al. 2002, theorem 1).

    It holds for one arm a round and independent rewards in [0, 1]; not for a σ measured on the way (`paper`), nor for
    rewards without a bound.

    Args:
        mean_K: [K] true means, in [0, 1].
        pulls_R: [R] numbers of pulls, >= 1.

    Returns:
        [R] ``8 ln(n) Σ 1/Δ_i + (1 + π²/3) Σ Δ_i``, the first sum over arms that are not best.
    """
    gap_K = mean_K.max() - mean_K
    slope = 8 * float(np.sum(1 / gap_K[gap_K > 0]))
    constant = (1 + np.pi**2 / 3) * float(gap_K.sum())
    bound_R: Float64 = slope * np.log(pulls_R) + constant
    return bound_R
