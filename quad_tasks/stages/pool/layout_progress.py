"""Keep what a layout has finished, so that an interrupted one goes on from there and ends with the same bytes.

A sorted bundle of shards and a written group of parts have a record each, written after their objects: what they were
made from, the objects' digests, and the sums that a layout needs of them. A later start takes them if it would make
them from the same and the objects' bytes are those; else they are made again. The records go when the version is
committed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quad_tasks.manifests.pool import Part
from quad_tasks.stages.pool.arm_sums import SUMS, ArmSums, sums_arrays, sums_of
from quad_tasks.stages.pool.shuffle import Dealt
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.manifest import DigestMismatch, check_file
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import InvalidTensors, load_tensors, save_tensors

MADE_FROM, SHA256, PARTS = "made_from", "object_sha256", "parts"
RECORDS = 3
"""Counts what bundles, groups and records have been: another release's, interrupted, are made again, not taken."""
NOT_AS_RECORDED = (StoreKeyError, DigestMismatch, InvalidTensors)


@dataclass(frozen=True)
class PartSummary:
    """What a part holds: its table, the bytes of its texts in UTF-8, and sums over its documents by arm."""

    part: Part
    bytes: int
    sums: ArmSums


def keep_bundle(store: Store, key: str, made_from: str, dealt: Dealt) -> None:
    """Record a sorted bundle.

    Args:
        store: the workspace.
        key: of the record.
        made_from: digest of all that the bundle follows from.
        dealt: its object stands already.
    """
    save_tensors(store, key, {"bounds": dealt.bounds}, {MADE_FROM: made_from, SHA256: dealt.sha256})


def find_bundle(store: Store, key: str, bundle: str, made_from: str) -> Dealt | None:
    """Return a bundle that an earlier attempt sorted, its object checked; None where it has to be made.

    Args:
        store: the workspace.
        key: of the record.
        bundle: key of the object.
        made_from: digest of all that the bundle follows from.
    """
    try:
        arrays, metadata = load_tensors(store, key)
        if metadata[MADE_FROM] != made_from:
            return None
        check_file(store, bundle, metadata[SHA256])
    except NOT_AS_RECORDED:
        return None
    return Dealt(arrays["bounds"], metadata[SHA256])


def keep_group(store: Store, key: str, made_from: str, summaries: Sequence[PartSummary]) -> None:
    """Record a group of parts, whose tables stand already; arguments as of `keep_bundle`."""
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
