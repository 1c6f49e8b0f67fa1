"""Rank a whole pool for a choice: at random, by its arms' means, or so that arms come in proportion.

A ranking is kept in the workspace block by block while the choice is made (`fill_pool_budget`); workers write the
blocks.

Shape suffixes: B documents of a block, A arms with documents.
"""

import numpy as np
import numpy.typing as npt

from quad_tasks.core.random_order import systematic_places, uniform_hash
from quad_tasks.core.selection.ranking import arms_at
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import Block, cut_blocks, map_blocks, name_blocks, within
from quad_tasks.storage import tables
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def rank_at_random(store: Store, version: str, folder: str, n_documents: int, seed: int, closed: Int64) -> list[Block]:
    """Rank a pool version's documents at random, by a hash of their positions; those `closed` are left out."""
    blocks, shut = cut_blocks(folder, n_documents), np.sort(closed)
    items = [(store, version, block, seed, within(shut, block)) for block in blocks]
    map_blocks(write_random_block, items, "draw")
    return blocks


def rank_by_mean(
    store: Store, version: str, folder: str, start_A: Int64, mean_A: Float64, n_documents: int, closed: Int64
) -> list[Block]:
    """Rank documents by their arms' means, `[A]`, NaN for an arm that is not ranked; those `closed` are left out."""
    blocks, shut = cut_blocks(folder, n_documents), np.sort(closed)
    items = []
    for block in blocks:
        own = arms_of_block(start_A, block)
        items.append((store, version, block, start_A[own], mean_A[own], within(shut, block)))
    map_blocks(write_mean_block, items, "rank arms")
    return blocks


def rank_by_share(
    store: Store, version: str, folder: str, arms: tuple[Int64, Int64], n_documents: int, seed: int, closed: Int64
) -> list[Block]:
    """Rank documents at random so that arms come in proportion to their tokens (`systematic_places`).

    A block holds whole arms, however large: a worker's memory follows the largest arm, 100 bytes a document.

    Args:
        store: the workspace.
        version: key of the pool version.
        folder: where the blocks are kept.
        arms: [A] ascending positions at which arms begin, and [A] those arms.
        n_documents: of the version.
        seed: of the order.
        closed: positions of documents that are left out.
    """
    (start_A, arm_A), bounds, shut = arms, [0], np.sort(closed)
    for start in [*start_A.tolist(), n_documents]:
        if start - bounds[-1] >= pool_prediction.BLOCK_DOCUMENTS or start == n_documents > bounds[-1]:
            bounds.append(start)
    blocks = name_blocks(folder, bounds)
    items = []
    for block in blocks:
        own = arms_of_block(start_A, block)
        items.append((store, version, block, start_A[own], arm_A[own], seed, within(shut, block)))
    map_blocks(write_share_block, items, "draw the general share")
    return blocks


def write_random_block(store: Store, version: str, block: Block, seed: int, closed: Int64) -> None:
    """Write a block of `rank_at_random`, on a worker."""
    _write_block(store, block, uniform_hash(seed, _positions(block)), _read_tokens(store, version, block), closed)


def write_mean_block(store: Store, version: str, block: Block, start_A: Int64, mean_A: Float64, closed: Int64) -> None:
    """Write a block of `rank_by_mean`, on a worker."""
    mean_B = mean_A[arms_at(start_A, _positions(block))]
    _write_block(store, block, mean_B, _read_tokens(store, version, block), closed)


def write_share_block(
    store: Store, version: str, block: Block, start_A: Int64, arm_A: Int64, seed: int, closed: Int64
) -> None:
    """Write a block of `rank_by_share`, on a worker: minus the places, so that the lowest comes first."""
    n_tokens_B, value_B = _read_tokens(store, version, block), np.full(block.end - block.first, np.nan)
    left = np.delete(_positions(block), closed - block.first)
    arm_M = arm_A[arms_at(start_A, left)]
    value_B[left - block.first] = -systematic_places(left, n_tokens_B[left - block.first], arm_M, seed)
    _write_block(store, block, value_B, n_tokens_B, closed)


def _write_block(store: Store, block: Block, value_B: Float64, n_tokens_B: Int64, closed: Int64) -> None:
    rows = np.stack([value_B, n_tokens_B.astype(np.float64)])
    rows[0, closed - block.first] = np.nan
    tables.write_array(store, block.key, rows)


def _read_tokens(store: Store, version: str, block: Block) -> Int64:
    rows = read_positions(store, version, _positions(block), ["n_tokens"])
    n_tokens_B: Int64 = rows["n_tokens"].to_numpy().astype(np.int64)
    return n_tokens_B


def _positions(block: Block) -> Int64:
    return np.arange(block.first, block.end)


def arms_of_block(start_A: Int64, block: Block) -> slice:
    """Return which arms have documents in a block."""
    return slice(int(np.searchsorted(start_A, block.first, side="right")) - 1, int(np.searchsorted(start_A, block.end)))
