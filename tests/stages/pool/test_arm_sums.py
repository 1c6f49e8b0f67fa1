"""Sums by arm add up, survive storage, and give each arm the mean and variance of its documents."""

import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.stages.pool.arm_sums import add_sums, load_sums, save_sums, sum_by_arm, write_arm_index
from quad_tasks.storage.keys import arm_index_key
from quad_tasks.storage.positions import column_vectors, read_table, vector_column
from quad_tasks.storage.store import open_store

ARM = np.array([0, 0, 2, 2, 2, 3], np.int32)
VECTORS = np.array([[1, 2], [3, 5], [0, 0.1], [2, 2], [4, 1], [7, 7]], np.float32)
TOKENS = np.array([5, 7, 1, 2, 3, 9], np.int32)


def documents(rows: list[int]) -> pa.Table:
    return pa.table({"arm": ARM[rows], "n_tokens": TOKENS[rows], "embedding": vector_column(VECTORS[rows])})


def test_sums_of_halves_add_up_to_those_of_the_whole_and_come_back_from_storage(tmp_path):
    store = open_store(str(tmp_path))
    added = add_sums([sum_by_arm(documents([0, 2, 4])), sum_by_arm(documents([1, 3, 5]))])
    assert added.moments.arm_A.tolist() == [0, 2, 3]
    assert added.tokens_A.tolist() == [12, 6, 9]
    again = load_sums(store, "layout", save_sums(store, "layout", added))
    assert again.tokens_A.tolist() == added.tokens_A.tolist()
    assert again.moments.sum_AD.tobytes() == added.moments.sum_AD.tobytes()


def test_the_index_has_each_arms_mean_and_variance_and_an_empty_arms_centroid(tmp_path):
    store = open_store(str(tmp_path))
    centroids = np.full((4, 2), 9, np.float32)
    write_arm_index(store, "layout", centroids, sum_by_arm(documents(list(range(6)))))
    index = read_table(store, arm_index_key("layout"))
    assert index["n_documents"].to_pylist() == [2, 0, 3, 1]
    assert index["n_tokens"].to_pylist() == [12, 0, 6, 9]
    mean, variance = column_vectors(index["centroid"]), column_vectors(index["variance"])
    for arm in (0, 2, 3):
        np.testing.assert_allclose(mean[arm], VECTORS[arm == ARM].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(variance[arm], VECTORS[arm == ARM].var(axis=0), atol=1e-6)
    assert mean[1].tolist() == [9, 9]
    assert variance[1].tolist() == [0, 0]


def test_other_sums_than_those_written_are_refused(tmp_path):
    store = open_store(str(tmp_path))
    save_sums(store, "layout", sum_by_arm(documents([0])))
    with pytest.raises(ValueError, match="expected"):
        load_sums(store, "layout", "0" * 64)
