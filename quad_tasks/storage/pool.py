"""The candidate pool's tables: Parquet files and arrays, written as streams, read by ranges of rows.

Owns the columns of documents, arm rows and the arm index, and how rows map to row groups and parts. The same rows give
the same bytes, however they arrive in batches (with one version of pyarrow, whose name stands in each file).
Shape legend: N documents, D embedding.

Layout of an arm: its documents are contiguous in the concatenation of the parts, which the pool version's manifest
lists under ``parts`` as ``{"key": ..., "rows": ..., "sha256": ...}`` in order; an arm may span parts.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from quad_tasks.storage.faults import StorageError
from quad_tasks.storage.manifest import DigestMismatch, check_digest
from quad_tasks.storage.store import Store

COMPRESSION = "zstd"
COMPRESSION_LEVEL = 3
TEXT_HASH_BYTES = 16
DIGEST_BYTES = 32
READ_BYTES = 8 * 2**20
TRAILER_BYTES = 8
"""A Parquet file ends with its footer's length, 4 bytes little-endian, and a magic word of 4."""
FOOTER_BYTES = 64 * 2**10
"""Read at first for a footer: it holds that of most tables in one request, as Arrow's own guess does."""

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_bytes", pa.int32(), nullable=False),
        pa.field("text_hash", pa.binary(TEXT_HASH_BYTES), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
    ]
)
"""A shard's kept documents in file order. ``metadata`` is a JSON object as text with sorted keys; ``n_bytes`` counts
the text in UTF-8; ``text_hash`` is `text_hash`; ``line`` is the 1-based line or row in the input file."""


class Written(NamedTuple):
    """What was written: a table's number of rows and the SHA-256 of the object's bytes, in hex."""

    rows: int
    sha256: str


def text_hash(text: str) -> bytes:
    """Return the 16-byte BLAKE2b hash of a text's UTF-8 bytes, by which exact duplicates are found."""
    return hashlib.blake2b(text.encode(), digest_size=TEXT_HASH_BYTES).digest()


def arm_row_schema(embedding_dim: int) -> pa.Schema:
    """Return the columns of the pool in arm order; ``embedding`` holds ``embedding_dim`` float32 values.

    ``shard`` and ``shard_row`` (0-based) say where the document stands in the pool's document tables.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("n_bytes", pa.int32(), nullable=False),
            pa.field("arm", pa.int32(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
            pa.field("shard_row", pa.int64(), nullable=False),
            pa.field("embedding", _vector(embedding_dim), nullable=False),
        ]
    )


def arm_index_schema(embedding_dim: int) -> pa.Schema:
    """Return the columns of the arm index, one row per arm.

    ``part`` and ``row`` (0-based) are where the arm's first document stands; ``centroid`` and ``variance`` are the
    mean and the per-coordinate variance of its embeddings.
    """
    return pa.schema(
        [
            pa.field("arm", pa.int32(), nullable=False),
            pa.field("n_documents", pa.int64(), nullable=False),
            pa.field("n_tokens", pa.int64(), nullable=False),
            pa.field("part", pa.int32(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("centroid", _vector(embedding_dim), nullable=False),
            pa.field("variance", _vector(embedding_dim), nullable=False),
        ]
    )


def write_table_stream(
    store: Store, key: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table], row_group_rows: int
) -> Written:
    """Write rows as one Parquet object, holding no more than a row group and a batch in memory.

    Args:
        store: where to.
        key: the object's key.
        schema: the columns.
        batches: rows in order, with the schema's columns and types that cast to its own without loss; their division
            into batches leaves no trace in the file.
        row_group_rows: rows per row group, the last one excepted: the least that a reader must fetch. Each group adds
            650 bytes to the footer, which every read fetches too: of 16,000 documents with 128-dimensional embeddings,
            10 were read in 3-4 ms with groups of 32 to 1,024 rows, in 24 ms with groups of 10.

    Returns:
        The number of rows and the digest of the object's bytes.

    Raises:
        ValueError: a batch has other columns, nulls where none may be, or a value that does not fit.
    """
    rows = 0
    with store.spool(key) as path:
        # rows are found by number, so statistics (whole texts, per row group) would only swell the footer
        with pq.ParquetWriter(
            path,
            schema,
            compression=COMPRESSION,
            compression_level=COMPRESSION_LEVEL,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            for group in _row_groups(batches, row_group_rows):
                writer.write_table(group.cast(schema), row_group_size=row_group_rows)
                rows += group.num_rows
        _seal_footer(path)
        with path.open("rb") as file:
            return Written(rows, hashlib.file_digest(file, "sha256").hexdigest())


@contextmanager
def open_table(store: Store, key: str, pre_buffer: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a Parquet object; its footer, and every page that is read, is held against its checksum.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that `write_table_stream` wrote.
    """
    with store.open_input(key) as file:
        try:
            footer = pq.read_metadata(pa.BufferReader(_read_footer(store, key, file)))
            with pq.ParquetFile(
                file, metadata=footer, pre_buffer=pre_buffer, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, StorageError):
                raise
            message = f"{key!r} in {store.uri}: expected the bytes that were written, got {error}"
            raise DigestMismatch(message) from error


