"""Where the document at a position of a pool version stands, and back.

Rows count through a version's parts, one after another. Of a version that one layout wrote, position and row are the
same. A refresh may write new documents as a layer of their own, in arm order like the others': positions then count
through all layers merged in that order, and the version's merged blocks hold the row of each.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.manifests.pool import MergedBlock
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import read_array

Int64 = npt.NDArray[np.int64]


def rows_of(store: Store, version: str, positions: Int64) -> Int64:
    """Return the row of the document at each position, [N].

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
        positions: [N], each in [0, documents of the version).
    """
    blocks, starts = _merged(store, version)
    if not blocks:
        return positions
    rows, number = np.empty(len(positions), dtype=np.int64), np.searchsorted(starts, positions, side="right") - 1
    for block in np.unique(number).tolist():
        own = number == block
        rows[own] = _read_rows(store, blocks[block])[positions[own] - starts[block]]
    return rows


def in_order(store: Store, version: str, values_R: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Put what is known of each row, [R], in the order of positions, [N]."""
    blocks, _ = _merged(store, version)
    return np.concatenate([values_R[_read_rows(store, block)] for block in blocks]) if blocks else values_R


def positions_of(store: Store, version: str, rows: Int64) -> Int64:
    """Return the position of the document in each row, [N], -1 for one that is no longer in the version.

    Reads the rows of all of a version's documents once; `rows` are distinct.
    """
    blocks, starts = _merged(store, version)
    if not blocks:
        return rows
    order = np.argsort(rows, kind="stable")
    positions = np.full(len(rows), -1, dtype=np.int64)
    for block, start in zip(blocks, starts.tolist(), strict=False):
        stored = _read_rows(store, block).astype(np.int64)
        offsets = np.flatnonzero(np.isin(stored, rows))
        first = np.searchsorted(rows, stored[offsets], sorter=order)
        positions[order[first]] = start + offsets
    return positions


@functools.lru_cache(maxsize=4)
def _merged(store: Store, version: str) -> tuple[tuple[MergedBlock, ...], Int64]:
    """Read a version's blocks once a process, and the first position of each, the end last."""
    blocks = read_version(store, version).merged
    return blocks, np.cumsum([0, *[block.documents for block in blocks]])


@functools.lru_cache(maxsize=16)
def _read_rows(store: Store, block: MergedBlock) -> npt.NDArray[np.unsignedinteger]:
    rows: npt.NDArray[np.unsignedinteger] = read_array(store, block.key, block.sha256)
    return rows
