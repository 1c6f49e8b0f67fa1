"""k-means against brute force in float64, planted clusters and sums worked by hand."""

import faiss
import numpy as np
import pytest

from quad_tasks.core.clustering import kmeans
from quad_tasks.core.clustering.kmeans import (
    arm_gaussians,
    arm_moments,
    arm_radii,
    assign_arms,
    merge_moments,
    train_centroids,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    faiss.omp_set_num_threads(1)


def planted(n_arms: int, per_arm: int, dimension: int = 8, spread: float = 0.02, seed: int = 0):
    """Unit vectors around well separated centres, shuffled, and the arm each came from."""
    generator = np.random.default_rng(seed)
    centres = np.linalg.qr(generator.standard_normal((max(n_arms, dimension), dimension)).T)[0].T
    centres = np.concatenate([centres, -centres])[:n_arms]
    truth = generator.permutation(np.repeat(np.arange(n_arms), per_arm))
    rows = centres[truth] + spread * generator.standard_normal((len(truth), dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), truth


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("spherical", [False, True])
def test_well_separated_clusters_are_recovered(spherical: bool) -> None:
    rows, truth = planted(4, 40)
    arm, _ = assign_arms(rows, train_centroids(rows, 4, seed=2, spherical=spherical))
    assert same_partition(arm, truth)


def test_the_same_seed_gives_the_same_centroids_and_another_seed_others() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    first, again, other = (train_centroids(rows, 12, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_trained_centroids_are_a_fixed_point_of_lloyds_step() -> None:
    rows, _ = planted(4, 30)
    centroids = train_centroids(rows, 4, seed=2)
    arm, _ = assign_arms(rows, centroids)
    means = np.stack([rows[arm == i].astype(np.float64).mean(axis=0) for i in range(4)])
    assert centroids == pytest.approx(means, abs=1e-6)


def test_every_sampled_document_is_trained_on() -> None:
    # faiss takes 256 a cluster unless told otherwise; the last documents here are a cluster of their own
    rows = np.zeros((2000, 4), np.float32)
    rows[:, 0], rows[-5:] = 1, (0, 1, 0, 0)
    rows += 1e-3 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    mean = train_centroids(rows, 1, seed=0)
    assert mean[0] == pytest.approx(rows.astype(np.float64).mean(axis=0), abs=1e-6)


def test_spherical_centroids_have_norm_one() -> None:
    rows, _ = planted(6, 20, spread=0.3)
    assert np.linalg.norm(train_centroids(rows, 5, seed=0, spherical=True), axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("k", [0, 11])
def test_more_clusters_than_documents_are_refused(k: int) -> None:
    rows, _ = planted(2, 5)
    with pytest.raises(ValueError, match=f"expected 1 to 10 clusters.*found {k}"):
        train_centroids(rows, k, seed=0)


def test_as_many_clusters_as_documents_leave_no_arm_empty() -> None:
    rows = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    arm, distance = assign_arms(rows, train_centroids(rows, 30, seed=0))
    assert sorted(arm) == list(range(30))
    assert distance.max() < 1e-6


def test_a_centroid_without_documents_moves_to_the_farthest_document() -> None:
    rows = np.array([[0, 0], [0, 0], [0, 1], [5, 0]], np.float32)
    filled = kmeans._fill_empty(np.array([[0, 0], [9, 9]], np.float32), rows)
    assert filled.tolist() == [[0, 0], [5, 0]]


def test_fewer_distinct_documents_than_clusters_leave_arms_empty() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    arm, distance = assign_arms(rows, train_centroids(rows, 5, seed=0))
    assert len(set(arm.tolist())) == 3
    assert distance.max() < 1e-5


def test_assignment_equals_brute_force_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK_DOCUMENTS", 64)
    generator = np.random.default_rng(0)
    rows, centroids = (generator.standard_normal((n, 8)).astype(np.float32) for n in (150, 9))
    squared = np.square(rows[:, None].astype(np.float64) - centroids).sum(axis=2)
    arm, distance = assign_arms(rows, centroids)
    assert arm.dtype == np.int32
    assert np.array_equal(arm, squared.argmin(axis=1))
    assert distance == pytest.approx(squared.min(axis=1), rel=1e-6)


def test_distances_near_a_centroid_do_not_cancel() -> None:
    centroids = np.array([[100, 0], [0, 0]], np.float32)
    _, distance = assign_arms(np.array([[100.001, 0]], np.float32), centroids)
    assert distance[0] == pytest.approx(1e-6, rel=0.02)


def test_nothing_is_assigned_of_no_documents() -> None:
    arm, distance = assign_arms(np.zeros((0, 4), np.float32), np.eye(4, dtype=np.float32))
    assert arm.shape == distance.shape == (0,)


def test_means_and_variances_equal_those_of_the_arms_documents() -> None:
    rows, arm = planted(5, 20, spread=0.3)
    mean, variance = arm_gaussians(arm_moments(rows, arm.astype(np.int32)), np.zeros((5, 8), np.float32))
    wide = rows.astype(np.float64)
    assert mean == pytest.approx(np.stack([wide[arm == i].mean(axis=0) for i in range(5)]), rel=1e-12)
    assert variance == pytest.approx(np.stack([wide[arm == i].var(axis=0) for i in range(5)]), abs=1e-15)


def test_merged_moments_equal_one_pass() -> None:
    rows, arm = planted(6, 10)
    arm = arm.astype(np.int32)
    whole = arm_moments(rows, arm)
    merged = merge_moments(arm_moments(rows[:7], arm[:7]), arm_moments(rows[7:], arm[7:]))
    assert np.array_equal(merged.arm_A, whole.arm_A)
    assert np.array_equal(merged.count_A, whole.count_A)
    assert merged.sum_AD == pytest.approx(whole.sum_AD, abs=1e-14)
    assert merged.sum_squares_AD == pytest.approx(whole.sum_squares_AD, abs=1e-14)


def test_an_arm_without_documents_keeps_its_centroid_and_has_no_variance() -> None:
    moments = arm_moments(np.array([[1, 0], [0, 1]], np.float32), np.array([0, 2], np.int32))
    mean, variance = arm_gaussians(moments, np.full((3, 2), 0.5, np.float32))
    assert mean.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert not variance.any()


def test_the_radius_holds_its_share_of_an_arms_documents() -> None:
    distance = np.array([1, 4, 9, 16, 25], np.float32)
    radius = arm_radii(distance, np.array([2, 2, 2, 2, 0], np.int32), k=3, quantile=0.75)
    assert radius.tolist() == [5, 0, 3]


@pytest.fixture
def many_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above eight arms, centroids are trained in two levels and found by lists."""
    monkeypatch.setattr(kmeans, "EXACT_ARMS", 8)


@pytest.mark.usefixtures("many_arms")
@pytest.mark.parametrize("spherical", [False, True])
def test_two_levels_train_as_many_centroids_nearly_as_near(monkeypatch: pytest.MonkeyPatch, spherical: bool) -> None:
    generator = np.random.default_rng(3)
    sample = generator.normal(size=(40, 6))[generator.integers(0, 40, 3000)] + 0.2 * generator.normal(size=(3000, 6))
    sample = (sample / np.linalg.norm(sample, axis=1, keepdims=True)).astype(np.float32)
    two_levels = kmeans.train_centroids(sample, 100, 0, spherical=spherical)
    assert two_levels.shape == (100, 6)
    assert np.array_equal(two_levels, kmeans.train_centroids(sample, 100, 0, spherical=spherical))
    assert len(np.unique(kmeans.assign_arms(sample, two_levels)[0])) == 100
    monkeypatch.setattr(kmeans, "EXACT_ARMS", 1000)
    at_once = kmeans.train_centroids(sample, 100, 0, spherical=spherical)
    squared = [kmeans.assign_arms(sample, centroids)[1].sum() for centroids in (two_levels, at_once)]
    assert squared[0] < 1.15 * squared[1]


@pytest.mark.usefixtures("many_arms")
def test_two_levels_of_few_documents_have_as_many_centroids_as_asked() -> None:
    sample = np.concatenate([np.zeros((30, 2)), np.arange(24).reshape(12, 2)]).astype(np.float32)
    assert kmeans.train_centroids(sample, 12, 0).shape == (12, 2)
    assert kmeans.train_centroids(sample, 42, 0).shape == (42, 2)


@pytest.mark.usefixtures("many_arms")
def test_lists_find_nearly_every_documents_nearest_centroid() -> None:
    generator = np.random.default_rng(4)
    centroids = generator.normal(size=(2000, 8)).astype(np.float32)
    embeddings = generator.normal(size=(3000, 8)).astype(np.float32)
    squared = np.square(embeddings[:, None].astype(np.float64) - centroids).sum(axis=2)
    arm, distance = kmeans.assign_arms(embeddings, centroids)
    assert (arm == squared.argmin(axis=1)).mean() > 0.9
    np.testing.assert_allclose(distance, squared[np.arange(3000), arm], rtol=1e-5)
    again = kmeans.assign_arms(embeddings[:7], centroids, kmeans.index_centroids(centroids))[0]
    assert again.tolist() == arm[:7].tolist()


@pytest.mark.usefixtures("many_arms")
def test_lists_lose_no_document_where_centroids_coincide() -> None:
    """Most lists stay empty; a document whose nearest ones all were was given arm -1."""
    centroids = np.ones((3000, 8), np.float32)
    embeddings = np.random.default_rng(0).normal(scale=3, size=(500, 8)).astype(np.float32)
    arm, distance = kmeans.assign_arms(embeddings, centroids)
    assert 0 <= arm.min() <= arm.max() < 3000
    np.testing.assert_allclose(distance, np.square(embeddings - 1).sum(axis=1), rtol=1e-5)
