"""What the scored documents tell of the unscored: a regression of influence on embeddings and cheap features.

Owns the regression, its check against what the arms' means alone would say, and the draw of documents to score next.
Two ridge regressions are averaged, one linear and one in a Gaussian kernel (Nyström features; Williams and Seeger
2001), and what they miss of an arm is added as a shrunken arm effect. Everything out of sample is leave-one-out in
closed form (ridge: Hastie, Tibshirani and Friedman 2009, equation 7.64), so that no fold is drawn. Error is measured on
influence, not on ranks: regressions of ranks correlate better and select worse. Decided against, on 16,000 scored documents:
gradient-boosted trees, which cost ten times as much and choose a little worse.

Influence is per target token; > 0: training on it lowers the reference loss.

Shape suffixes: N documents, D features, K arms, P coordinates of a feature map, M landmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

CLIPPED_SHARE = 0.02
"""Share of scored documents, at either end, whose influence is drawn in before the fit: a few short documents lie ten
deviations out, and squares would fit those alone."""
PENALTIES = tuple(np.logspace(-4, 3, 22))
"""Grid of ridge penalties, in units of the mean eigenvalue of the feature map."""
WIDTHS = (0.5, 1.0, 2.0)
"""Grid of the Gaussian kernel's squared width, in units of the median squared distance."""
LANDMARKS = 600
"""Documents the kernel is expanded in."""
FIT_DOCUMENTS = 50_000
"""Scored documents fitted on at most; it bounds memory to 300 MB."""
PREDICT_BLOCK = 8192
LEAST_DOCUMENTS = 20
"""Scored documents below which no regression is tried."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well left-out scored documents are predicted, and how well their arms' shrunken means do.

    Attributes:
        spearman: rank correlation with the measured influence.
        explained: share of its variance explained, extremes clipped.
        baseline_spearman: of the arm means.
        baseline_explained: of the arm means.
    """

    spearman: float
    explained: float
    baseline_spearman: float
    baseline_explained: float


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted regression: plain arrays, nothing else.

    Attributes:
        accepted: whether it beat the arm means; if not, `predict` gives those.
        quality: out of sample, of both.
        n_fitted: documents fitted on.
        centre_D: [D] features' means.
        scale_D: [D] features' standard deviations.
        linear_D: [D] weights of the standardised features, the average's half included, as below.
        landmarks_MD: [M, D] standardised features of the landmarks.
        kernel_M: [M] weights of the kernel at the landmarks.
        squared_width: of the kernel.
        intercept: influence where all else is 0.
        arm_effect_K: [K] what the regression misses of each arm.
        arm_mean_K: [K] shrunken mean influence of each arm.
    """

    accepted: bool
    quality: Quality
    n_fitted: int
    centre_D: Float64
    scale_D: Float64
    linear_D: Float64
    landmarks_MD: Float64
    kernel_M: Float64
    squared_width: float
    intercept: float
    arm_effect_K: Float64
    arm_mean_K: Float64


@dataclass(frozen=True, slots=True)
class _Ridge:
    """A ridge regression and its leave-one-out predictions, both of centred targets."""

    weights_P: Float64
    left_out_N: Float64
    error: float


def document_features(embeddings_ND: Floats, n_tokens_N: Int64, n_bytes_N: Int64, more: Sequence[Floats] = ()) -> Float64:
    """Put an embedding and what is cheap to know of a document side by side.

    Args:
        embeddings_ND: [N, D] embeddings.
        n_tokens_N: [N] tokens, > 0.
        n_bytes_N: [N] bytes of UTF-8, > 0.
        more: further columns, each [N] or [N, any], such as the model's hidden states or losses.

    Returns:
        [N, D + 2 + more] float64.
    """
    columns = [embeddings_ND, np.log(n_tokens_N)[:, None], np.log(n_tokens_N / n_bytes_N)[:, None]]
    columns += [extra.reshape(len(embeddings_ND), -1) for extra in more]
    return np.concatenate(columns, axis=1, dtype=np.float64)


def shrunken_means(value_N: Float64, arm_N: Int32, n_arms: int) -> tuple[Float64, Float64]:
    """Estimate arm means under one-way random effects, variances by the analysis of variance.

    An arm of n documents stands at ``(Σ value + κ μ) / (n + κ)``, κ being the variance within over that between arms.

    Args:
        value_N: [N] values.
        arm_N: [N] arm of each, < n_arms.
        n_arms: K.

    Returns:
        [K] shrunken means, the common mean for an arm without documents; [N] for each document the shrunken mean of its
        arm had it been left out.
    """
    count_K = np.bincount(arm_N, minlength=n_arms)
    sum_K = np.bincount(arm_N, weights=value_N, minlength=n_arms)
    mean = float(value_N.mean())
    ratio = _variance_ratio(value_N, arm_N, count_K, sum_K)
    deviation_K = sum_K - count_K * mean
    left_out_N = mean + (deviation_K[arm_N] - (value_N - mean)) / (count_K[arm_N] - 1 + ratio)
    return mean + deviation_K / (count_K + ratio), left_out_N


def fit_predictor(
    features_ND: Floats, influence_N: Float64, arm_N: Int32, n_arms: int, generator: np.random.Generator
) -> Predictor | None:
    """Fit influence on the scored documents' features.

    Args:
        features_ND: [N, D] features of the scored documents.
        influence_N: [N] their measured influence per token.
        arm_N: [N] their arms.
        n_arms: K.
        generator: draws the landmarks, and the documents fitted on where there are too many.

    Returns:
        The predictor; None with too few documents to tell.
    """
