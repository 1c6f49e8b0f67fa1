import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool import write_table_stream
from quad_tasks.storage.positions import column_vectors, read_column, read_positions, vector_column
from quad_tasks.storage.store import open_store

VERSION = "pools/p/v0001/manifest.json"


@pytest.fixture
def version(tmp_path):
    """Thirty documents, numbered by position, in parts of 12, 3 and 15 with row groups of 4."""
    store = open_store(str(tmp_path))
    parts = []
    for number, (first, last) in enumerate([(0, 12), (12, 15), (15, 30)]):
        table = pa.table({"n": np.arange(first, last), "text": [f"text {i}" for i in range(first, last)]})
        rows, _ = write_table_stream(store, f"part-{number}", table.schema, [table], 4)
        parts.append({"key": f"part-{number}", "rows": rows})
    write_manifest(store, VERSION, {"parts": parts})
    return store


@pytest.mark.parametrize("wanted", [[0], [29, 0], [11, 12, 14, 15], [3, 3, 20], list(range(30)), []])
def test_documents_come_in_the_order_of_their_positions(version, wanted):
    rows = read_positions(version, VERSION, np.array(wanted, dtype=np.int64), ["text"])
    assert rows["text"].to_pylist() == [f"text {i}" for i in wanted]


@pytest.mark.parametrize("outside", [-1, 30])
def test_a_position_outside_the_version_is_refused(version, outside):
    with pytest.raises(IndexError, match=r"expected positions in \[0, 30\)"):
        read_positions(version, VERSION, np.array([2, outside]), ["text"])


def test_a_column_is_read_through_all_parts(version):
    assert read_column(version, VERSION, "n").tolist() == list(range(30))


def test_vectors_survive_their_column_sliced_or_whole():
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pa.table({"v": vector_column(vectors)})["v"]
    np.testing.assert_array_equal(column_vectors(column), vectors)
    np.testing.assert_array_equal(column_vectors(column.slice(1, 2)), vectors[1:3])
