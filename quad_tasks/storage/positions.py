"""Documents by their position in arm order, and vectors as Arrow columns.

A position counts the pool version's documents from 0 in arm order; an arm's documents have consecutive positions. It
names a document within a version in 8 bytes.

Rows count through a version's parts, one after another. Of a version that one layout wrote, position and row are the
same. A refresh may write new documents as a layer of their own, in arm order like the others': positions then count
through all layers merged in that order, and the version's merged blocks hold the row of each.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.manifests.pool import MergedBlock, Part
from quad_tasks.storage.manifest import check_file
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import open_table, read_array, widen


def read_table(
    store: Store,
    key: str,
    columns: Sequence[str] | None = None,
    *,
    sha256: str | None = None,
    seal: str | None = None,
) -> pa.Table:
    """Read a whole Parquet object.

    Args:
        store: the workspace.
        key: the object's key.
        columns: names; None: all.
        sha256: digest of the object's bytes, as its manifest has it; None: nothing has one.
        seal: of a large table in place of its digest: only what is read is checked then.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written, or another table stands there.
    """
    if sha256 is not None:
        check_file(store, key, sha256)
    with open_table(store, key, pre_buffer=True, seal=seal) as parquet:
        return parquet.read(columns=None if columns is None else list(columns))


def read_positions(store: Store, version: str, positions: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read the documents at `positions`, in that order, fetching only the row groups they stand in.

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
        positions: [N], each in [0, documents of the version).
        columns: of `tables.arm_row_schema`.

    Raises:
        IndexError: a position is outside the version.
    """
    places = _read_places(store, version)
    parts, starts = places.parts, places.part_starts
    if len(positions) and not (positions.min() >= 0 and positions.max() < places.documents):
        raise IndexError(
            f"{version}: expected positions in [0, {places.documents}), got {positions.min()}..{positions.max()}"
        )
    rows = rows_of(store, version, positions)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    part = np.searchsorted(starts, ascending, side="right") - 1
    wanted = np.unique(part) if len(rows) else np.zeros(1, dtype=np.int64)  # no position: no row, but the columns
    bounds = np.append(np.searchsorted(part, wanted), len(part))
    pieces = [
        take_rows(store, parts[p].key, ascending[first:end] - starts[p], columns, parts[p].seal)
        for p, first, end in zip(wanted.tolist(), bounds[:-1], bounds[1:], strict=True)
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(pieces).take(back)


class _Places(NamedTuple):
    """A version's `parts` and `blocks`, the first row of each part and position of each block, the ends last."""

    documents: int
    parts: tuple[Part, ...]
    part_starts: npt.NDArray[np.int64]
    blocks: tuple[MergedBlock, ...]
    block_starts: npt.NDArray[np.int64]


@functools.lru_cache(maxsize=4)
def _read_places(store: Store, version: str) -> _Places:
    """Read where a version's documents stand once a process."""
    manifest = read_version(store, version)
    parts, blocks = manifest.parts, manifest.merged
    part_starts = np.cumsum([0, *[part.rows for part in parts]])
    return _Places(
        manifest.documents, parts, part_starts, blocks, np.cumsum([0, *[block.documents for block in blocks]])
    )


def rows_of(store: Store, version: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the row of the document at each position, [N].

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
        positions: [N], each in [0, documents of the version).
    """
    places = _read_places(store, version)
    if not places.blocks:
        return positions
    rows, number = np.empty(len(positions), np.int64), np.searchsorted(places.block_starts, positions, side="right") - 1
    for block in np.unique(number).tolist():
        own = number == block
        rows[own] = _read_rows(store, places.blocks[block])[positions[own] - places.block_starts[block]]
    return rows


def positions_of(store: Store, version: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the position of the document in each row, [N], -1 for one that is no longer in the version.

    Reads the rows of all of a version's documents once; `rows` are distinct.
    """
    places = _read_places(store, version)
    if not places.blocks or not len(rows):
        return rows
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    positions = np.full(len(rows), -1, dtype=np.int64)
    for block, start in zip(places.blocks, places.block_starts.tolist(), strict=False):
        stored = _read_rows(store, block).astype(np.int64)
        near = np.minimum(np.searchsorted(ascending, stored), len(rows) - 1)
        found = np.flatnonzero(ascending[near] == stored)
        positions[order[near[found]]] = start + found
    return positions


@functools.lru_cache(maxsize=16)
def _read_rows(store: Store, block: MergedBlock) -> npt.NDArray[np.unsignedinteger]:
    rows: npt.NDArray[np.unsignedinteger] = read_array(store, block.key, block.sha256)
    return rows


def nth_open(closed_C: npt.NDArray[np.int64], number_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions of the documents that this many open ones precede, [N].

    Args:
        closed_C: [C] positions that are not open, ascending.
        number_N: [N] numbers among the open documents, from 0.
    """
    open_before_C = closed_C - np.arange(len(closed_C))
    positions: npt.NDArray[np.int64] = number_N + np.searchsorted(open_before_C, number_N, side="right")
    return positions


def read_part(store: Store, part: Part, columns: Sequence[str]) -> pa.Table:
    """Read columns of one part of a pool version."""
    return read_table(store, part.key, columns, seal=part.seal)


def vector_column(vectors_ND: npt.NDArray[np.float32]) -> pa.Array:
    """Turn [N, D] float32 into an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors_ND, dtype=np.float32).reshape(-1)), vectors_ND.shape[1]
    )


def column_vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Turn a column of fixed-size lists into [N, D] float32."""
    flat: npt.NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def take_rows(
    store: Store, key: str, rows: npt.NDArray[np.int64], columns: Sequence[str], seal: str | None = None
) -> pa.Table:
    """Read ascending `rows` of one Parquet object, fetching only the row groups they stand in."""
    with open_table(store, key, pre_buffer=True, seal=seal) as parquet:
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        firsts = np.cumsum([0, *sizes])
        groups = np.unique(np.searchsorted(firsts, rows, side="right") - 1)
        table = widen(parquet.read_row_groups(groups.tolist(), columns=list(columns)))
        offsets = np.cumsum([0, *[sizes[g] for g in groups]])[:-1]
        group = np.searchsorted(firsts, rows, side="right") - 1
        return table.take(rows - firsts[group] + offsets[np.searchsorted(groups, group)])
