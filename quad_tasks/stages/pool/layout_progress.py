"""Keep what a layout has finished, so that an interrupted one goes on from there and ends with the same bytes.

A sorted piece of a shard and a written group of parts have a record each, written after their tables: what they were
made from, the tables' digests, and the sums that a layout needs of them. A later start takes them if it would make them
from the same and the tables' bytes are those; else they are made again. The records go when the version is committed.

"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quad_tasks.manifests.pool import Part
from quad_tasks.stages.pool.arm_sums import SUMS, ArmSums, sums_arrays, sums_of
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.manifest import DigestMismatch, check_file
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import InvalidTensors, load_tensors, save_tensors

Int64 = npt.NDArray[np.int64]
MADE_FROM, SHA256, PARTS = "made_from", "table_sha256", "parts"
RECORDS = 2
"""Counts what pieces, groups and their records have been: another release's, interrupted, are made again, not taken."""
NOT_AS_RECORDED = (StoreKeyError, DigestMismatch, InvalidTensors)


@dataclass(frozen=True)
class Piece:
    """Rows of a shard in arm order.

    Attributes:
        ranges: [M, 3] of each group of parts with rows here: its number, the first of its rows in the piece, how many.
        sha256: of its table's bytes, in hex.
    """

    ranges: Int64
    sha256: str


@dataclass(frozen=True)
class PartSummary:
    """What a part holds: its table, the bytes of its texts in UTF-8, and sums over its documents by arm."""

    part: Part
    bytes: int
    sums: ArmSums


def keep_piece(store: Store, key: str, made_from: str, piece: Piece) -> None:
    """Record a sorted piece.

    Args:
        store: the workspace.
        key: of the record.
        made_from: digest of all that the piece follows from.
        piece: its table stands already.
    """
    save_tensors(store, key, {"ranges": piece.ranges}, {MADE_FROM: made_from, SHA256: piece.sha256})


def find_piece(store: Store, key: str, table: str, made_from: str) -> Piece | None:
    """Return a piece that an earlier attempt sorted, its table checked; None where it has to be made.

    Args:
        store: the workspace.
        key: of the record.
        table: key of the piece's table.
        made_from: digest of all that the piece follows from.
    """
    try:
        arrays, metadata = load_tensors(store, key)
        if metadata[MADE_FROM] != made_from:
            return None
        check_file(store, table, metadata[SHA256])
    except NOT_AS_RECORDED:
        return None
    return Piece(arrays["ranges"], metadata[SHA256])


def keep_group(store: Store, key: str, made_from: str, summaries: Sequence[PartSummary]) -> None:
    """Record a group of parts, whose tables stand already; arguments as of `keep_piece`."""
    named = [(i, sums_arrays(summary.sums)) for i, summary in enumerate(summaries)]
    arrays = {f"{i}/{name}": array for i, own in named for name, array in own.items()}
    parts = [{"part": s.part.model_dump(), "bytes": s.bytes} for s in summaries]
    save_tensors(store, key, arrays, {MADE_FROM: made_from, PARTS: json.dumps(parts)})


def find_group(store: Store, key: str, made_from: str) -> list[PartSummary] | None:
    """Return the parts of a group that an earlier attempt wrote, their tables checked; None: they have to be made."""
    try:
        arrays, metadata = load_tensors(store, key)
        if metadata[MADE_FROM] != made_from:
            return None
        parts = json.loads(metadata[PARTS])
        for one in parts:
            check_file(store, one["part"]["key"], one["part"]["sha256"])
    except NOT_AS_RECORDED:
        return None
    return [
        PartSummary(
            Part.model_validate(one["part"]),
            one["bytes"],
            sums_of({name: arrays[f"{i}/{name}"] for name in SUMS}),
        )
        for i, one in enumerate(parts)
    ]
