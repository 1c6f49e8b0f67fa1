"""Homogeneity of arms: how much of the variance of influence lies between arms, and how large a pull that asks for.

The intraclass correlation ICC(1) of a one-way random-effects analysis of variance (Shrout and Fleiss 1979), for arms of
unequal size (Donner 1986). `ArmSpread` sums it up by arm, so that a round adds its own pulls to what is known.

Shape suffixes: N scored documents, A arms that have scored documents, K arms, P pulls of a round.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quad_tasks.core.group_sums import group_means

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Homogeneity:
    """Variance of influence within and between arms.

    Attributes:
        intraclass_correlation: share of the variance of influence that lies between arms, 0 to 1.
        between_variance: variance of arms' true means, influence per token squared.
        within_variance: variance of documents within an arm.
    """

    intraclass_correlation: float
    between_variance: float
    within_variance: float


@dataclass(frozen=True)
class ArmSpread:
    """Influence per token of documents drawn at random within their arms, summed up by arm.

    Attributes:
        n_K: [K] documents.
        mean_K: [K] their mean, 0 where there are none.
        squares_K: [K] squares of what they differ from it, summed.
    """

    n_K: Int64
    mean_K: Float64
    squares_K: Float64


def no_spread(n_arms: int) -> ArmSpread:
    """Return the sums of no document."""
    return ArmSpread(np.zeros(n_arms, dtype=np.int64), np.zeros(n_arms), np.zeros(n_arms))


def add_pulls(spread: ArmSpread, arm_P: Int64, n_P: Int64, mean_P: Float64, variance_P: Float64) -> ArmSpread:
    """Add the documents of pulls to what is summed up by arm (Chan, Golub and LeVeque 1979).

    Args:
        spread: before; not changed.
        arm_P: [P] the pulls' arms, distinct.
        n_P: [P] scored documents of each.
        mean_P: [P] their mean influence per token.
        variance_P: [P] its variance (population).
    """
    filled = n_P > 0
    arm, n, mean = arm_P[filled], n_P[filled], mean_P[filled]
    before, change = spread.n_K[arm], mean - spread.mean_K[arm]
    n_K, mean_K, squares_K = spread.n_K.copy(), spread.mean_K.copy(), spread.squares_K.copy()
    n_K[arm] = before + n
    mean_K[arm] += change * (n / n_K[arm])
    squares_K[arm] += n * variance_P[filled] + np.square(change) * (before * n / n_K[arm])
    return ArmSpread(n_K, mean_K, squares_K)


def homogeneity(influence_N: npt.NDArray[np.floating], arm_N: npt.NDArray[np.integer]) -> Homogeneity | None:
    """Estimate the variance of influence within and between arms (one-way analysis of variance).

    Args:
        influence_N: [N] influence per token of documents drawn at random within their arms.
        arm_N: [N] their arms; sizes may differ.

    Returns:
        The variances; None where there are fewer than two arms, or no arm has two documents.
    """
    _, group_N, size_A = np.unique(arm_N, return_inverse=True, return_counts=True)
    n_arms = len(size_A)
    if n_arms < 2 or len(arm_N) == n_arms:
        return None
    # Deviations from the arm means: [N], [A]
    centred_N = np.asarray(influence_N, np.float64) - np.mean(influence_N)
    mean_A = group_means(centred_N, group_N, n_arms)
    return _split(size_A, mean_A, float(np.square(centred_N - mean_A[group_N]).sum()))


def spread_homogeneity(spread: ArmSpread) -> Homogeneity | None:
    """Estimate the same of documents summed up by arm, up to rounding."""
    size_A = spread.n_K[spread.n_K > 0]
    n, n_arms = int(size_A.sum()), len(size_A)
    if n_arms < 2 or n == n_arms:
        return None
    mean_A = spread.mean_K[spread.n_K > 0]
    return _split(size_A, mean_A - float((size_A * mean_A).sum() / n), float(spread.squares_K.sum()))


def _split(size_A: Int64, mean_A: Float64, squares: float) -> Homogeneity:
    """Split the variance, of arms' means from the mean of all and the squares of deviations from arms' means."""
    n, n_arms = int(size_A.sum()), len(size_A)
    within = squares / (n - n_arms)
    # Mean square between arms; its expectation is within + typical_size * between
    between_square = float((size_A * np.square(mean_A)).sum() / (n_arms - 1))
    typical_size = (n - np.square(size_A).sum() / n) / (n_arms - 1)
    between = max((between_square - within) / float(typical_size), 0.0)
    total = between + within
    return Homogeneity(between / total if total > 0 else 0.0, between, within)


def documents_for_error(within_variance: float, standard_error: float) -> int:
    """Compute how many documents a pull needs for a wanted standard error of its mean: variance / error², rounded up.

    Args:
        within_variance: variance of influence within an arm.
        standard_error: wanted standard error, in units of influence, > 0.
    """
    return max(1, math.ceil(within_variance / standard_error**2))
