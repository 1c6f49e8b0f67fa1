"""Deal rows out over ranges: an object holds what one task has of every range, and a range is read by one request.

A step that has something of every range in every task would ask for tasks times ranges objects, or for as many footers
and row groups. Here an object is a run of frames: a payload's length, its SHA-256, and itself. Where a range begins is
told to whoever reads it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.storage.errors import name_full_disk
from quad_tasks.storage.manifest import check_digest
from quad_tasks.storage.store import Store

LENGTH_BYTES, DIGEST_BYTES = 8, 32
HEAD_BYTES = LENGTH_BYTES + DIGEST_BYTES
WINDOW_BYTES = 64 * 2**20
"""Of a range that one request reads; a longer frame is read by one of its own."""


class Dealt(NamedTuple):
    """An object of frames.

    Attributes:
        bounds: [R + 1] of its ranges: range r is the bytes [bounds[r], bounds[r + 1]).
        sha256: of its bytes, in hex.
    """

    bounds: npt.NDArray[np.int64]
    sha256: str


class Stored(NamedTuple):
    """What an object has of a range: its key, and the bytes [start, end) of it."""

    key: str
    start: int
    end: int


def write_ranges(store: Store, key: str, ranges: Iterable[Iterable[bytes]]) -> Dealt:
    """Write the payloads of every range, in order, as one object, holding one payload in memory."""
    bounds, sha256 = [0], hashlib.sha256()
    with store.spool(key) as path, path.open("wb") as file:
        for payloads in ranges:
            for payload in payloads:
                head = len(payload).to_bytes(LENGTH_BYTES, "little") + hashlib.sha256(payload).digest()
                for data in (head, payload):
                    file.write(data)
                    sha256.update(data)
            bounds.append(file.tell())
    return Dealt(np.array(bounds, dtype=np.int64), sha256.hexdigest())


def iter_range(store: Store, key: str, start: int, end: int) -> Iterator[memoryview]:
    """Read the payloads of the bytes [start, end) of an object of frames, a window or a frame at a time.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: a frame's bytes are not those that were written.
    """
    while start < end:
        data = memoryview(store.read_range(key, start, min(end, start + WINDOW_BYTES)))
        size = _frame_bytes(data)
        if size > end - start:
            check_digest(store, key, expected=f"of at most {end - start} bytes", got=f"of {size} bytes")
        if size > len(data):
            data = memoryview(store.read_range(key, start, start + size))
        done = 0
        while len(data) - done >= HEAD_BYTES and (size := _frame_bytes(data[done:])) <= len(data) - done:
            payload = data[done + HEAD_BYTES : done + size]
            expected = bytes(data[done + LENGTH_BYTES : done + HEAD_BYTES]).hex()
            check_digest(store, key, expected=expected, got=hashlib.sha256(payload).hexdigest())
            yield payload
            done += size
        if not done:  # the object ends before its frame does
            check_digest(store, key, expected=f"of {size} bytes", got=f"of {len(data)} bytes")
        start += done


def list_stored(keys: Sequence[str], dealt: Sequence[Dealt]) -> list[list[Stored]]:
    """List what each object has of every range, range by range."""
    bounds_BR = np.stack([each.bounds for each in dealt]).tolist()
    return [
        [Stored(key, *bounds[r : r + 2]) for key, bounds in zip(keys, bounds_BR, strict=True)]
        for r in range(len(bounds_BR[0]) - 1)
    ]


@contextmanager
def open_scratch(store: Store, folder: str) -> Iterator[BinaryIO]:
    """Lend a file without a name: on a local store's own disk, else where the machine keeps temporary files.

    Args:
        store: the workspace.
        folder: of what is worked at; on a local store it stands already.

    Raises:
        StoreFault: the workspace's disk is full.
    """
    local = store.local_path(folder)
    with name_full_disk(f"{folder!r} in {store.uri}") if local else nullcontext(), TemporaryFile(dir=local) as file:
        yield file


def encode_rows(table: pa.Table) -> pa.Buffer:
    """Turn rows of a table into a payload, compressed, that `decode_rows` reads."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()


def decode_rows(data: bytes | memoryview) -> pa.Table:
    """Read the rows of a payload."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
        return stream.read_all()


def name_elements(field: pa.Field) -> pa.Field:
    """Name what a list holds as Parquet does: a table of rows dealt out is then the same bytes as one of rows read."""
    if not pa.types.is_fixed_size_list(field.type):
        return field
    return field.with_type(pa.list_(pa.field("element", field.type.value_type), field.type.list_size))


def _frame_bytes(data: memoryview) -> int:
    """Return the bytes of the frame that begins here, its head among them."""
    return HEAD_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
