"""How many pieces a pool is cut into: what tasks, requests and memory are counted by.

Follows the bounds of the stages themselves, with documents of mean length and arms of mean size.
"""

import math
from dataclasses import dataclass

from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.pool import find_duplicates, ingest, lay_out_arms
from quad_tasks.storage import tables


@dataclass(frozen=True)
class Pieces:
    """Pieces of a pool.

    Attributes:
        shards: tables that ingest writes.
        shard_blocks: row groups of all of these.
        sorted: pieces of shards that a layout sorts.
        groups: of parts, each gathered by one task.
        ranges: that groups gather: each from nearly every sorted piece.
        parts: of the version.
        row_groups: of all parts, each read by a request of its own.
        blocks: of predictions and rankings.
        read_blocks: of documents that are in a worker's memory at once when they are predicted.
        partitions: of hashes, in which duplicates are sought.
    """

    shards: int
    shard_blocks: int
    sorted: int
    groups: int
    ranges: int
    parts: int
    row_groups: int
    blocks: int
    read_blocks: int
    partitions: int


def count_pieces(documents: int, text_bytes: int, shards: int, arms: int) -> Pieces:
    """Count a pool's pieces.

    Args:
        documents: of the pool, > 0.
        text_bytes: of their texts.
        shards: of the pool, > 0.
        arms: of its clustering.
    """
    mean_bytes, rows = text_bytes / documents, documents / shards
    sort_rows = _fitting(mean_bytes, lay_out_arms.PIECE_ROWS, lay_out_arms.PIECE_BYTES)
    group_rows = _fitting(mean_bytes, lay_out_arms.GROUP_ROWS, lay_out_arms.GROUP_BYTES)
    sorted_pieces = shards * math.ceil(rows / sort_rows)
    groups = _count_groups(documents / arms, arms, group_rows)
    in_group, in_piece = documents / groups, documents / sorted_pieces
    part_rows = _fitting(mean_bytes, tables.PART_ROWS, tables.PART_BYTES)
    parts = groups * math.ceil(in_group / part_rows)
    row_group_rows = _fitting(mean_bytes, tables.ROW_GROUP_ROWS, tables.ROW_GROUP_BYTES)
    block_rows = _fitting(mean_bytes, ingest.BLOCK_ROWS, tables.ROW_GROUP_BYTES)
    return Pieces(
        shards=shards,
        shard_blocks=shards * math.ceil(rows / block_rows),
        sorted=sorted_pieces,
        groups=groups,
        ranges=round(sorted_pieces * groups * -math.expm1(-in_piece / groups)),
        parts=parts,
        row_groups=parts * math.ceil(documents / parts / row_group_rows),
        blocks=math.ceil(documents / pool_prediction.BLOCK_DOCUMENTS),
        read_blocks=math.ceil(documents / min(pool_prediction.READ_DOCUMENTS, pool_prediction.BLOCK_DOCUMENTS)),
        partitions=math.ceil(documents / find_duplicates.PARTITION_DOCUMENTS),
    )


def _fitting(mean_bytes: float, rows: int, n_bytes: int) -> int:
    """Return how many documents of mean length fit a bound on rows and one on bytes, one at least."""
    return max(1, min(rows, int(n_bytes / max(1.0, mean_bytes))))


def _count_groups(arm_rows: float, arms: int, group_rows: int) -> int:
    """Count groups of parts: small arms together, a large one in slices."""
    if arm_rows > group_rows / 2:
        return arms * math.ceil(arm_rows / group_rows)
    return math.ceil(arms / int(group_rows / arm_rows))


def pieces_at_once(pieces: int, workers: int) -> float:
    """Return how many workers equal pieces keep busy on average: the last turn may not need all."""
    return pieces / math.ceil(pieces / workers)


def touched(draws: float, of: int) -> float:
    """Return how many of equal places this many documents, drawn at random, are expected to lie in."""
    return of * -math.expm1(draws * math.log1p(-1 / of)) if of > 1 else min(draws, of)
