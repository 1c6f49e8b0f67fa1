"""Which arms are near in distribution, and how much of one arm's reward another hears (method: "Reward propagation").

An arm's embeddings are summarised by a diagonal Gaussian. The 2-Wasserstein distance of two Gaussians is
``|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`` (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31); where
both covariances are diagonal it is the Euclidean distance between the vectors ``[mean, standard deviation]``. So the
neighbours within a bandwidth are an exact range search among K points of 2D coordinates, and the dense K x K matrix
is never formed. An approximate index was decided against: exact search over 100,000 arms takes two minutes, once.

Shape suffixes: K arms, D embedding, E = 2D coordinates, M pairs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from sklearn.neighbors import NearestNeighbors

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

SEARCH_BLOCK = 4096
"""Arms searched at once, among those that come after them: a distance is the same both ways."""
BANDWIDTH_SAMPLE = 1000
"""Arms whose distances to all others are looked at to choose a bandwidth."""
WANTED_NEIGHBOURS = 10
"""Neighbours of the median arm under the default bandwidth: the geometric middle of the method's 5 to 20."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Each arm's neighbours within the bandwidth, itself left out, in compressed rows.

    Attributes:
        indptr: [K+1] int64; arm i's neighbours stand at ``indptr[i]:indptr[i + 1]``.
        indices: [M] int32, neighbours' arm numbers, ascending within a row.
        weights: [M] float32, ``w_ij = 1 - d_ij / h`` in (0, 1].
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


def gaussian_distance(mean_D: Floats, variance_D: Floats, other_mean_D: Floats, other_variance_D: Floats) -> float:
    """Compute the 2-Wasserstein distance of two diagonal Gaussians.

    Args:
        mean_D: [D] mean of the one.
        variance_D: [D] its variances, >= 0.
        other_mean_D: [D] mean of the other.
        other_variance_D: [D] its variances, >= 0.

    Returns:
        The distance (not its square), in the embedding's unit.
    """
    difference_E = _coordinates(mean_D, variance_D) - _coordinates(other_mean_D, other_variance_D)
    return float(np.sqrt(np.sum(difference_E**2)))


def neighbour_lists(centroids_KD: Floats, variances_KD: Floats, bandwidth: float) -> Neighbours:
    """List every pair of arms nearer than the bandwidth, with its weight; exact, and symmetric.

    Args:
        centroids_KD: [K, D] mean embedding of each arm.
        variances_KD: [K, D] variances of its embeddings, >= 0.
        bandwidth: h > 0, the distance at which the weight reaches 0.

    Returns:
        The neighbour lists. An arm's weight on itself is 1 and is not listed.

    Raises:
        ValueError: the shapes differ, or the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: expected a positive distance, got {bandwidth}")
    coordinates_KE = _centred_coordinates(centroids_KD, variances_KD)
    n_arms = len(coordinates_KE)
    blocks = [_later_neighbours(coordinates_KE, start, bandwidth) for start in range(0, n_arms, SEARCH_BLOCK)]
    row_M, column_M, distance_M = (np.concatenate(part) for part in zip(*blocks, strict=True))
    pairs = np.concatenate((row_M, column_M)), np.concatenate((column_M, row_M))
    weights_KK = coo_array((np.tile(1 - distance_M / bandwidth, 2), pairs), shape=(n_arms, n_arms)).tocsr()
    return Neighbours(
        indptr=weights_KK.indptr.astype(np.int64),
        indices=weights_KK.indices.astype(np.int32),
        weights=weights_KK.data.astype(np.float32),
    )


def choose_bandwidth(
    centroids_KD: Floats,
    variances_KD: Floats,
    generator: np.random.Generator,
    neighbours: int = WANTED_NEIGHBOURS,
) -> float:
    """Choose the bandwidth under which the median arm has the wanted number of neighbours.

    Args:
        centroids_KD: [K, D] mean embedding of each arm, K >= 2.
        variances_KD: [K, D] variances of its embeddings, >= 0.
        generator: draws the sample of arms that is looked at.
        neighbours: wanted for the median arm; at most K - 1 are taken.

    Returns:
        The median, over a sample of arms, of the distance to the neighbour just past the wanted ones.

    Raises:
        ValueError: fewer than two arms, or the shapes differ.
    """
    coordinates_KE = _centred_coordinates(centroids_KD, variances_KD)
    n_arms = len(coordinates_KE)
    if n_arms < 2:
        raise ValueError(f"arms: expected at least 2 to have neighbours, got {n_arms}")
    sample = generator.choice(n_arms, size=min(n_arms, BANDWIDTH_SAMPLE), replace=False)
    rank = min(neighbours + 1, n_arms - 1)  # the nearest found is the arm itself
    search = NearestNeighbors(n_neighbors=rank + 1, algorithm="brute").fit(coordinates_KE)
    distance, _ = search.kneighbors(coordinates_KE[sample])
    return float(np.median(distance[:, rank]))


def _coordinates(means: Floats, variances: Floats) -> Float64:
    return np.concatenate((np.asarray(means, np.float64), np.sqrt(np.asarray(variances, np.float64))), axis=-1)


def _centred_coordinates(centroids_KD: Floats, variances_KD: Floats) -> Float32:
    """Coordinates of all arms about their mean: near the origin, rounding changes a distance least."""
    if centroids_KD.shape != variances_KD.shape:
        raise ValueError(f"variances: expected shape {centroids_KD.shape}, got {variances_KD.shape}")
    coordinates_KE = np.concatenate((centroids_KD, np.sqrt(variances_KD)), axis=1, dtype=np.float32)
    coordinates_KE -= coordinates_KE.mean(axis=0, dtype=np.float64).astype(np.float32)
    return coordinates_KE


def _later_neighbours(
    coordinates_KE: Float32, start: int, bandwidth: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """Pairs within the bandwidth of an arm of the block from `start` on and one after it: the two, their distance."""
    search = NearestNeighbors(radius=bandwidth, algorithm="brute").fit(coordinates_KE[start:])
    block_BE = coordinates_KE[start : start + SEARCH_BLOCK]
    near = search.radius_neighbors_graph(block_BE, mode="distance").tocoo()
    kept = (near.col > near.row) & (near.data < bandwidth)
    return near.row[kept] + np.int64(start), near.col[kept] + np.int64(start), near.data[kept]
