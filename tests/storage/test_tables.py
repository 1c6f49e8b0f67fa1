"""Tables and arrays: the same rows give the same bytes, and ranges of rows cost ranges of bytes."""

import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.storage.store import Store, StoreKeyError, open_store
from quad_tasks.storage.tables import (
    DOCUMENT_SCHEMA,
    arm_index_schema,
    arm_row_schema,
    iter_batches,
    read_array,
    read_rows,
    text_hash,
    write_array,
    write_array_stream,
    write_table_stream,
)

NUMBERS = pa.schema([("n", pa.int64()), ("name", pa.string())])


def numbers(start: int, stop: int) -> pa.Table:
    rows = range(start, stop)
    return pa.table({"n": list(rows), "name": [f"row {n}" for n in rows]}, schema=NUMBERS)


def cut(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    edges = [0, *sorted(cuts), table.num_rows]
    return [table.slice(first, last - first) for first, last in itertools.pairwise(edges)]


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_rows_come_back_with_their_count_and_the_digest_of_the_bytes(backend):
    store = open_store(backend.uri)
    written = write_table_stream(store, "t.parquet", NUMBERS, [numbers(0, 5), numbers(5, 12)], 4)
    data = backend.peek("t.parquet")
    assert written == (12, hashlib.sha256(data).hexdigest())
    assert pq.read_table(io.BytesIO(data)).equals(numbers(0, 12))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 60))
def test_the_same_rows_give_the_same_bytes_however_they_are_batched(cuts, row_group_rows):
    store = open_store("memory://tables")
    whole = write_table_stream(store, "whole", NUMBERS, [numbers(0, 50)], row_group_rows)
    batched = write_table_stream(store, "cut", NUMBERS, cut(numbers(0, 50), cuts), row_group_rows)
    assert batched == whole


def test_row_groups_have_the_asked_size_but_for_the_last(local_store, tmp_path):
    write_table_stream(local_store, "t", NUMBERS, cut(numbers(0, 11), [1, 9]), 4)
    metadata = pq.read_metadata(tmp_path / "t")
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [4, 4, 3]


def test_record_batches_are_taken_as_tables_are(local_store):
    written = write_table_stream(local_store, "t", NUMBERS, numbers(0, 7).to_batches(2), 4)
    assert written == write_table_stream(local_store, "u", NUMBERS, [numbers(0, 7)], 4)


def test_a_table_without_rows_keeps_its_columns(local_store):
    assert write_table_stream(local_store, "t", NUMBERS, [], 4).rows == 0
    assert read_rows(local_store, "t", 0, 5).schema == NUMBERS
    assert list(iter_batches(local_store, "t")) == []


