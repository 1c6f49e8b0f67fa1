"""Predict arms' mean rewards from arm features by Bayesian linear regression (contextual bandit, LinUCB).

    θ_i = μ + x_i^T β + u_i,   β ~ N(0, s² I),   u_i ~ N(0, ω²),   (S_i / T_i) | θ_i ~ N(θ_i, σ² / T_i),   μ flat

θ_i is the true mean reward of arm i, x_i its features, S_i / T_i the mean of its T_i pulls. The linear part is that of
LinUCB (Li et al. 2010, arXiv 1003.0146). The residual u_i lets an arm's own pulls overrule its features, as in a
Gaussian process with a linear kernel plus white noise (Rasmussen and Williams 2006, section 2.7). The three variances
maximise the marginal likelihood on a small grid. A general kernel was rejected: it costs K^3.

Shape suffixes: K arms, V arms visited, D features (internally with a constant one first), R principal components.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

Float64 = npt.NDArray[np.float64]

FEATURE_RANK = 32
"""Principal components of the centroids used as features: a round's fit then costs K * 35^2 products."""
FIT_ARMS = 500
"""The most pulled arms, on which the variances are fitted; the posterior uses all arms."""
ARM_BLOCK = 4096
"""Arms whose posterior is computed at once, so that their features stay in cache."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Grid of two shares: of the reward variance that is a pull's noise, and of the rest that features explain."""


@dataclass(frozen=True, slots=True)
class Variances:
    """The model's three variances, in units of squared influence per token.

    Attributes:
        weight: s², prior variance of a feature's weight.
        residual: ω², variance of an arm's mean that its features do not explain.
        noise: σ², variance of one pull's reward around its arm's mean.
    """

    weight: float
    residual: float
    noise: float


def arm_features(
    centroids_KD: npt.NDArray[np.floating],
    n_documents_K: npt.NDArray[np.int64],
    n_tokens_K: npt.NDArray[np.int64],
    rank: int = FEATURE_RANK,
) -> Float64:
    """Build arm features: principal components of the centroids, log size, log mean length; unit variance per group.

    Args:
        centroids_KD: [K, D] mean embedding of each arm.
        n_documents_K: [K] documents in each arm.
        n_tokens_K: [K] tokens in each arm.
        rank: most principal components.

    Returns:
        [K, min(rank, D) + 2] centred features; the same in every round.
    """
    # Principal components of the centroids: [K, R]
    centred_KD = np.asarray(centroids_KD, np.float64) - np.mean(centroids_KD, axis=0, dtype=np.float64)
    _, vectors_DD = np.linalg.eigh(centred_KD.T @ centred_KD)
    components_KR = centred_KD @ vectors_DD[:, ::-1][:, :rank]
    # Log documents and log tokens per document, centred: [K, 1] each
    size_K = np.log1p(n_documents_K)
    length_K = np.log1p(n_tokens_K / np.maximum(n_documents_K, 1))
    groups = (components_KR, size_K[:, None] - size_K.mean(), length_K[:, None] - length_K.mean())
    return np.concatenate([_unit_variance(group) for group in groups], axis=1)


def arm_posterior(
    features_KD: npt.NDArray[np.floating], pulls_K: Float64, reward_sum_K: Float64, reward_variance: float
) -> tuple[Float64, Float64]:
    """Compute the posterior mean and standard deviation of every arm's mean reward.

    Args:
        features_KD: [K, D] centred arm features.
        pulls_K: [K] T; 0 for an unvisited arm.
        reward_sum_K: [K] S.
        reward_variance: variance of all rewards, which the model's three variances divide among them.

    Returns:
        [K] means and [K] standard deviations; the same for all arms before the first pull.
    """
    visited_V = np.flatnonzero(pulls_K > 0)
    if len(visited_V) == 0 or reward_variance <= 0:
        known = float(reward_sum_K.sum() / pulls_K.sum()) if len(visited_V) else 0.0
        return np.full(len(pulls_K), known), np.zeros(len(pulls_K))
    most_V = visited_V[np.argsort(-pulls_K[visited_V], kind="stable")[:FIT_ARMS]]
    fitted_VD = _with_constant(features_KD[most_V])
    variances = _fit_variances(fitted_VD, pulls_K[most_V], reward_sum_K[most_V] / pulls_K[most_V], reward_variance)
    return _posterior(features_KD, pulls_K, reward_sum_K, variances)


