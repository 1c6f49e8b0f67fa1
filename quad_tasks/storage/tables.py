"""The candidate pool's tables: Parquet files and arrays, written as streams, read by ranges of rows.

Owns the columns of documents, arm rows and the arm index, and how rows map to row groups and parts. The same rows give
the same bytes, however they arrive in batches (with one version of pyarrow, whose name stands in each file).
Shape legend: N documents, D embedding.

Layout of an arm: its documents are contiguous in the concatenation of a layer's parts, which the pool version's
manifest lists under ``parts`` as ``{"key": ..., "rows": ..., "sha256": ...}`` in order; an arm may span parts.
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

from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.manifest import DigestMismatch, check_digest
from quad_tasks.storage.row_groups import cut_row_groups
from quad_tasks.storage.store import Store

os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")
"""Arrow's aggregations otherwise warn on the console of columns that stand unaligned in the bytes of a table."""
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 3
TEXT_HASH_BYTES = 16
DIGEST_BYTES = 32
READ_BYTES = 8 * 2**20
PART_ROWS, PART_BYTES = 8192, 128 * 2**20
"""Most documents, and bytes of their texts, in a part of a pool version."""
ROW_GROUP_ROWS = 64
"""Documents of a part that are read together: a few pulls, so that a pull reads one or two row groups."""
ROW_GROUP_BYTES = 64 * 2**20
"""Most bytes of texts in a row group, by the column `n_bytes` where there is one."""
TRAILER_BYTES = 8
"""A Parquet file ends with its footer's length, 4 bytes little-endian, and a magic word of 4."""
FOOTER_BYTES = 64 * 2**10
"""Read at first for a footer: it holds that of most tables in one request, as Arrow's own guess does."""

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.large_string(), nullable=False),
        pa.field("metadata", pa.large_string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_bytes", pa.int32(), nullable=False),
        pa.field("text_hash", pa.binary(TEXT_HASH_BYTES), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
    ]
)
"""A shard's kept documents in file order. ``metadata`` is a JSON object as text with sorted keys; ``n_bytes`` counts
the text in UTF-8; ``text_hash`` is `text_hash`; ``line`` is the 1-based line or row in the input file. Strings have
64-bit offsets: Arrow joins no more than 2 GiB of text with 32-bit ones, and refuses the rest."""


class Written(NamedTuple):
    """What was written: a table's number of rows and the SHA-256 of the object's bytes, in hex."""

    rows: int
    sha256: str


def text_hash(text: str) -> bytes:
    """Return the 16-byte BLAKE2b hash of a text's UTF-8 bytes, by which exact duplicates are found."""
    return hashlib.blake2b(text.encode(), digest_size=TEXT_HASH_BYTES).digest()


def arm_row_schema(embedding_dim: int, token_feature_width: int) -> pa.Schema:
    """Return the columns of the pool in arm order.

    ``embedding`` and ``token_features`` hold this many float32 values. ``shard`` and ``shard_row`` (0-based) say where
    the document stands in the pool's document tables, ``order`` where among those of its arm.
    """
    return pa.schema(
        [
            pa.field("id", pa.large_string(), nullable=False),
            pa.field("source", pa.large_string(), nullable=False),
            pa.field("text", pa.large_string(), nullable=False),
            pa.field("metadata", pa.large_string(), nullable=False),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("n_bytes", pa.int32(), nullable=False),
            pa.field("arm", pa.int32(), nullable=False),
            pa.field("shard", pa.large_string(), nullable=False),
            pa.field("shard_row", pa.int64(), nullable=False),
            pa.field("order", pa.uint64(), nullable=False),
            pa.field("embedding", _vector(embedding_dim), nullable=False),
            pa.field("token_features", _vector(token_feature_width), nullable=False),
        ]
    )


def arm_index_schema(embedding_dim: int) -> pa.Schema:
    """Return the columns of the arm index, one row per arm.

    ``centroid`` and ``variance`` are the mean and the per-coordinate variance of its embeddings.
    """
    return pa.schema(
        [
            pa.field("arm", pa.int32(), nullable=False),
            pa.field("n_documents", pa.int64(), nullable=False),
            pa.field("n_tokens", pa.int64(), nullable=False),
            pa.field("centroid", _vector(embedding_dim), nullable=False),
            pa.field("variance", _vector(embedding_dim), nullable=False),
        ]
    )


def write_table_stream(
    store: Store,
    key: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch | pa.Table],
    row_group_rows: int,
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
            for group in cut_row_groups(batches, row_group_rows, ROW_GROUP_BYTES):
                writer.write_table(group.cast(schema), row_group_size=row_group_rows)
                rows += group.num_rows
        _seal_footer(path)
        with path.open("rb") as file:
            return Written(rows, hashlib.file_digest(file, "sha256").hexdigest())


