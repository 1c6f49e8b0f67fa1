"""Cluster a testbed's documents into arms by several algorithms, for experiments that compare them.

`kmeans` and `spherical` are a run's own (`core.clustering.kmeans`); `hierarchical` is Ward's agglomeration (Ward 1963)
of the centroids of many small k-means clusters, since the agglomeration of N documents would need N^2 distances.

Shape suffixes: N documents, D embedding, K arms, M small clusters.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import AgglomerativeClustering

from quad_tasks.core.clustering.kmeans import assign_arms, train_centroids

Algorithm = Literal["kmeans", "spherical", "hierarchical"]
ALGORITHMS: tuple[Algorithm, ...] = ("kmeans", "spherical", "hierarchical")

SMALL_PER_ARM = 4
"""Small clusters that an arm is merged from, on average."""


def cluster(
    embedding_ND: npt.NDArray[np.float32], n_arms: int, algorithm: Algorithm, seed: int
) -> npt.NDArray[np.int32]:
    """Cluster documents; return the arm of each, [N], numbered from 0, no arm empty.

    Args:
        embedding_ND: [N, D] unit vectors.
        n_arms: K, at most N.
        algorithm: one of `ALGORITHMS`.
        seed: draws the initial centroids.
    """
    if algorithm == "hierarchical":
        n_small = min(SMALL_PER_ARM * n_arms, len(embedding_ND))
        small_N = _from_zero(assign_arms(embedding_ND, train_centroids(embedding_ND, n_small, seed))[0])
        sums_MD = np.zeros((int(small_N.max()) + 1, embedding_ND.shape[1]))
        np.add.at(sums_MD, small_N, embedding_ND)
        means_MD = sums_MD / np.bincount(small_N)[:, None]
        if len(means_MD) <= n_arms:
            return small_N
        merged_M = AgglomerativeClustering(n_arms, linkage="ward").fit_predict(means_MD)
        return _from_zero(merged_M[small_N])
    centroids_KD = train_centroids(embedding_ND, n_arms, seed, spherical=algorithm == "spherical")
    return _from_zero(assign_arms(embedding_ND, centroids_KD)[0])


def _from_zero(arm_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Number the arms that have documents from 0."""
    numbered: npt.NDArray[np.int32] = np.unique(arm_N, return_inverse=True)[1].astype(np.int32)
    return numbered
