"""Find neighbouring arms by the Wasserstein distance of their embeddings.

Each arm's embeddings are summarised by a diagonal Gaussian. The squared 2-Wasserstein distance of two Gaussians is
``|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`` (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31); for
diagonal covariances the distance is Euclidean between the vectors ``[mean, standard deviation]``. So the neighbours
within a bandwidth come from an exact range search among K points with 2D coordinates, and the dense K x K matrix is
never formed. An approximate index was rejected: exact search over 100,000 arms takes two minutes, once.

Shape suffixes: K arms, D embedding, E = 2D coordinates, M pairs of neighbours, B arms of a block, P pulled arms.
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
"""Arms searched at once; only among later arms, since distances are symmetric."""
BANDWIDTH_SAMPLE = 1000
"""Arms sampled to choose a bandwidth from their distances to all others."""
WANTED_NEIGHBOURS = 10
"""Neighbours of the median arm under the default bandwidth: the geometric middle of the method's 5 to 20."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Each arm's neighbours within the bandwidth, the arm itself excluded, in compressed sparse rows.

    Attributes:
        indptr: [K+1] int64; the neighbours of arm i are at ``indptr[i]:indptr[i + 1]``.
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
    """Find all pairs of arms nearer than the bandwidth, with their weights; exact and symmetric.

    Args:
        centroids_KD: [K, D] mean embedding of each arm.
        variances_KD: [K, D] variances of its embeddings, >= 0.
        bandwidth: h > 0, the distance at which the weight reaches 0.

    Returns:
        The neighbour lists. The weight of an arm on itself is 1 and is not listed.

    Raises:
        ValueError: the shapes differ, or the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: expected a positive distance, got {bandwidth}")
    # Means and standard deviations side by side: [K, 2D]
    coordinates_KE = _centred_coordinates(centroids_KD, variances_KD)
    n_arms = len(coordinates_KE)
    # Range search, block by block: pairs (row < column) and their distances, [M] each
    blocks = [_neighbours_after(coordinates_KE, start, bandwidth) for start in range(0, n_arms, SEARCH_BLOCK)]
    row_M, column_M, distance_M = (np.concatenate(part) for part in zip(*blocks, strict=True))
    # Both directions as a sparse matrix of weights, in compressed rows: [K, K]
    pairs = np.concatenate((row_M, column_M)), np.concatenate((column_M, row_M))
    weights_KK = coo_array((np.tile(1 - distance_M / bandwidth, 2), pairs), shape=(n_arms, n_arms)).tocsr()
    return Neighbours(
        indptr=weights_KK.indptr.astype(np.int64),
        indices=weights_KK.indices.astype(np.int32),
        weights=weights_KK.data.astype(np.float32),
    )


def no_neighbours(n_arms: int) -> Neighbours:
    """Return the neighbour lists of arms none of which has a neighbour."""
    return Neighbours(np.zeros(n_arms + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))


def neighbour_pairs(
    arm_P: npt.NDArray[np.int64], neighbours: Neighbours
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """List the neighbours of each of some arms, one after the other.

    Args:
        arm_P: [P] arm numbers, repeated or not.
        neighbours: of all arms.

    Returns:
        Of each pair the arm's position in `arm_P`, the neighbour's number, and its weight, [M] each.
    """
    start_P, stop_P = neighbours.indptr[arm_P], neighbours.indptr[arm_P + 1]
    length_P = stop_P - start_P
    # The arm of every pair, and the pair's position in the neighbour lists: [M], [M]
    pair_M = np.repeat(np.arange(len(arm_P)), length_P)
    first_P = np.cumsum(length_P) - length_P
    position_M = np.arange(len(pair_M)) - first_P[pair_M] + start_P[pair_M]
    neighbour_M = neighbours.indices[position_M].astype(np.int64)
    return pair_M, neighbour_M, neighbours.weights[position_M].astype(np.float64)


def choose_bandwidth(
    centroids_KD: Floats,
    variances_KD: Floats,
    generator: np.random.Generator,
    neighbours: int = WANTED_NEIGHBOURS,
) -> float:
    """Choose the bandwidth so that the median arm has the wanted number of neighbours.

    Args:
        centroids_KD: [K, D] mean embedding of each arm, K >= 2.
        variances_KD: [K, D] variances of its embeddings, >= 0.
        generator: draws the sample of arms.
        neighbours: neighbours wanted for the median arm; at most K - 1.

    Returns:
        The median, over the sample, of the distance to the neighbour that follows the wanted ones.

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
    """Compute the coordinates of all arms, centred: near the origin rounding changes a distance least, [K, E]."""
    if centroids_KD.shape != variances_KD.shape:
        raise ValueError(f"variances: expected shape {centroids_KD.shape}, got {variances_KD.shape}")
    coordinates_KE = np.concatenate((centroids_KD, np.sqrt(variances_KD)), axis=1, dtype=np.float32)
    coordinates_KE -= coordinates_KE.mean(axis=0, dtype=np.float64).astype(np.float32)
    return coordinates_KE


def _neighbours_after(
    coordinates_KE: Float32, start: int, bandwidth: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """Find the pairs within the bandwidth of an arm of the block at `start` and a later arm: [M] both, [M] distance."""
    search = NearestNeighbors(radius=bandwidth, algorithm="brute").fit(coordinates_KE[start:])
    block_BE = coordinates_KE[start : start + SEARCH_BLOCK]
    near = search.radius_neighbors_graph(block_BE, mode="distance").tocoo()
    kept = (near.col > near.row) & (near.data < bandwidth)
    return near.row[kept] + np.int64(start), near.col[kept] + np.int64(start), near.data[kept]
