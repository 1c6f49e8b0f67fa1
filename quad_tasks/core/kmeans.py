"""Clusters of documents: k-means centroids, exact assignment, per-arm moments.

Owns training on a sample (Lloyd's algorithm by faiss), flat or in two levels for many clusters, and sums that merge
over shards. Refuses approximate search: a document's arm is its nearest centroid. Threads are the caller's affair
(`faiss.omp_set_num_threads`); the same sample, seed and library versions give the same centroids.

Shapes: N documents, D embedding, K arms (clusters), A arms that have documents.
"""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

BLOCK_DOCUMENTS = 2**16  # rows compared with all centroids at once

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Moments:
    """Sums over the documents of the arms that are present; they add over shards.

    Attributes:
        arm_A: int64, the arms present, ascending.
        count_A: int64, documents.
        sum_AD: float64, sum of embeddings.
        sum_squares_AD: float64, sum of squared coordinates.
    """

    arm_A: npt.NDArray[np.int64]
    count_A: npt.NDArray[np.int64]
    sum_AD: npt.NDArray[np.float64]
    sum_squares_AD: npt.NDArray[np.float64]


def train_centroids(
    sample_ND: FloatArray, k: int, seed: int, iterations: int = 20, spherical: bool = False
) -> FloatArray:
    """Train k-means centroids on all of a sample.

    A cluster that ends up empty is moved to the document farthest from its centroid. With fewer distinct documents
    than `k`, some centroids coincide and their arms stay empty.

    Args:
        sample_ND: embeddings, float32.
        k: clusters, at most N.
        seed: of the initial centroids.
        iterations: of Lloyd's algorithm.
        spherical: scale centroids to norm 1 after every iteration (Dhillon and Modha 2001).

    Returns:
        [K, D] float32.

    Raises:
        ValueError: `k` exceeds the sample.
    """
    _check_clusters(k, len(sample_ND))
    trainer = faiss.Kmeans(
        sample_ND.shape[1],
        k,
        niter=iterations,
        seed=seed,
        spherical=spherical,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample_ND),
    )
    trainer.train(np.ascontiguousarray(sample_ND, np.float32))
    return _fill_empty(np.asarray(trainer.centroids, np.float32), sample_ND)


def train_hierarchical(sample_ND: FloatArray, k: int, seed: int, iterations: int = 20) -> FloatArray:
    """Train `k` centroids in two levels: about sqrt(k) clusters, each cut into a share of `k` by its size.

    Costs N sqrt(k) distances per iteration and level instead of N k.

    Args:
        sample_ND: embeddings, float32.
        k: clusters, at most N.
        seed: of the initial centroids.
        iterations: of Lloyd's algorithm, on each level.

    Returns:
        [K, D] float32, the parts of one upper cluster side by side.

    Raises:
        ValueError: `k` exceeds the sample.
    """
    _check_clusters(k, len(sample_ND))
    upper_KD = train_centroids(sample_ND, round(k**0.5), seed, iterations)
    upper_N, _ = assign_arms(sample_ND, upper_KD)
    size_K = np.bincount(upper_N, minlength=len(upper_KD))
    parts_K = _apportion(size_K, k)
    return np.concatenate(
        [train_centroids(sample_ND[upper_N == i], int(parts_K[i]), seed, iterations) for i in np.flatnonzero(parts_K)]
    )


def assign_arms(embeddings_ND: FloatArray, centroids_KD: FloatArray) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Find each document's nearest centroid, exactly.

    Returns:
        The arm [N] int32 and the squared Euclidean distance to its centroid [N] float32.
    """
    arm_N = np.empty(len(embeddings_ND), np.int32)
    distance_N = np.empty(len(embeddings_ND), np.float32)
    for start in range(0, len(embeddings_ND), BLOCK_DOCUMENTS):
        block = slice(start, start + BLOCK_DOCUMENTS)
        rows_ND = np.ascontiguousarray(embeddings_ND[block], np.float32)
        arm_N[block] = faiss.knn(rows_ND, centroids_KD, 1)[1][:, 0]
        # faiss computes |x|^2 - 2xc + |c|^2, which cancels near a centroid
        distance_N[block] = np.square(rows_ND - centroids_KD[arm_N[block]]).sum(axis=1)
    return arm_N, distance_N


def arm_moments(embeddings_ND: FloatArray, arm_N: npt.NDArray[np.int32]) -> Moments:
    """Sum embeddings and their squares by arm, in float64."""
    wide_ND = embeddings_ND.astype(np.float64)
    return _group(arm_N, np.ones(len(arm_N), np.int64), wide_ND, np.square(wide_ND))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Add the moments of two disjoint sets of documents."""
    return _group(
        np.concatenate([a.arm_A, b.arm_A]),
        np.concatenate([a.count_A, b.count_A]),
        np.concatenate([a.sum_AD, b.sum_AD]),
        np.concatenate([a.sum_squares_AD, b.sum_squares_AD]),
    )


