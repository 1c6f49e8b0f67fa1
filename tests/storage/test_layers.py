"""Positions and rows of a version of several layers."""

import numpy as np
import pytest
from small_pool import pool_version

from quad_tasks.manifests.pool import MergedBlock, Part
from quad_tasks.storage.layers import in_order, positions_of, rows_of
from quad_tasks.storage.manifest import DigestMismatch, write_manifest
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tables import write_array

VERSION = "pools/p/v0001/manifest.json"
ROWS = [0, 6, 1, 2, 7, 4, 8, 5]  # row 3 is no longer in the version


@pytest.fixture
def store(tmp_path):
    """A version of nine rows, whose eight documents stand in two blocks."""
    made = open_store(str(tmp_path))
    merged = [
        MergedBlock(key=key, documents=len(rows), sha256=write_array(made, key, np.array(rows, np.uint8)))
        for key, rows in (("block-0", ROWS[:3]), ("block-1", ROWS[3:]))
    ]
    write_manifest(made, VERSION, pool_version([Part(key="part", rows=9, sha256="")], documents=8, merged=merged))
    return made


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3, 4, 5, 6, 7], [7, 0, 3], [2, 2], []])
def test_a_position_has_the_row_its_block_says(store, wanted):
    rows = rows_of(store, VERSION, np.array(wanted, dtype=np.int64))
    assert rows.tolist() == [ROWS[position] for position in wanted]


def test_rows_have_their_positions_again_and_one_that_is_gone_none(store):
    assert positions_of(store, VERSION, np.array([8, 3, 0, 5])).tolist() == [6, -1, 0, 7]
    assert positions_of(store, VERSION, np.empty(0, np.int64)).tolist() == []


def test_what_is_known_of_rows_comes_in_the_order_of_positions(store):
    assert in_order(store, VERSION, np.arange(9) * 10).tolist() == [10 * row for row in ROWS]


def test_in_a_version_of_one_layer_position_and_row_are_the_same(tmp_path):
    store = open_store(str(tmp_path))
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=9, sha256="")]))
    wanted = np.array([4, 1])
    assert rows_of(store, VERSION, wanted).tolist() == positions_of(store, VERSION, wanted).tolist() == [4, 1]


def test_a_damaged_block_is_refused(store):
    store.put("block-1", store.get("block-1")[:-1])
    with pytest.raises(DigestMismatch, match="block-1"):
        rows_of(store, VERSION, np.array([5]))
