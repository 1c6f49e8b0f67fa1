"""What is dealt out over ranges is read back range by range, and nothing else is taken for it."""

import errno
import os

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.stages.pool import shuffle
from quad_tasks.stages.pool.shuffle import HEAD_BYTES, decode_rows, encode_rows, iter_range, name_elements, write_ranges
from quad_tasks.storage import tables
from quad_tasks.storage.manifest import DigestMismatch, file_sha256
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import open_store

ranges = st.lists(st.lists(st.binary(max_size=60), max_size=4), min_size=1, max_size=5)


@given(ranges, st.sampled_from([HEAD_BYTES, 50, 150, 10**6]))
def test_every_range_is_read_back_whatever_the_window(payloads, window):
    store = open_store("memory://shuffle")
    dealt = write_ranges(store, "key", payloads)
    assert dealt.sha256 == file_sha256(store, "key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "WINDOW_BYTES", window)
        for number, own in enumerate(payloads):
            bounds = dealt.bounds[number : number + 2].tolist()
            assert [bytes(each) for each in iter_range(store, "key", *bounds)] == own


@pytest.mark.parametrize("at", [0, 5, 7, 9, 41, 44])
def test_a_frame_that_is_not_as_it_was_written_is_refused(tmp_path, at):
    store = open_store(str(tmp_path))
    dealt = write_ranges(store, "key", [[b"first"], [b"second"]])
    data = bytearray(store.get("key"))
    data[at] ^= 1
    store.put("key", bytes(data))
    with pytest.raises(DigestMismatch, match="key"):
        list(iter_range(store, "key", *dealt.bounds[:2].tolist()))
    assert [bytes(each) for each in iter_range(store, "key", *dealt.bounds[1:].tolist())] == [b"second"]
    store.put("key", bytes(data[:-2]))
    with pytest.raises(DigestMismatch, match="key"):
        list(iter_range(store, "key", *dealt.bounds[1:].tolist()))


@given(st.lists(st.text(max_size=20), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_rows_of_a_table_are_the_same_once_decoded(texts, first, n):
    table = pa.table({"text": pa.array(texts, pa.large_string()), "row": list(range(len(texts)))}).slice(first, n)
    assert decode_rows(encode_rows(table).to_pybytes()).equals(table)


def test_scratch_files_of_a_remote_store_lie_among_temporary_ones(tmp_path, monkeypatch):
    """A full disk there is not the workspace's: its error stays the system's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> None:
        with shuffle.open_scratch(open_store("memory://s"), "f") as file:
            assert os.fstat(file.fileno()).st_dev == tmp_path.stat().st_dev
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        fail()
    assert type(caught.value) is OSError


def test_rows_dealt_out_have_the_schema_of_rows_read_from_a_table(tmp_path):
    schema = tables.arm_row_schema(2, 3)
    store, named = open_store(str(tmp_path)), pa.schema([name_elements(field) for field in schema])
    tables.write_table_stream(store, "table", schema, [named.empty_table()], 4)
    read = read_table(store, "table").schema
    assert [str(field) for field in named] == [str(field) for field in read] != [str(field) for field in schema]