def test_batches_are_cast_to_the_schema_without_loss(local_store):
    schema = pa.schema([pa.field("n", pa.int32(), nullable=False)])
    write_table_stream(local_store, "t", schema, [pa.table({"n": [1, 2]})], 4)
    assert read_rows(local_store, "t", 0, 2).schema == schema


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"m": [1]}), "names"),
        (pa.table({"n": [2**40]}), "not in range"),
        (pa.table({"n": pa.array([None], pa.int32())}), "null"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_refused_and_nothing_is_written(local_store, table, message):
    schema = pa.schema([pa.field("n", pa.int32(), nullable=False)])
    with pytest.raises(ValueError, match=message):
        write_table_stream(local_store, "t", schema, [table], 4)
    assert local_store.list() == []


def test_memory_held_while_writing_does_not_grow_with_the_table(local_store):
    held_bytes = []

    def batches():
        for start in range(0, 640_000, 10_000):
            held_bytes.append(pa.total_allocated_bytes())
            yield pa.table({"n": np.arange(start, start + 10_000)})

    write_table_stream(local_store, "t", pa.schema([("n", pa.int64())]), batches(), 40_000)
    assert max(held_bytes[32:]) <= max(held_bytes[:32])


@settings(max_examples=60)
@given(st.integers(0, 25), st.integers(0, 25))
def test_any_range_of_rows_is_that_slice(start, n):
    store = open_store("memory://tables")
    write_table_stream(store, "ranges", NUMBERS, [numbers(0, 20)], 6)
    assert read_rows(store, "ranges", start, n).equals(numbers(0, 20).slice(start, n))
    assert read_rows(store, "ranges", start, n, ["name"]).equals(numbers(0, 20).slice(start, n).select(["name"]))


def test_a_range_of_rows_fetches_its_row_groups_only(s3_backend, monkeypatch):
    store = open_store(s3_backend.uri)
    texts = [np.random.default_rng(i).bytes(300).hex() for i in range(2000)]
    write_table_stream(store, "t", pa.schema([("text", pa.string())]), [pa.table({"text": texts})], 100)
    fetched = []
    read_range = Store.read_range

    def counted(store, key, start, end):
        fetched.append(end - start)
        return read_range(store, key, start, end)

    monkeypatch.setattr(Store, "read_range", counted)
    assert read_rows(store, "t", 950, 20)["text"].to_pylist() == texts[950:970]
    assert sum(fetched) < store.size("t") / 5


def test_of_neighbours_that_a_range_only_touches_nothing_is_read(local_store, monkeypatch):
    write_table_stream(local_store, "t", NUMBERS, [numbers(0, 20)], 5)
    read: list[list[int]] = []
    whole = pq.ParquetFile.read_row_groups

    def note(self, groups, columns=None):
        read.append(list(groups))
        return whole(self, groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", note)
    assert read_rows(local_store, "t", 5, 5).equals(numbers(5, 10))
    assert read_rows(local_store, "t", 4, 2).equals(numbers(4, 6))
    assert read == [[1], [0, 1]]


def test_batches_come_in_order_and_no_larger_than_asked(backend):
    store = open_store(backend.uri)
    write_table_stream(store, "t", NUMBERS, [numbers(0, 20)], 6)
    batches = list(iter_batches(store, "t", ["n"], batch_rows=4))
    assert max(batch.num_rows for batch in batches) == 4
    assert pa.Table.from_batches(batches)["n"].to_pylist() == list(range(20))


def test_a_missing_table_is_a_missing_key(backend):
    store = open_store(backend.uri)
    with pytest.raises(StoreKeyError, match="not found: 't'"):
        read_rows(store, "t", 0, 1)
    with pytest.raises(StoreKeyError, match="not found: 't'"):
        next(iter_batches(store, "t"))


def test_documents_with_every_column_come_back(local_store):
    row = {
        "id": "d", "text": "é", "source": "s", "metadata": "{}",
        "n_tokens": 1, "n_bytes": 2, "text_hash": text_hash("é"), "line": 2**40,
    }  # fmt: skip
    write_table_stream(local_store, "t", DOCUMENT_SCHEMA, [pa.Table.from_pylist([row], DOCUMENT_SCHEMA)], 4)
    assert read_rows(local_store, "t", 0, 1).to_pylist() == [row]


def test_text_hash_is_blake2b_of_the_utf8_bytes():
    assert text_hash("é").hex() == hashlib.blake2b(b"\xc3\xa9", digest_size=16).hexdigest()


def test_embeddings_and_moments_have_the_pools_dimension(local_store):
    index = {"arm": 1, "n_documents": 2, "n_tokens": 3}
    row = index | {"centroid": [0.5, 1.0], "variance": [0.0, 2.0]}
    schema = arm_index_schema(2)
    write_table_stream(local_store, "t", schema, [pa.Table.from_pylist([row], schema)], 4)
    assert read_rows(local_store, "t", 0, 1).to_pylist() == [row]
    assert arm_row_schema(384, 35).field("embedding").type == pa.list_(pa.float32(), 384)
    assert arm_row_schema(384, 35).field("token_features").type == pa.list_(pa.float32(), 35)


@pytest.mark.parametrize("sizes", [(5,), (2, 0, 3), (1, 1, 1, 1, 1)])
def test_an_array_written_in_blocks_has_the_bytes_of_one_written_whole(local_store, sizes):
    array = np.arange(15, dtype=np.float32).reshape(5, 3)
    blocks = np.split(array.astype(np.float64), np.cumsum(sizes)[:-1])
    streamed = write_array_stream(local_store, "stream.npy", array.shape, array.dtype, iter(blocks))
    assert streamed == write_array(local_store, "whole.npy", array)
    assert local_store.get("stream.npy") == local_store.get("whole.npy")
    assert read_array(local_store, "stream.npy").tolist() == array.tolist()


def test_an_array_of_too_few_rows_is_not_written(local_store):
    with pytest.raises(ValueError, match=r"a\.npy: expected 4 rows, got 3"):
        write_array_stream(local_store, "a.npy", (4, 2), np.dtype(np.float32), [np.zeros((3, 2))])
    assert not local_store.exists("a.npy")


@pytest.mark.parametrize("array", [np.arange(12.0).reshape(4, 3), np.zeros((0, 3), np.float32), np.arange(4)])
def test_arrays_come_back_whole(backend, array):
    store = open_store(backend.uri)
    digest = write_array(store, "a.npy", array)
    assert digest == hashlib.sha256(backend.peek("a.npy")).hexdigest()
    assert np.load(io.BytesIO(backend.peek("a.npy"))).dtype == array.dtype
    np.testing.assert_array_equal(read_array(store, "a.npy"), array)


def test_rows_of_a_transposed_array_are_its_rows(local_store):
    array = np.arange(6.0).reshape(2, 3).T
    write_array(local_store, "a.npy", array)
    np.testing.assert_array_equal(read_array(local_store, "a.npy"), array)


def test_a_local_array_is_mapped_and_read_only(local_store):
    write_array(local_store, "a.npy", np.zeros(3))
    array = read_array(local_store, "a.npy")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_objects_are_neither_written_nor_unpickled(local_store, tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_array(local_store, "a.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    pickled = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(pickled + hashlib.sha256(pickled).digest())
    with pytest.raises(ValueError, match=r"allow_pickle=False|Python objects"):
        read_array(local_store, "b.npy")