@contextmanager
def open_table(store: Store, key: str, pre_buffer: bool = False, seal: str | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet object; its footer, and every page that is read, is held against its checksum.

    Args:
        store: the workspace.
        key: the object's key.
        pre_buffer: read the wanted columns in few requests.
        seal: that a manifest has of the table (`read_seal`), so that no other table is taken for it; None: any table.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that `write_table_stream` wrote, or it is another table.
    """
    with store.open_input(key) as file:
        try:
            footer = pq.read_metadata(pa.BufferReader(_read_footer(store, key, file, seal)))
            with pq.ParquetFile(
                file, metadata=footer, pre_buffer=pre_buffer, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, StorageError):
                raise
            message = f"{key!r} in {store.uri}: expected the bytes that were written, got {error}"
            raise DigestMismatch(message) from error


def read_rows(
    store: Store, key: str, start: int, n: int, columns: Sequence[str] | None = None, seal: str | None = None
) -> pa.Table:
    """Read rows [start, start + n) of a Parquet object, cut off at its end, fetching only their row groups.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written, or not those of `seal`.
    """
    with open_table(store, key, pre_buffer=True, seal=seal) as parquet:
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        firsts = [0, *itertools.accumulate(sizes)]
        wanted = [g for g, size in enumerate(sizes) if firsts[g] < start + n and firsts[g] + size > start]
        table = parquet.read_row_groups(wanted, columns=None if columns is None else list(columns))
        return table.slice(start - firsts[wanted[0]] if wanted else 0, n)


def iter_batches(
    store: Store,
    key: str,
    columns: Sequence[str] | None = None,
    batch_rows: int = 1024,
    seal: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Read a Parquet object in order, at most ``batch_rows`` rows of one row group at a time.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written, or not those of `seal`.
    """
    with open_table(store, key, seal=seal) as parquet:
        wanted = None if columns is None else list(columns)
        for group in range(parquet.num_row_groups):
            yield from iter_row_group(parquet, group, batch_rows, wanted)


def iter_row_group(
    parquet: pq.ParquetFile, group: int, batch_rows: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Read a row group in batches, all its rows: pyarrow takes a page whose header is damaged for the group's end.

    Raises:
        ArrowInvalid: the group has less rows than the footer says.
    """
    left = parquet.metadata.row_group(group).num_rows
    for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns):
        left -= batch.num_rows
        yield batch
    if left:
        raise pa.ArrowInvalid(f"{left} rows less in row group {group}")


def read_seal(store: Store, key: str) -> str:
    """Return the digest of a table's footer, which tells it from any other table: of its rows, sizes and places.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the footer is not the one that was written.
    """
    with store.open_input(key) as file:
        return hashlib.sha256(_read_footer(store, key, file, None)).hexdigest()


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
        return _seal_array(path)


def write_array_stream(
    store: Store, key: str, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[npt.NDArray[Any]]
) -> str:
    """Write an array block of rows by block of rows, holding one of them in memory; as `write_array` otherwise.

    Args:
        store: the workspace.
        key: of the object.
        shape: of the whole array.
        dtype: of the whole array.
        blocks: its rows, in order.

    Returns:
        The SHA-256 of the object's bytes, in hex.

    Raises:
        ValueError: the blocks do not have `shape[0]` rows together.
    """
    with store.spool(key) as path:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            rows = 0
            for block in blocks:
                np.ascontiguousarray(block, dtype).tofile(file)
                rows += len(block)
        if rows != shape[0]:
            raise ValueError(f"{key}: expected {shape[0]} rows, got {rows}")
        return _seal_array(path)


def read_array(store: Store, key: str, sha256: str | None = None) -> npt.NDArray[Any]:
    """Read a .npy object; on a local store it is mapped into memory, read-only, and pages in as it is used.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written, or have another digest than `sha256`.
        ValueError: the object is no .npy file or holds Python objects.
    """
    mode: Any = None if store.local_path(key) is None else "r"
    with store.local_copy(key) as path:
        found = _check_array(store, key, path)
        if sha256 is not None:
            check_digest(store, key, expected=sha256, got=found)
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


def _read_footer(store: Store, key: str, file: BinaryIO, seal: str | None) -> bytes:
    """Read a sealed footer, and check it against the seal that stands before it, and the one that is expected."""
    size = file.seek(0, os.SEEK_END)
    tail = _read_tail(file, size, FOOTER_BYTES)
    length = int.from_bytes(tail[-TRAILER_BYTES:-4], "little") + TRAILER_BYTES
    if length + DIGEST_BYTES > len(tail):
        tail = _read_tail(file, size, length + DIGEST_BYTES)
    footer, sealed = tail[-length:], tail[-length - DIGEST_BYTES : -length]
    found = hashlib.sha256(footer).hexdigest()
    check_digest(store, key, expected=sealed.hex(), got=found)
    if seal is not None:
        check_digest(store, key, expected=seal, got=found)
    return footer


def _read_tail(file: BinaryIO, size: int, n_bytes: int) -> bytes:
    file.seek(max(0, size - n_bytes))
    return file.read(n_bytes)


def _seal_array(path: Path) -> str:
    """Write a file's digest at its end; return that of the whole."""
    with path.open("r+b") as file:
        sha256 = hashlib.file_digest(file, "sha256")
        seal = sha256.digest()
        file.write(seal)
    sha256.update(seal)
    return sha256.hexdigest()


def _check_array(store: Store, key: str, path: Path) -> str:
    """Hold a file's bytes against the digest at its end; reads, unlike a map, leave no pages in this process.

    Returns:
        The SHA-256 of the whole file, in hex.
    """
    sha256, left = hashlib.sha256(), max(0, path.stat().st_size - DIGEST_BYTES)
    with path.open("rb") as file:
        while data := file.read(min(left, READ_BYTES)):
            sha256.update(data)
            left -= len(data)
        seal = file.read()
        check_digest(store, key, expected=seal.hex(), got=sha256.hexdigest())
        sha256.update(seal)
        return sha256.hexdigest()


def widen(table: pa.Table) -> pa.Table:
    """Give a table's strings 64-bit offsets, as `DOCUMENT_SCHEMA` says; tables of older versions have 32-bit ones."""
    wide = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    return table.cast(pa.schema(wide))


def _vector(size: int) -> pa.DataType:
    return pa.list_(pa.float32(), size)
