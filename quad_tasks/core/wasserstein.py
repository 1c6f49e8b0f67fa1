"""Which arms are near in distribution, and how much of one arm's reward another hears (method: "Reward propagation").

An arm's embeddings are summarised by a diagonal Gaussian. The 2-Wasserstein distance of two Gaussians is
``|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`` (Dowson and Landau 1982; Peyré and Cuturi 2019, remark 2.31); where
both covariances are diagonal it is the Euclidean distance between the vectors ``[mean, standard deviation]``. So the
neighbours within a bandwidth are an exact range search among K points of 2D coordinates, and the dense K x K matrix
is never formed. The search looks along the leading principal axes only, where no distance is longer than the whole one,
and measures what it finds in full. An approximate index was decided against: exact search over 100,000 arms takes
minutes, once.

Shape suffixes: K arms, D embedding, E = 2D coordinates, R leading axes, M pairs.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]

SEARCH_BLOCK = 256
"""Arms searched at once; it bounds what a search holds beside its results."""
SEARCH_MARGIN = 1e-5
"""Of the largest squared norm: by how much the search looks further than the bandwidth, for it takes squared distances
as ``|x|^2 + |y|^2 - 2 x.y`` in single precision. What it finds is measured again as ``|x - y|``."""
SEARCH_VARIANCE = 0.9
"""Share of the arms' variance along the axes searched: fewer axes search faster but find more pairs to measure."""
PAIR_BLOCK = 2**16
"""Pairs measured at once."""
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
    coordinates_KE = _search_coordinates(centroids_KD, variances_KD)
    leading_KR = _leading_axes(coordinates_KE)
    index = _index(leading_KR)
    margin = SEARCH_MARGIN * float(np.max(np.einsum("kr,kr->k", leading_KR, leading_KR)))
    rows = [
        _block_neighbours(index, leading_KR, coordinates_KE, start, bandwidth, margin)
        for start in range(0, len(coordinates_KE), SEARCH_BLOCK)
    ]
    counts = np.concatenate([count for count, _, _ in rows])
    return Neighbours(
        indptr=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        indices=np.concatenate([column for _, column, _ in rows]),
        weights=np.concatenate([weight for _, _, weight in rows]),
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
    coordinates_KE = _search_coordinates(centroids_KD, variances_KD)
    n_arms = len(coordinates_KE)
    if n_arms < 2:
        raise ValueError(f"arms: expected at least 2 to have neighbours, got {n_arms}")
    sample = generator.choice(n_arms, size=min(n_arms, BANDWIDTH_SAMPLE), replace=False)
    rank = min(neighbours + 1, n_arms - 1)  # the nearest found is the arm itself
    squared, _ = _index(coordinates_KE).search(coordinates_KE[sample], rank + 1)
    return float(np.median(np.sqrt(np.maximum(squared[:, rank], 0))))


def _coordinates(means: Floats, variances: Floats) -> Float64:
    return np.concatenate((np.asarray(means, np.float64), np.sqrt(np.asarray(variances, np.float64))), axis=-1)


def _search_coordinates(centroids_KD: Floats, variances_KD: Floats) -> Float32:
    """Coordinates of all arms, centred and turned to their principal axes, which keeps every distance."""
    if centroids_KD.shape != variances_KD.shape:
        raise ValueError(f"variances: expected shape {centroids_KD.shape}, got {variances_KD.shape}")
    coordinates_KE = np.concatenate((centroids_KD, np.sqrt(variances_KD)), axis=1, dtype=np.float32)
    coordinates_KE -= coordinates_KE.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, axes_EE = np.linalg.eigh((coordinates_KE.T @ coordinates_KE).astype(np.float64))
    return coordinates_KE @ np.ascontiguousarray(axes_EE[:, ::-1]).astype(np.float32)


def _leading_axes(coordinates_KE: Float32) -> Float32:
    """The first axes, as many as hold `SEARCH_VARIANCE` of the variance: distances along them are lower bounds."""
    variance_E = np.einsum("ke,ke->e", coordinates_KE, coordinates_KE, dtype=np.float64)
    share_E = np.cumsum(variance_E) / max(variance_E.sum(), np.finfo(np.float64).tiny)
    count = int(np.searchsorted(share_E, SEARCH_VARIANCE)) + 1
    return np.ascontiguousarray(coordinates_KE[:, :count])


def _index(coordinates_KR: Float32) -> Any:
    index = faiss.IndexFlatL2(coordinates_KR.shape[1])
    index.add(coordinates_KR)
    return index


def _block_neighbours(
    index: Any, leading_KR: Float32, coordinates_KE: Float32, start: int, bandwidth: float, margin: float
) -> tuple[Int64, npt.NDArray[np.int32], Float32]:
    """Neighbours of the block of arms from `start` on: how many each has, which, and their weights."""
    stop = min(start + SEARCH_BLOCK, len(leading_KR))
    limits, _, column = index.range_search(leading_KR[start:stop], bandwidth**2 + margin)
    row = np.repeat(np.arange(start, stop), np.diff(limits).astype(np.int64))
    distance = np.concatenate(
        [
            np.linalg.norm(coordinates_KE[row[m : m + PAIR_BLOCK]] - coordinates_KE[column[m : m + PAIR_BLOCK]], axis=1)
            for m in range(0, len(row), PAIR_BLOCK)
        ]
    )
    kept = np.flatnonzero((distance < bandwidth) & (column != row))
    kept = kept[np.lexsort((column[kept], row[kept]))]
    weight = (1 - distance[kept] / bandwidth).astype(np.float32)
    return np.bincount(row[kept] - start, minlength=stop - start), column[kept].astype(np.int32), weight
