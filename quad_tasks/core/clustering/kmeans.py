"""Cluster documents by k-means: train centroids, assign documents to arms, sum moments by arm.

Owns training on a sample (Lloyd's algorithm by faiss), assignment, and moments that can be merged over shards. Up to
`EXACT_ARMS` a document's arm is its nearest centroid. Above, where comparing with every centroid would take hours,
centroids are trained in two levels, and a document is compared with those of the `PROBED_LISTS` lists nearest to it
(`tests/benchmarks/bench_clustering.py`: 99 in 100 come to their nearest). The caller sets the number of threads
(`faiss.omp_set_num_threads`). The same sample, seed and library versions give the same centroids.

Shape suffixes: N documents, D embedding, K arms (clusters), A arms that have documents.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quad_tasks.core.group_sums import group_sums

if TYPE_CHECKING:
    import faiss

BLOCK_DOCUMENTS = 2**16  # rows compared with centroids at once
EXACT_ARMS = 2**15
PROBED_LISTS = 16
LIST_ITERATIONS = 10

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Moments:
    """Sums over the documents of each arm; the sums of several shards can be added.

    Attributes:
        arm_A: int64, the arms that have documents, ascending.
        count_A: int64, documents of each.
        sum_AD: float64, sum of their embeddings.
        sum_squares_AD: float64, sum of their squared embeddings, coordinate by coordinate.
    """

    arm_A: npt.NDArray[np.int64]
    count_A: npt.NDArray[np.int64]
    sum_AD: npt.NDArray[np.float64]
    sum_squares_AD: npt.NDArray[np.float64]


def train_centroids(
    sample_ND: FloatArray, k: int, seed: int, iterations: int = 20, spherical: bool = False
) -> FloatArray:
    """Train k-means centroids on a sample of embeddings.

    More than `EXACT_ARMS` are trained in two levels: the sample is cut into √k clusters, and each of them into its
    share of the k, by its documents (as `two_level_clustering` of faiss's contributions). The centroid of an empty
    cluster moves to the document farthest from its own centroid. With fewer distinct documents than `k`, some
    centroids coincide and their arms stay empty.

    Args:
        sample_ND: [N, D] float32 embeddings; all are used.
        k: number of clusters, 1 to N.
        seed: seed of the initial centroids.
        iterations: iterations of Lloyd's algorithm.
        spherical: scale centroids to norm 1 after every iteration (Dhillon and Modha 2001).

    Returns:
        [K, D] float32.

    Raises:
        ValueError: `k` is below 1 or exceeds the sample.
    """
    _check_clusters(k, len(sample_ND))
    if k <= EXACT_ARMS:
        return _fill_empty(_run_lloyd(sample_ND, k, seed, iterations, spherical), sample_ND)
    n_coarse = round(k**0.5)
    coarse_N, _ = assign_arms(sample_ND, _run_lloyd(sample_ND, n_coarse, seed, iterations, spherical))
    count_C = np.bincount(coarse_N, minlength=n_coarse)
    share_C = np.diff(np.cumsum(count_C) * k // len(sample_ND), prepend=0)
    fine = [
        _run_lloyd(sample_ND[coarse_N == c], int(share), seed, iterations, spherical)
        for c, share in enumerate(share_C)
        if share
    ]
    return _fill_empty(np.concatenate(fine), sample_ND)


def _run_lloyd(sample_ND: FloatArray, k: int, seed: int, iterations: int, spherical: bool) -> FloatArray:
    """Run Lloyd's algorithm on every document of a sample (faiss would subsample 256 a cluster): [K, D]."""
    # Not at the head of the file: core must load where only torch and the scientific stack are installed
    import faiss

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
    return np.asarray(trainer.centroids, np.float32)


def index_centroids(centroids_KD: FloatArray) -> "faiss.Index":
    """Build what finds a document's nearest centroid: exact up to `EXACT_ARMS`, else by inverted lists.

    Args:
        centroids_KD: [K, D] float32 centroids. The same ones give the same index.
    """
    import faiss  # as in `_run_lloyd`

    k, dimension = centroids_KD.shape
    flat = faiss.IndexFlatL2(dimension)
    if k <= EXACT_ARMS:
        flat.add(centroids_KD)
        return flat
    heads = _run_lloyd(centroids_KD, round(k**0.5), 0, LIST_ITERATIONS, spherical=False)
    flat.add(heads)
    filled = np.unique(flat.search(centroids_KD, 1)[1])  # where many coincide; a probe of empty lists finds nothing
    flat.reset()
    flat.add(heads[filled])
    lists = faiss.IndexIVFFlat(flat, dimension, len(filled))
    lists.is_trained = True
    lists.add(centroids_KD)
    lists.nprobe = PROBED_LISTS
    return lists


def assign_arms(
    embeddings_ND: FloatArray, centroids_KD: FloatArray, index: "faiss.Index | None" = None
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Assign each document to its nearest centroid: exactly up to `EXACT_ARMS`, else as `index_centroids` finds it.

    Args:
        embeddings_ND: [N, D] float32 embeddings.
        centroids_KD: [K, D] float32 centroids.
        index: of the centroids (`index_centroids`); None: built here.

    Returns:
        [N] int32 the arm, and [N] float32 the squared Euclidean distance to its centroid.
    """
    index = index_centroids(centroids_KD) if index is None else index
    arm_N = np.empty(len(embeddings_ND), np.int32)
    distance_N = np.empty(len(embeddings_ND), np.float32)
    for start in range(0, len(embeddings_ND), BLOCK_DOCUMENTS):
        block = slice(start, start + BLOCK_DOCUMENTS)
        rows_ND = np.ascontiguousarray(embeddings_ND[block], np.float32)
        arm_N[block] = index.search(rows_ND, 1)[1][:, 0]
        # The distance anew: faiss computes |x|^2 - 2xc + |c|^2, which loses precision near a centroid
        distance_N[block] = np.square(rows_ND - centroids_KD[arm_N[block]]).sum(axis=1)
    return arm_N, distance_N


def arm_moments(embeddings_ND: FloatArray, arm_N: npt.NDArray[np.int32]) -> Moments:
    """Sum embeddings and their squares by arm, in float64.

    Args:
        embeddings_ND: [N, D] embeddings.
        arm_N: [N] arm of each.
    """
    wide_ND = embeddings_ND.astype(np.float64)
    return _sum_by_arm(arm_N, np.ones(len(arm_N), np.int64), wide_ND, np.square(wide_ND))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two disjoint sets of documents."""
    return _sum_by_arm(
        np.concatenate([a.arm_A, b.arm_A]),
        np.concatenate([a.count_A, b.count_A]),
        np.concatenate([a.sum_AD, b.sum_AD]),
        np.concatenate([a.sum_squares_AD, b.sum_squares_AD]),
    )


def arm_gaussians(
    moments: Moments, centroids_KD: FloatArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute each arm's mean and variance per coordinate from its moments (a diagonal Gaussian).

    Args:
        moments: moments of all documents of the pool.
        centroids_KD: [K, D] trained centroids; an arm without documents keeps its centroid as mean, with variance 0.

    Returns:
        [K, D] means and [K, D] population variances, float64.
    """
    mean_KD = centroids_KD.astype(np.float64)
    variance_KD = np.zeros_like(mean_KD)
    count_A1 = moments.count_A[:, None]
    mean_KD[moments.arm_A] = moments.sum_AD / count_A1
    # E[x²] - E[x]², at least 0 despite rounding: [A, D]
    variance_AD = moments.sum_squares_AD / count_A1 - np.square(mean_KD[moments.arm_A])
    variance_KD[moments.arm_A] = np.maximum(variance_AD, 0)
    return mean_KD, variance_KD


def arm_radii(
    squared_distance_N: FloatArray, arm_N: npt.NDArray[np.int32], k: int, quantile: float = 0.9
) -> FloatArray:
    """Compute each arm's radius: the distance from its centroid within which a share of its documents lies.

    Args:
        squared_distance_N: [N] float32 squared distances, from `assign_arms`.
        arm_N: [N] arm of each document.
        k: number of arms.
        quantile: the share, in (0, 1].

    Returns:
        [K] float32; 0 for an arm without documents.
    """
    # Sort by arm, then distance; find each arm's first position and the rank of its quantile: [N], [K], [K]
    order = np.lexsort((squared_distance_N, arm_N))
    count_K = np.bincount(arm_N, minlength=k)
    first_K = np.cumsum(count_K) - count_K
    rank_K = np.ceil(quantile * count_K).astype(np.int64).clip(1, None) - 1
    radius_K = np.zeros(k, np.float32)
    some_K = count_K > 0
    radius_K[some_K] = np.sqrt(squared_distance_N[order[(first_K + rank_K)[some_K]]])
    return radius_K


def _sum_by_arm(
    arm_N: npt.NDArray[np.integer],
    count_N: npt.NDArray[np.int64],
    sum_ND: npt.NDArray[np.float64],
    sum_squares_ND: npt.NDArray[np.float64],
) -> Moments:
    """Sum the rows of each arm."""
    # Number the arms that are present from 0 to A - 1, then sum their rows: [N, D] -> [A, D]
    arm_A, group_N = np.unique(arm_N.astype(np.int64), return_inverse=True)
    count_A, sum_AD, sum_squares_AD = (
        group_sums(value_N, group_N, len(arm_A)) for value_N in (count_N, sum_ND, sum_squares_ND)
    )
    return Moments(arm_A, count_A.astype(np.int64), sum_AD, sum_squares_AD)


def _fill_empty(centroids_KD: FloatArray, sample_ND: FloatArray) -> FloatArray:
    """Move the centroid of each empty cluster onto one of the documents farthest from their centroids."""
    arm_N, distance_N = assign_arms(sample_ND, centroids_KD)
    empty = np.flatnonzero(np.bincount(arm_N, minlength=len(centroids_KD)) == 0)
    farthest = np.argsort(-distance_N, kind="stable")[: len(empty)]
    filled_KD = centroids_KD.copy()
    filled_KD[empty] = sample_ND[farthest]
    return filled_KD


def _check_clusters(k: int, n_documents: int) -> None:
    if not 1 <= k <= n_documents:
        raise ValueError(f"k: expected 1 to {n_documents} clusters, one per sampled document at most, found {k}")
