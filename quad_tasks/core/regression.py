"""Ridge regressions, linear and in a Gaussian kernel, each with what it says of a document had it been left out.

Owns two fits: on features as they are, and on Nyström features of a Gaussian kernel (Williams and Seeger 2001). Penalty
and width are those of least leave-one-out error, which has a closed form (Hastie, Tibshirani and Friedman 2009,
equation 7.64), so that no fold is drawn. `prediction.py` puts them together.

Shape suffixes: N documents, D features, P coordinates of a feature map, R its rank, A penalties, M landmarks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.spatial.distance import pdist

Float64 = npt.NDArray[np.float64]

PENALTIES = tuple(np.logspace(-4, 3, 22))
"""Grid of ridge penalties, in units of the mean eigenvalue of the feature map."""
WIDTHS = (0.5, 1.0, 2.0)
"""Grid of the Gaussian kernel's squared width, in units of the median squared distance."""
RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest are rounding."""
LEAST_FREEDOM = 1e-6
"""Least that 1 less a document's leverage is taken for: a document that alone decides its prediction."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """A ridge regression: weights, intercept, and what it says of each document had it been left out."""

    weights_P: Float64
    intercept: float
    left_out_N: Float64


@dataclass(frozen=True, slots=True)
class KernelRidge:
    """A ridge regression in a kernel, and the same as weights of the kernel at landmarks."""

    ridge: Ridge
    landmarks_MD: Float64
    squared_width: float
    weights_M: Float64


def fit_ridge(map_NP: Float64, y_N: Float64) -> Ridge:
    """Regress on a feature map.

    Args:
        map_NP: [N, P] coordinates.
        y_N: [N] values.
    """
    centre_P, mean = map_NP.mean(axis=0), float(y_N.mean())
    z_NP = map_NP - centre_P
    eigenvalues_R, left_NR = _left_singular(z_NP)
    moment_R = left_NR.T @ (y_N - mean)
    penalties_A = np.array(PENALTIES) * eigenvalues_R.sum() / max(len(eigenvalues_R), 1)
    shrink_RA = eigenvalues_R[:, None] / (eigenvalues_R[:, None] + penalties_A)
    residual_NA = (y_N - mean)[:, None] - left_NR @ (shrink_RA * moment_R[:, None])
    leverage_NA = left_NR**2 @ shrink_RA + 1 / len(y_N)
    residual_NA /= np.maximum(1 - leverage_NA, LEAST_FREEDOM)
    best = int(np.argmin(np.mean(residual_NA**2, axis=0)))
    weights_P = z_NP.T @ (left_NR @ (moment_R / (eigenvalues_R + penalties_A[best])))
    return Ridge(weights_P, mean - float(centre_P @ weights_P), y_N - residual_NA[:, best])


def _left_singular(z_NP: Float64) -> tuple[Float64, Float64]:
    """Squared singular values above rounding, and left singular vectors, by way of the smaller Gram matrix."""
    n_rows, n_columns = z_NP.shape
    if n_rows <= n_columns:
        eigenvalues, vectors = linalg.eigh(z_NP @ z_NP.T, check_finite=False)
    else:
        eigenvalues, vectors = linalg.eigh(z_NP.T @ z_NP, check_finite=False)
    kept = eigenvalues > RANK_TOLERANCE * max(float(eigenvalues[-1]), np.finfo(np.float64).tiny)
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    return eigenvalues, vectors if n_rows <= n_columns else z_NP @ vectors / np.sqrt(eigenvalues)


def fit_kernel(x_ND: Float64, y_N: Float64, landmarks_MD: Float64) -> KernelRidge:
    """Regress on the Gaussian kernel's Nyström features.

    Args:
        x_ND: [N, D] standardised features.
        y_N: [N] values.
        landmarks_MD: [M, D] the documents the kernel is expanded in.
    """
    typical = float(np.median(pdist(landmarks_MD, "sqeuclidean"))) or 1.0  # all alike: no width matters
    fits = [_fit_kernel_of_width(x_ND, y_N, landmarks_MD, width * typical) for width in WIDTHS]
    return min(fits, key=lambda fit: squared_error(y_N, fit.ridge.left_out_N))


def _fit_kernel_of_width(x_ND: Float64, y_N: Float64, landmarks_MD: Float64, squared_width: float) -> KernelRidge:
    eigenvalues, vectors = linalg.eigh(gaussian_kernel(landmarks_MD, landmarks_MD, squared_width), check_finite=False)
    kept = eigenvalues > RANK_TOLERANCE * eigenvalues[-1]
    whitening_MP = vectors[:, kept] / np.sqrt(eigenvalues[kept])
    ridge = fit_ridge(gaussian_kernel(x_ND, landmarks_MD, squared_width) @ whitening_MP, y_N)
    return KernelRidge(ridge, landmarks_MD, squared_width, whitening_MP @ ridge.weights_P)


def gaussian_kernel(x_ND: Float64, landmarks_MD: Float64, squared_width: float) -> Float64:
    """Compute ``exp(-|x - y|² / width)``, [N, M].

    Distances take one matrix product: rounding costs 1e-12 of |x|², and it is ten times faster.
    """
    squares_N, squares_M = (np.einsum("ij,ij->i", z, z) for z in (x_ND, landmarks_MD))
    distance_NM: Float64 = squares_N[:, None] + squares_M - 2 * (x_ND @ landmarks_MD.T)
    np.maximum(distance_NM, 0.0, out=distance_NM)
    distance_NM /= -squared_width
    return np.exp(distance_NM, out=distance_NM)


def squared_error(y_N: Float64, predicted_N: Float64) -> float:
    """Compute the mean squared error."""
    return float(np.mean((y_N - predicted_N) ** 2))
