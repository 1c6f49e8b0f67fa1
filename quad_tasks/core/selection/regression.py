"""Fit ridge regressions, linear and in a Gaussian kernel, with leave-one-out predictions.

Owns two fits: on the features themselves, and on Nyström features of a Gaussian kernel (Williams and Seeger 2001).
Penalty and width are those of least leave-one-out error, which has a closed form (Hastie, Tibshirani and Friedman 2009,
equation 7.64), so no folds are drawn. `prediction.py` combines the two.

Memory is that of one map, [N, P] float64: copies of it are made a block of rows at a time.

Shape suffixes: N documents, D features, P coordinates of a feature map, R its rank, A penalties, M landmarks.
"""

from collections.abc import Iterator
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
"""Eigenvalues below this share of the largest are rounding errors."""
LEAST_FREEDOM = 1e-6
"""Lower limit of 1 - leverage: a document of leverage 1 alone decides its own prediction."""
BLOCK_ROWS = 1024
"""Rows of a map that are copied at a time."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted ridge regression: weights, intercept, and each document's leave-one-out prediction."""

    weights_P: Float64
    intercept: float
    leave_one_out_N: Float64


@dataclass(frozen=True, slots=True)
class KernelRidge:
    """A fitted kernel ridge regression, and the same as weights of the kernel at the landmarks."""

    ridge: Ridge
    landmarks_MD: Float64
    squared_width: float
    weights_M: Float64


def fit_ridge(map_NP: Float64, y_N: Float64) -> Ridge:
    """Fit a ridge regression, its penalty chosen by leave-one-out error.

    Args:
        map_NP: [N, P] coordinates.
        y_N: [N] values.
    """
    # Centre and decompose: squared singular values [R] and right singular vectors [P, R]
    centre_P, mean = map_NP.mean(axis=0), float(y_N.mean())
    centred_N = y_N - mean
    eigenvalues_R, right_PR = _right_singular(map_NP, centre_P)
    # Each component's moment: [R]; shrinkage of each component under each penalty: [R, A]
    scaled_PR = right_PR / np.sqrt(eigenvalues_R)
    moment_R = scaled_PR.T @ (map_NP.T @ centred_N - centre_P * centred_N.sum())
    penalties_A = np.array(PENALTIES) * eigenvalues_R.sum() / max(len(eigenvalues_R), 1)
    shrink_RA = eigenvalues_R[:, None] / (eigenvalues_R[:, None] + penalties_A)
    # Residuals, then leave-one-out residuals = residual / (1 - leverage), from left singular vectors [rows, R]: [N, A]
    residual_NA = np.empty((len(y_N), len(penalties_A)))
    for rows in _blocks(len(y_N)):
        left_NR = (map_NP[rows] - centre_P) @ scaled_PR
        residual_NA[rows] = centred_N[rows, None] - left_NR @ (shrink_RA * moment_R[:, None])
        leverage_NA = np.square(left_NR, out=left_NR) @ shrink_RA + 1 / len(y_N)
        residual_NA[rows] /= np.maximum(1 - leverage_NA, LEAST_FREEDOM)
    # Best penalty, and the weights under it: [P]
    best = int(np.argmin(np.mean(residual_NA**2, axis=0)))
    weights_P = right_PR @ (np.sqrt(eigenvalues_R) * moment_R / (eigenvalues_R + penalties_A[best]))
    return Ridge(weights_P, mean - float(centre_P @ weights_P), y_N - residual_NA[:, best])


def _right_singular(map_NP: Float64, centre_P: Float64) -> tuple[Float64, Float64]:
    """Compute squared singular values above rounding, [R], and right singular vectors, [P, R], of the centred map.

    The smaller of the two Gram matrices is decomposed: [N, N] or [P, P].
    """
    n_rows, n_columns = map_NP.shape
    if n_rows <= n_columns:
        z_NP = map_NP - centre_P
        gram = z_NP @ z_NP.T
    else:
        gram = np.zeros((n_columns, n_columns))
        for rows in _blocks(n_rows):
            z_NP = map_NP[rows] - centre_P
            gram += z_NP.T @ z_NP
    eigenvalues, vectors = linalg.eigh(gram, check_finite=False)
    kept = eigenvalues > RANK_TOLERANCE * max(float(eigenvalues[-1]), np.finfo(np.float64).tiny)
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    return eigenvalues, z_NP.T @ vectors / np.sqrt(eigenvalues) if n_rows <= n_columns else vectors


def _blocks(n_rows: int) -> Iterator[slice]:
    """Cut rows into blocks, so that of a copy of the map one block is held at a time."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, n_rows, BLOCK_ROWS))


def fit_kernel(x_ND: Float64, y_N: Float64, landmarks_MD: Float64) -> KernelRidge:
    """Fit a kernel ridge regression on Nyström features, width and penalty chosen by leave-one-out error.

    Args:
        x_ND: [N, D] standardised features.
        y_N: [N] values.
        landmarks_MD: [M, D] features of the documents at which the kernel is evaluated.
    """
    typical = float(np.median(pdist(landmarks_MD, "sqeuclidean"))) or 1.0  # equal landmarks: any width will do
    fits = [_fit_kernel_of_width(x_ND, y_N, landmarks_MD, width * typical) for width in WIDTHS]
    return min(fits, key=lambda fit: squared_error(y_N, fit.ridge.leave_one_out_N))


def _fit_kernel_of_width(x_ND: Float64, y_N: Float64, landmarks_MD: Float64, squared_width: float) -> KernelRidge:
    # Whiten by the kernel among landmarks, K = U Λ U^T: z(x) = k(x) U Λ^-1/2 has z(x)·z(y) = k(x)^T K^-1 k(y): [M, P]
    eigenvalues, vectors = linalg.eigh(gaussian_kernel(landmarks_MD, landmarks_MD, squared_width), check_finite=False)
    kept = eigenvalues > RANK_TOLERANCE * eigenvalues[-1]
    whitening_MP = vectors[:, kept] / np.sqrt(eigenvalues[kept])
    # Ridge regression on the Nyström features: [N, P]
    map_NP = np.empty((len(x_ND), whitening_MP.shape[1]))
    for rows in _blocks(len(x_ND)):
        map_NP[rows] = gaussian_kernel(x_ND[rows], landmarks_MD, squared_width) @ whitening_MP
    ridge = fit_ridge(map_NP, y_N)
    return KernelRidge(ridge, landmarks_MD, squared_width, whitening_MP @ ridge.weights_P)


def gaussian_kernel(x_ND: Float64, landmarks_MD: Float64, squared_width: float) -> Float64:
    """Compute a Gaussian kernel matrix, ``exp(-|x - y|² / squared_width)``, [N, M].

    Squared distances come from one matrix product, |x|² + |y|² - 2xy: ten times faster, at a rounding error of 1e-12 of
    |x|².
    """
    squares_N, squares_M = (np.einsum("ij,ij->i", z, z) for z in (x_ND, landmarks_MD))
    distance_NM: Float64 = squares_N[:, None] + squares_M - 2 * (x_ND @ landmarks_MD.T)
    np.maximum(distance_NM, 0.0, out=distance_NM)
    distance_NM /= -squared_width
    return np.exp(distance_NM, out=distance_NM)


def squared_error(y_N: Float64, predicted_N: Float64) -> float:
    """Compute the mean squared error."""
    return float(np.mean((y_N - predicted_N) ** 2))
