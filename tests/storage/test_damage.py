"""A stored object with one bit changed, or cut short, is refused by name or reads as it did: never as another."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.manifests.run import RunRecord
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.manifest import DigestMismatch, read_manifest, write_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store, open_store
from quad_tasks.storage.tables import iter_batches, read_array, read_rows, write_array, write_table_stream
from quad_tasks.storage.tensors import load_tensors, save_tensors

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 4))])
ROWS = pa.table([list(range(48)), [f"row {n}" for n in range(48)], [[n / 3] * 4 for n in range(48)]], schema=SCHEMA)
ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)
STEP = 3
"""Every third byte is damaged, each in another bit: all kinds of places are hit, in seconds."""


def write_table(store: Store) -> None:
    write_table_stream(store, "object", SCHEMA, [ROWS], 16)


def write_npy(store: Store) -> None:
    write_array(store, "object", ARRAY)


def write_tensors(store: Store) -> None:
    save_tensors(store, "object", {"a": ARRAY, "count": np.array([7])}, {"model": "tiny"})


def write_json(store: Store) -> None:
    write_manifest(store, "object", RunRecord(config={"rows": 3, "name": "é"}, where={"when": "now"}))


def read_tensors(store: Store) -> Any:
    arrays, metadata = load_tensors(store, "object")
    return {name: (str(a.dtype), a.tolist()) for name, a in arrays.items()}, metadata


def read_json(store: Store) -> Any:
    return read_manifest(RunRecord, store, "object").config


def refusal(read: Callable[[Store], Any], store: Store) -> str | None:
    try:
        read(store)
    except StorageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_table, lambda store: read_table(store, "object").to_pylist()),
        (write_table, lambda store: read_rows(store, "object", 17, 3, ["text"]).to_pylist()),
        (write_table, lambda store: [row for batch in iter_batches(store, "object") for row in batch.to_pylist()]),
        (write_npy, lambda store: read_array(store, "object").tolist()),
        (write_tensors, read_tensors),
        (write_json, read_json),
    ],
    ids=["table", "rows", "batches", "array", "tensors", "manifest"],
)
def test_a_damaged_object_never_reads_as_another(
    local_backend, write: Callable[[Store], None], read: Callable[[Store], Any]
):
    store = open_store(local_backend.uri)
    write(store)
    whole, data = read(store), local_backend.peek("object")
    refused = 0
    for place in range(0, len(data), STEP):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        local_backend.plant("object", bytes(damaged))
        message = refusal(read, store)
        if message is None:
            assert read(store) == whole, place
        else:
            assert "'object' in" in message
            refused += 1
    assert refused > len(data) / STEP / 4
    for length in (0, 1, 7, 8, len(data) // 2, len(data) - 2):
        local_backend.plant("object", data[:length])
        with pytest.raises(StorageError, match="'object' in"):
            read(store)


def test_a_footer_longer_than_the_first_read_is_read_again(local_backend):
    store = open_store(local_backend.uri)
    numbers = pa.table({"n": list(range(2000))}, schema=pa.schema([("n", pa.int64())]))
    write_table_stream(store, "object", numbers.schema, [numbers], 2)
    data = local_backend.peek("object")
    assert int.from_bytes(data[-8:-4], "little") > 64 * 2**10
    assert read_rows(store, "object", 1234, 3)["n"].to_pylist() == [1234, 1235, 1236]
    local_backend.plant("object", data[:-70_000] + bytes([data[-70_000] ^ 1]) + data[-69_999:])
    with pytest.raises(DigestMismatch, match=r"'object' in .*expected digest [0-9a-f]{64}, got [0-9a-f]{64}"):
        read_rows(store, "object", 1234, 3)