def read_rows(store: Store, key: str, start: int, n: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read rows [start, start + n) of a Parquet object, cut off at its end, fetching only their row groups.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written.
    """
    with open_table(store, key, pre_buffer=True) as parquet:
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        firsts = [0, *itertools.accumulate(sizes)]
        wanted = [g for g, size in enumerate(sizes) if firsts[g] < start + n and firsts[g] + size > start]
        table = parquet.read_row_groups(wanted, columns=None if columns is None else list(columns))
        return table.slice(start - firsts[wanted[0]] if wanted else 0, n)


def iter_batches(
    store: Store, key: str, columns: Sequence[str] | None = None, batch_rows: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Read a Parquet object in order, at most ``batch_rows`` rows at a time.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written.
    """
    with open_table(store, key) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows, columns=None if columns is None else list(columns))


def write_array(store: Store, key: str, array: npt.NDArray[Any]) -> str:
    """Write an array in NumPy's .npy format, rows contiguous, and after it the SHA-256 of those bytes.

    The object is checked when it is read; other readers of .npy files stop before the digest.

    Returns:
        The SHA-256 of the object's bytes, in hex.

    Raises:
        ValueError: the array holds Python objects.
    """
    with store.spool(key) as path:
        with path.open("wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        with path.open("r+b") as file:
            sha256 = hashlib.file_digest(file, "sha256")
            seal = sha256.digest()
            file.write(seal)
        sha256.update(seal)
        return sha256.hexdigest()


def read_array(store: Store, key: str) -> npt.NDArray[Any]:
    """Read a .npy object; on a local store it is mapped into memory, read-only, and pages in as it is used.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written.
        ValueError: the object is no .npy file or holds Python objects.
    """
    mode: Any = None if store.local_path(key) is None else "r"
    with store.local_copy(key) as path:
        _check_array(store, key, path)
        return cast(npt.NDArray[Any], np.load(path, mmap_mode=mode, allow_pickle=False))


def _seal_footer(path: Path) -> None:
    """Put the digest of a Parquet file's footer before it, where no reader looks: pages have checksums, it has none."""
    with path.open("r+b") as file:
        file.seek(-TRAILER_BYTES, os.SEEK_END)
        start = file.tell() - int.from_bytes(file.read(4), "little")
        file.seek(start)
        footer = file.read()
        file.seek(start)
        file.write(hashlib.sha256(footer).digest() + footer)


def _read_footer(store: Store, key: str, file: BinaryIO) -> bytes:
    """Read a sealed footer, and check it."""
    size = file.seek(0, os.SEEK_END)
    tail = _read_tail(file, size, FOOTER_BYTES)
    length = int.from_bytes(tail[-TRAILER_BYTES:-4], "little") + TRAILER_BYTES
    if length + DIGEST_BYTES > len(tail):
        tail = _read_tail(file, size, length + DIGEST_BYTES)
    footer, sealed = tail[-length:], tail[-length - DIGEST_BYTES : -length]
    check_digest(store, key, expected=sealed.hex(), got=hashlib.sha256(footer).hexdigest())
    return footer


def _read_tail(file: BinaryIO, size: int, n_bytes: int) -> bytes:
    file.seek(max(0, size - n_bytes))
    return file.read(n_bytes)


def _check_array(store: Store, key: str, path: Path) -> None:
    """Hold a file's bytes against the digest at its end; reads, unlike a map, leave no pages in this process."""
    sha256, left = hashlib.sha256(), max(0, path.stat().st_size - DIGEST_BYTES)
    with path.open("rb") as file:
        while data := file.read(min(left, READ_BYTES)):
            sha256.update(data)
            left -= len(data)
        check_digest(store, key, expected=file.read().hex(), got=sha256.hexdigest())


def _row_groups(batches: Iterable[pa.RecordBatch | pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut batches into tables of exactly ``rows`` rows, the last one excepted."""
    pending: list[pa.Table] = []
    count = 0
    for batch in batches:
        pending.append(batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch]))
        count += batch.num_rows
        if count >= rows:
            joined = pa.concat_tables(pending)
            whole = count - count % rows
            yield from (joined.slice(first, rows).combine_chunks() for first in range(0, whole, rows))
            pending, count = [joined.slice(whole).combine_chunks()], count - whole
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _vector(size: int) -> pa.DataType:
    return pa.list_(pa.float32(), size)
