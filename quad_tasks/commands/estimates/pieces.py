"""How many pieces a pool is cut into: what tasks, requests and memory are counted by.

Follows the bounds of the stages themselves, with documents of mean length and arms of mean size.
"""

import math
from dataclasses import dataclass

from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.pool import find_duplicates, ingest, sort_layout
from quad_tasks.storage import tables


@dataclass(frozen=True)
class Pieces:
    """Pieces of a pool.

    Attributes:
        shards: tables that ingest writes.
        shard_blocks: row groups of all of these.
        sorted: pieces of shards that a layout sorts.
        bundles: of sorted pieces, each dealt out by one task.
        groups: of parts.
        ranges: of groups, each gathered by one task.
        dealt: that ranges gather: from nearly every bundle one.
        parts: of the version.
        row_groups: of all parts, each read by a request of its own.
        blocks: of predictions and rankings.
        read_blocks: of documents that are in a worker's memory at once when they are predicted.
        partitions: of hashes, in which duplicates are sought.
        hash_bundles: of shards, whose hashes one task deals out to the partitions.
    """

    shards: int
    shard_blocks: int
    sorted: int
    bundles: int
    groups: int
    ranges: int
    dealt: int
    parts: int
    row_groups: int
    blocks: int
    read_blocks: int
    partitions: int
    hash_bundles: int


def count_pieces(documents: int, text_bytes: int, shards: int, arms: int) -> Pieces:
    """Count a pool's pieces.

    Args:
        documents: of the pool, > 0.
        text_bytes: of their texts.
        shards: of the pool, > 0.
        arms: of its clustering.
    """
    mean_bytes, rows = text_bytes / documents, documents / shards
    sort_rows = _fitting(mean_bytes, sort_layout.PIECE_ROWS, sort_layout.PIECE_BYTES)
    group_rows = _fitting(mean_bytes, sort_layout.GROUP_ROWS, sort_layout.GROUP_BYTES)
    sorted_pieces = shards * math.ceil(rows / sort_rows)
    groups = _count_groups(documents / arms, arms, group_rows)
    in_group = documents / groups
    bundles = _count_bundles(sorted_pieces, documents, text_bytes)
    ranges = math.ceil(groups / min(sort_layout.RANGE_GROUPS, math.ceil(groups / sort_layout.SPREAD)))
    part_rows = _fitting(mean_bytes, tables.PART_ROWS, tables.PART_BYTES)
    parts = groups * math.ceil(in_group / part_rows)
    row_group_rows = _fitting(mean_bytes, tables.ROW_GROUP_ROWS, tables.ROW_GROUP_BYTES)
    block_rows = _fitting(mean_bytes, ingest.BLOCK_ROWS, tables.ROW_GROUP_BYTES)
    return Pieces(
        shards=shards,
        shard_blocks=shards * math.ceil(rows / block_rows),
        sorted=sorted_pieces,
        bundles=bundles,
        groups=groups,
        ranges=ranges,
        dealt=round(bundles * ranges * -math.expm1(-documents / bundles / ranges)),
        parts=parts,
        row_groups=parts * math.ceil(documents / parts / row_group_rows),
        blocks=math.ceil(documents / pool_prediction.BLOCK_DOCUMENTS),
        read_blocks=math.ceil(documents / min(pool_prediction.READ_DOCUMENTS, pool_prediction.BLOCK_DOCUMENTS)),
        partitions=math.ceil(documents / find_duplicates.PARTITION_DOCUMENTS),
        hash_bundles=math.ceil(shards / max(1, int(find_duplicates.PARTITION_DOCUMENTS / rows))),
    )


def _fitting(mean_bytes: float, rows: int, n_bytes: int) -> int:
    """Return how many documents of mean length fit a bound on rows and one on bytes, one at least."""
    return max(1, min(rows, int(n_bytes / max(1.0, mean_bytes))))


def _count_groups(arm_rows: float, arms: int, group_rows: int) -> int:
    """Count groups of parts: small arms together, a large one in slices."""
    if arm_rows > group_rows / 2:
        return arms * math.ceil(arm_rows / group_rows)
    return math.ceil(arms / int(group_rows / arm_rows))


def _count_bundles(pieces: int, documents: int, text_bytes: int) -> int:
    """Count bundles of sorted pieces: a bound on both rows and bytes, and a share of the pool."""
    shares = (
        amount / pieces / min(bound, max(1.0, amount / sort_layout.SPREAD))
        for amount, bound in ((documents, sort_layout.BUNDLE_ROWS), (text_bytes, sort_layout.BUNDLE_BYTES))
    )
    return math.ceil(pieces / max(1, int(1 / max(shares))))


def pieces_at_once(pieces: int, workers: int) -> float:
    """Return how many workers equal pieces keep busy on average: the last turn may not need all."""
    return pieces / math.ceil(pieces / workers)


def touched(draws: float, of: int) -> float:
    """Return how many of equal places this many documents, drawn at random, are expected to lie in."""
    return of * -math.expm1(draws * math.log1p(-1 / of)) if of > 1 else min(draws, of)
