"""Every algorithm puts every document into an arm; the agglomeration is Ward's."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from quad_tasks.experiments.lab.clusterings import ALGORITHMS, cluster


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((6, 5))
    drawn = np.repeat(centres, 10, axis=0) + 0.05 * generator.standard_normal((60, 5))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_arms_are_numbered_from_zero_and_hold_what_is_alike(vectors, algorithm):
    tried = [cluster(vectors, 6, algorithm, seed) for seed in range(5)]  # k-means may end in a local optimum
    for arm in tried:
        assert arm.dtype == np.int32
        assert set(arm) == set(range(arm.max() + 1))
    whole = [all(len(set(arm[group * 10 : group * 10 + 10])) == 1 for group in range(6)) for arm in tried]
    assert any(whole)
    np.testing.assert_array_equal(tried[3], cluster(vectors, 6, algorithm, 3))


def test_where_every_document_is_a_small_cluster_the_agglomeration_is_wards(vectors):
    arm = cluster(vectors, 15, "hierarchical", 0)  # 4 x 15 small clusters: one a document
    expected = fcluster(linkage(vectors.astype(np.float64), "ward"), 15, "maxclust")
    assert (arm[:, None] == arm).tolist() == (expected[:, None] == expected).tolist()
