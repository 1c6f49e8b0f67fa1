import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pool import pool_version

from quad_tasks.manifests.pool import MergedBlock, Part
from quad_tasks.storage import positions as positions_module
from quad_tasks.storage.manifest import DigestMismatch, write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import (
    column_vectors,
    nth_open,
    positions_of,
    read_positions,
    rows_of,
    vector_column,
)
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tables import DOCUMENT_SCHEMA, arm_row_schema, write_array, write_table_stream

VERSION = "pools/p/v0001/manifest.json"


@pytest.fixture
def version(tmp_path):
    """Thirty documents, numbered by position, in parts of 12, 3 and 15 with row groups of 4."""
    store = open_store(str(tmp_path))
    parts = []
    for number, (first, last) in enumerate([(0, 12), (12, 15), (15, 30)]):
        table = pa.table({"n": np.arange(first, last), "text": [f"text {i}" for i in range(first, last)]})
        rows, sha256 = write_table_stream(store, f"part-{number}", table.schema, [table], 4)
        parts.append(Part(key=f"part-{number}", rows=rows, sha256=sha256))
    write_manifest(store, VERSION, pool_version(parts))
    return store


@pytest.mark.parametrize("wanted", [[0], [29, 0], [11, 12, 14, 15], [3, 3, 20], list(range(30)), []])
def test_documents_come_in_the_order_of_their_positions(version, wanted):
    rows = read_positions(version, VERSION, np.array(wanted, dtype=np.int64), ["text"])
    assert rows["text"].to_pylist() == [f"text {i}" for i in wanted]


def test_texts_have_offsets_of_64_bits_so_that_more_than_2_gib_of_them_can_be_joined(version):
    """Those of the fixture are stored with 32 bits, as older versions of a pool are."""
    assert read_positions(version, VERSION, np.array([3, 1]), ["text"]).schema.field("text").type == pa.large_string()
    assert DOCUMENT_SCHEMA.field("text").type == arm_row_schema(2, 2).field("text").type == pa.large_string()


def test_a_versions_manifest_is_read_once_a_process_however_many_blocks_are(version, monkeypatch):
    reads = []
    monkeypatch.setattr(positions_module, "read_version", lambda *a: reads.append(a) or read_version(*a))
    for start in range(0, 30, 5):
        read_positions(version, VERSION, np.arange(start, start + 5), ["text"])
    assert len(reads) <= 1


@pytest.mark.parametrize("outside", [-1, 30])
def test_a_position_outside_the_version_is_refused(version, outside):
    with pytest.raises(IndexError, match=r"expected positions in \[0, 30\)"):
        read_positions(version, VERSION, np.array([2, outside]), ["text"])


def test_vectors_survive_their_column_sliced_or_whole():
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pa.table({"v": vector_column(vectors)})["v"]
    np.testing.assert_array_equal(column_vectors(column), vectors)
    np.testing.assert_array_equal(column_vectors(column.slice(1, 2)), vectors[1:3])


@settings(max_examples=50)
@given(st.sets(st.integers(0, 30), max_size=30))
def test_open_documents_are_numbered_from_the_first_on(closed):
    closed_C = np.array(sorted(closed), dtype=np.int64)
    left = np.setdiff1d(np.arange(40), closed_C)
    assert nth_open(closed_C, np.arange(len(left))).tolist() == left.tolist()


ROWS = [0, 6, 1, 2, 7, 4, 8, 5]  # row 3 is no longer in the version


@pytest.fixture
def layered(tmp_path):
    """A version of nine rows, whose eight documents stand in two blocks."""
    made = open_store(str(tmp_path))
    merged = [
        MergedBlock(key=key, documents=len(rows), sha256=write_array(made, key, np.array(rows, np.uint8)))
        for key, rows in (("block-0", ROWS[:3]), ("block-1", ROWS[3:]))
    ]
    write_manifest(made, VERSION, pool_version([Part(key="part", rows=9, sha256="")], documents=8, merged=merged))
    return made


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3, 4, 5, 6, 7], [7, 0, 3], [2, 2], []])
def test_a_position_has_the_row_its_block_says(layered, wanted):
    rows = rows_of(layered, VERSION, np.array(wanted, dtype=np.int64))
    assert rows.tolist() == [ROWS[position] for position in wanted]


def test_rows_have_their_positions_again_and_one_that_is_gone_none(layered):
    assert positions_of(layered, VERSION, np.array([8, 3, 0, 5])).tolist() == [6, -1, 0, 7]
    assert positions_of(layered, VERSION, np.empty(0, np.int64)).tolist() == []


def test_in_a_version_of_one_layer_position_and_row_are_the_same(tmp_path):
    store = open_store(str(tmp_path))
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=9, sha256="")]))
    wanted = np.array([4, 1])
    assert rows_of(store, VERSION, wanted).tolist() == positions_of(store, VERSION, wanted).tolist() == [4, 1]


def test_a_damaged_block_is_refused(layered):
    layered.put("block-1", layered.get("block-1")[:-1])
    with pytest.raises(DigestMismatch, match="block-1"):
        rows_of(layered, VERSION, np.array([5]))
