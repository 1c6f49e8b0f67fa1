"""Distances and neighbour lists against closed forms elsewhere and against the dense matrix."""

import numpy as np
import ot
import pytest

from quad_tasks.core.wasserstein import choose_bandwidth, gaussian_distance, neighbour_lists, neighbour_pairs


def arms(n_arms: int, dimension: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n_arms, dimension)), generator.exponential(size=(n_arms, dimension))


def dense_distances(centroids_KD: np.ndarray, variances_KD: np.ndarray) -> np.ndarray:
    squared = ((centroids_KD[:, None] - centroids_KD[None]) ** 2).sum(-1)
    squared += ((np.sqrt(variances_KD)[:, None] - np.sqrt(variances_KD)[None]) ** 2).sum(-1)
    return np.sqrt(squared)


def test_distance_agrees_with_the_bures_wasserstein_distance_of_pot() -> None:
    means, variances = arms(2)
    expected = ot.gaussian.bures_wasserstein_distance(means[0], means[1], np.diag(variances[0]), np.diag(variances[1]))
    assert gaussian_distance(means[0], variances[0], means[1], variances[1]) == pytest.approx(float(expected), rel=1e-9)


def test_distance_of_equal_gaussians_is_zero() -> None:
    means, variances = arms(1)
    assert gaussian_distance(means[0], variances[0], means[0], variances[0]) == 0.0


def test_distance_in_one_dimension_equals_the_value_worked_by_hand() -> None:
    assert gaussian_distance(np.array([1.0]), np.array([4.0]), np.array([4.0]), np.array([36.0])) == pytest.approx(5.0)


def test_neighbour_lists_equal_the_dense_weights() -> None:
    centroids, variances = arms(600)
    bandwidth = float(np.quantile(dense_distances(centroids, variances), 0.02))
    dense = np.maximum(0, 1 - dense_distances(centroids, variances) / bandwidth)
    np.fill_diagonal(dense, 0)
    listed = neighbour_lists(centroids, variances, bandwidth)
    rows = np.repeat(np.arange(600), np.diff(listed.indptr))
    sparse = np.zeros_like(dense)
    sparse[rows, listed.indices] = listed.weights
    assert sparse == pytest.approx(dense, abs=2e-6)


def test_weights_are_symmetric() -> None:
    listed = neighbour_lists(*arms(300), bandwidth=2.0)
    rows = np.repeat(np.arange(300), np.diff(listed.indptr))
    weight = dict(zip(zip(rows.tolist(), listed.indices.tolist(), strict=True), listed.weights.tolist(), strict=True))
    assert len(weight) > 300
    assert all(weight[j, i] == w for (i, j), w in weight.items())


def test_near_duplicates_far_from_the_origin_keep_their_distance() -> None:
    centroids = np.array([[100.0, 0.0], [100.001, 0.0], [-100.0, 0.0]])
    listed = neighbour_lists(centroids, np.zeros_like(centroids), bandwidth=0.002)
    assert listed.indptr.tolist() == [0, 1, 2, 2]
    assert listed.weights == pytest.approx([0.5, 0.5], abs=0.01)


def test_arms_alone_in_their_bandwidth_have_no_neighbours() -> None:
    listed = neighbour_lists(np.array([[0.0], [5.0]]), np.zeros((2, 1)), bandwidth=1.0)
    assert listed.indptr.tolist() == [0, 0, 0]
    assert listed.indices.size == 0


def test_pairs_of_repeated_arms_are_the_rows_of_the_dense_weights() -> None:
    centroids, variances = arms(12)
    distances = dense_distances(centroids, variances)
    bandwidth = float(np.median(distances))
    dense = np.where((distances < bandwidth) & ~np.eye(12, dtype=bool), 1 - distances / bandwidth, 0.0)
    asked = np.array([7, 0, 7, 11])
    pair, neighbour, weight = neighbour_pairs(asked, neighbour_lists(centroids, variances, bandwidth))
    found = np.zeros((len(asked), 12))
    found[pair, neighbour] = weight
    np.testing.assert_allclose(found, dense[asked], atol=1e-6)
    assert len(pair) == np.count_nonzero(dense[asked])


def test_the_bandwidth_gives_the_median_arm_the_wanted_neighbours() -> None:
    centroids, variances = arms(800)
    bandwidth = choose_bandwidth(centroids, variances, np.random.default_rng(0), neighbours=10)
    counts = np.diff(neighbour_lists(centroids, variances, bandwidth).indptr)
    assert 8 <= np.median(counts) <= 12


def test_a_bandwidth_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth: expected a positive distance, got 0"):
        neighbour_lists(*arms(3), bandwidth=0)


def test_variances_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"variances: expected shape \(3, 5\), got \(2, 5\)"):
        neighbour_lists(arms(3)[0], arms(2)[1], bandwidth=1.0)


def test_a_single_arm_has_no_bandwidth() -> None:
    with pytest.raises(ValueError, match="arms: expected at least 2 to have neighbours, got 1"):
        choose_bandwidth(*arms(1), np.random.default_rng(0))