def _fit_variances(x_VD: Float64, pulls_V: Float64, mean_V: Float64, reward_variance: float) -> Variances:
    """Fit the variances by maximum marginal likelihood; together they make the variance of rewards."""
    squared_length = float(np.mean(np.sum(x_VD[:, 1:] ** 2, axis=1))) or 1.0  # all features 0: no weight matters
    # Each pair of shares gives three variances; _solve returns the log likelihood of each
    grid = [
        Variances(
            weight=reward_variance * (1 - noise) * linear / squared_length,
            residual=reward_variance * (1 - noise) * (1 - linear),
            noise=reward_variance * noise,
        )
        for noise in SHARES
        for linear in SHARES
    ]
    return max(grid, key=lambda variances: _solve(x_VD, mean_V, _precision(pulls_V, variances), variances.weight)[2])


def _posterior(
    features_KD: npt.NDArray[np.floating], pulls_K: Float64, reward_sum_K: Float64, variances: Variances
) -> tuple[Float64, Float64]:
    """Compute the posterior of every θ_i: predicted from features, then corrected by the arm's own pulls."""
    # Posterior of the weights from the visited arms: Cholesky factor [D, D], mean [D]
    visited_V = np.flatnonzero(pulls_K > 0)
    mean_V = reward_sum_K[visited_V] / pulls_K[visited_V]
    precision_V = _precision(pulls_K[visited_V], variances)
    factor_DD, beta_D, _ = _solve(_with_constant(features_KD[visited_V]), mean_V, precision_V, variances.weight)
    inverse_DD = linalg.solve_triangular(factor_DD, np.eye(len(beta_D)), lower=True, check_finite=False).T
    # Prediction of every arm from its features: x^T β and x^T (posterior covariance) x: [K], [K]
    mean_K, variance_K = np.empty(len(pulls_K)), np.empty(len(pulls_K))
    for start in range(0, len(pulls_K), ARM_BLOCK):
        rows = slice(start, start + ARM_BLOCK)
        mean_K[rows] = features_KD[rows] @ beta_D[1:] + beta_D[0]
        half_KD = features_KD[rows] @ inverse_DD[1:] + inverse_DD[0]
        variance_K[rows] = np.einsum("kd,kd->k", half_KD, half_KD)
    # Correction by the arm's own pulls, with weight own = ω² / (ω² + σ² / T): [V]
    own_V = variances.residual * precision_V
    variance_K[visited_V] *= (1 - own_V) ** 2
    variance_K += variances.residual
    variance_K[visited_V] -= variances.residual * own_V
    mean_K[visited_V] += own_V * (mean_V - mean_K[visited_V])
    return mean_K, np.sqrt(variance_K)


def _with_constant(features_VD: npt.NDArray[np.floating]) -> Float64:
    return np.concatenate((np.ones((len(features_VD), 1)), features_VD), axis=1, dtype=np.float64)


def _precision(pulls_V: Float64, variances: Variances) -> Float64:
    """Compute the precision of an arm's observed mean around its prediction from features, [V]."""
    return 1 / (variances.residual + variances.noise / pulls_V)


def _solve(
    x_VD: Float64, mean_V: Float64, precision_V: Float64, weight_variance: float
) -> tuple[Float64, Float64, float]:
    """Fit the weights: μ (first coordinate, flat prior) and β.

    Returns:
        The lower Cholesky factor of the posterior precision [D, D], the posterior mean [D], and the restricted log
        likelihood up to a constant.
    """
    # Posterior precision X^T W X + prior, as a Cholesky factor: [D, D]
    n_weights = x_VD.shape[1] - 1
    weighted_VD = x_VD * precision_V[:, None]
    prior_DD = np.diag([0.0, *[1 / weight_variance] * n_weights])
    factor_DD: Float64 = linalg.cholesky(weighted_VD.T @ x_VD + prior_DD, lower=True, check_finite=False)
    # Posterior mean: [D]
    moment_D = weighted_VD.T @ mean_V
    beta_D: Float64 = linalg.cho_solve((factor_DD, True), moment_D, check_finite=False)
    # Restricted log likelihood: quadratic form and log determinants
    fit = precision_V @ mean_V**2 - moment_D @ beta_D
    determinant = 2 * np.log(np.diag(factor_DD)).sum() + n_weights * np.log(weight_variance)
    return factor_DD, beta_D, -0.5 * float(fit + determinant - np.log(precision_V).sum())


def _unit_variance(group_KD: Float64) -> Float64:
    """Scale a group of centred features to a mean squared norm of 1; constant ones stay 0."""
    squared = float(np.mean(np.sum(group_KD**2, axis=1)))
    return group_KD / np.sqrt(squared) if squared > 0 else group_KD