def arm_gaussians(
    moments: Moments, centroids_KD: FloatArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Turn moments into each arm's mean and variance per coordinate.

    Args:
        moments: of all the pool's documents.
        centroids_KD: trained centroids; an arm without documents keeps its own, with variance 0.

    Returns:
        Mean [K, D] and population variance [K, D], float64.
    """
    mean_KD = centroids_KD.astype(np.float64)
    variance_KD = np.zeros_like(mean_KD)
    count_A1 = moments.count_A[:, None]
    mean_KD[moments.arm_A] = moments.sum_AD / count_A1
    variance_AD = moments.sum_squares_AD / count_A1 - np.square(mean_KD[moments.arm_A])
    variance_KD[moments.arm_A] = np.maximum(variance_AD, 0)
    return mean_KD, variance_KD


def arm_radii(
    squared_distance_N: FloatArray, arm_N: npt.NDArray[np.int32], k: int, quantile: float = 0.9
) -> FloatArray:
    """Return the distance within which a share `quantile` of each arm's documents lies, [K]; 0 for an empty arm."""
    order = np.lexsort((squared_distance_N, arm_N))
    count_K = np.bincount(arm_N, minlength=k)
    first_K = np.cumsum(count_K) - count_K
    rank_K = np.ceil(quantile * count_K).astype(np.int64).clip(1, None) - 1
    radius_K = np.zeros(k, np.float32)
    some_K = count_K > 0
    radius_K[some_K] = np.sqrt(squared_distance_N[order[(first_K + rank_K)[some_K]]])
    return radius_K


def _group(
    arm_N: npt.NDArray[np.integer],
    count_N: npt.NDArray[np.int64],
    sum_ND: npt.NDArray[np.float64],
    sum_squares_ND: npt.NDArray[np.float64],
) -> Moments:
    """Add rows of the same arm."""
    arm_A, group_N = np.unique(arm_N.astype(np.int64), return_inverse=True)
    n = len(arm_N)
    member_AN = csr_matrix((np.ones(n, np.int64), (group_N, np.arange(n))), shape=(len(arm_A), n))
    return Moments(arm_A, member_AN @ count_N, member_AN @ sum_ND, member_AN @ sum_squares_ND)


def _fill_empty(centroids_KD: FloatArray, sample_ND: FloatArray) -> FloatArray:
    """Move centroids that no document is nearest to onto the documents farthest from theirs."""
    arm_N, distance_N = assign_arms(sample_ND, centroids_KD)
    empty = np.flatnonzero(np.bincount(arm_N, minlength=len(centroids_KD)) == 0)
    farthest = np.argsort(-distance_N, kind="stable")[: len(empty)]
    filled_KD = centroids_KD.copy()
    filled_KD[empty] = sample_ND[farthest]
    return filled_KD


def _apportion(size_K: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Split `total` in proportion to sizes (largest remainders); no part exceeds its size while `total` fits."""
    quota_K, remainder_K = np.divmod(total * size_K, size_K.sum())
    quota_K[np.argsort(-remainder_K, kind="stable")[: total - quota_K.sum()]] += 1
    return np.asarray(quota_K, np.int64)


def _check_clusters(k: int, n_documents: int) -> None:
    if not 1 <= k <= n_documents:
        raise ValueError(f"k: expected 1 to {n_documents} clusters, one per sampled document at most, found {k}")
