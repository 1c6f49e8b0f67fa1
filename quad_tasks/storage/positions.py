"""Documents by their position in arm order, and vectors as Arrow columns.

A position counts the pool version's documents from 0 through all its parts; an arm's documents have consecutive
positions. It names a document within a version in 8 bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.pool import open_table
from quad_tasks.storage.store import Store


def read_table(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole Parquet object.

    Raises:
        StoreKeyError: there is no such object.
        DigestMismatch: the object's bytes are not those that were written.
    """
    with open_table(store, key, pre_buffer=True) as parquet:
        return parquet.read(columns=None if columns is None else list(columns))


def read_positions(store: Store, version: str, positions: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read the documents at `positions`, in that order, fetching only the row groups they stand in.

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
        positions: [N], each in [0, documents of the version).
        columns: of `pool.arm_row_schema`.

    Raises:
        IndexError: a position is outside the version.
    """
    parts = read_manifest(store, version)["parts"]
    starts = np.cumsum([0, *[part["rows"] for part in parts]])
    if len(positions) and not (positions.min() >= 0 and positions.max() < starts[-1]):
        raise IndexError(
            f"{version}: expected positions in [0, {starts[-1]}), got {positions.min()}..{positions.max()}"
        )
    order = np.argsort(positions, kind="stable")
    ascending = positions[order]
    bounds = np.searchsorted(ascending, starts)
    pieces = [
        _take_rows(store, part["key"], ascending[bounds[p] : bounds[p + 1]] - starts[p], columns)
        for p, part in enumerate(parts)
        if bounds[p] < bounds[p + 1] or (p == 0 and not len(positions))  # no position: no row, but the columns
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(pieces).take(back)


def read_column(store: Store, version: str, column: str) -> npt.NDArray[Any]:
    """Read one numeric column of all of a version's documents, in arm order."""
    parts = read_manifest(store, version)["parts"]
    return np.concatenate([read_table(store, part["key"], [column])[column].to_numpy() for part in parts])


def vector_column(vectors_ND: npt.NDArray[np.float32]) -> pa.Array:
    """Turn [N, D] float32 into an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors_ND, dtype=np.float32).reshape(-1)), vectors_ND.shape[1]
    )


def column_vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Turn a column of fixed-size lists into [N, D] float32."""
    flat: npt.NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def _take_rows(store: Store, key: str, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read ascending `rows` of one Parquet object."""
    with open_table(store, key, pre_buffer=True) as parquet:
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        firsts = np.cumsum([0, *sizes])
        groups = np.unique(np.searchsorted(firsts, rows, side="right") - 1)
        table = parquet.read_row_groups(groups.tolist(), columns=list(columns))
        offsets = np.cumsum([0, *[sizes[g] for g in groups]])[:-1]
        group = np.searchsorted(firsts, rows, side="right") - 1
        return table.take(rows - firsts[group] + offsets[np.searchsorted(groups, group)])
