"""Rankings of a whole pool, kept in the workspace block by block while a choice is made, and budgets filled from them.

Workers write the blocks and answer for them; the driving process holds sums, and what it takes. What is taken equals
`core.selection.fill_budget` on the whole pool in memory, whatever the blocks and however many workers. A ranking of few
documents, those scored, is held as it is.

Shape suffixes: N documents taken, B documents of a block, A arms with documents, K arms.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.core.random_order import systematic_places, uniform_hash
from quad_tasks.core.selection import fill_budget, ranking
from quad_tasks.core.selection.ranking import START, ArmLimits, Place, Rows, Wanted
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import Block, cut_blocks, map_blocks, name_blocks, read_rows, within
from quad_tasks.storage import tables
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Ranking = list[Block] | Rows

OFFERED_TOKENS = 2**16
"""Where no more is left, every block offers what may fill it, in one pass; else the cut is found in several."""
ANY_TOKENS = np.iinfo(np.int64).max


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
        own = _arms_of_block(start_A, block)
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
        own = _arms_of_block(start_A, block)
        items.append((store, version, block, start_A[own], arm_A[own], seed, within(shut, block)))
    map_blocks(write_share_block, items, "draw the general share")
    return blocks


def write_random_block(store: Store, version: str, block: Block, seed: int, closed: Int64) -> None:
    """Write a block of `rank_at_random`, on a worker."""
    _write_block(store, block, uniform_hash(seed, _positions(block)), _read_tokens(store, version, block), closed)


def write_mean_block(store: Store, version: str, block: Block, start_A: Int64, mean_A: Float64, closed: Int64) -> None:
    """Write a block of `rank_by_mean`, on a worker."""
    mean_B = mean_A[ranking.arms_at(start_A, _positions(block))]
    _write_block(store, block, mean_B, _read_tokens(store, version, block), closed)


def write_share_block(
    store: Store, version: str, block: Block, start_A: Int64, arm_A: Int64, seed: int, closed: Int64
) -> None:
    """Write a block of `rank_by_share`, on a worker: minus the places, so that the lowest comes first."""
    n_tokens_B, value_B = _read_tokens(store, version, block), np.full(block.end - block.first, np.nan)
    left = np.delete(_positions(block), closed - block.first)
    arm_M = arm_A[ranking.arms_at(start_A, left)]
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


def _arms_of_block(start_A: Int64, block: Block) -> slice:
    """Return which arms have documents in a block."""
    return slice(int(np.searchsorted(start_A, block.first, side="right")) - 1, int(np.searchsorted(start_A, block.end)))


def fill_rankings(
    store: Store,
    rankings: Sequence[Ranking],
    budget_tokens: int,
    excluded: Int64,
    start_A: Int64 | None = None,
    per_arm_share: float | None = None,
    above: float = -np.inf,
) -> Rows:
    """Fill a token budget greedily from rankings one after another, as `fill_budget.fill_budget_by_arm` does.

    Args:
        store: the workspace.
        rankings: in order; no document is in two of them.
        budget_tokens: most tokens to take.
        excluded: positions of documents that may not be taken.
        start_A: [A] position at which each arm begins; needed for `per_arm_share`.
        per_arm_share: largest share of the budget that one arm may fill; None: no limit.
        above: value that a document's must exceed.

    Raises:
        ValueError: a negative budget.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    arms = None
    if per_arm_share is not None and start_A is not None:
        arms = ArmLimits(start_A, np.full(len(start_A), int(per_arm_share * budget_tokens)))
    left, taken = budget_tokens, []
    for ranked in rankings:
        wanted = Wanted(START, left, np.sort(excluded), arms, above)
        while left > 0 and len((run := next_run(store, ranked, wanted, left)).position_B):
            after = Place(float(run.value_B[-1]), int(run.position_B[-1]))
            if arms is not None:
                run, arms = ranking.take_within_arms(run, arms, left)
            taken.append(run)
            left -= int(run.tokens_B.sum())
            wanted = wanted._replace(after=after, tokens=left, arms=arms)
    return ranking.join(taken)


def fill_without_duplicates(
    fill: Callable[[Int64], Rows], find_near_duplicates: fill_budget.FindNearDuplicates, before: Int64 | None = None
) -> Rows:
    """Fill a budget, leave out near-duplicates of what was taken or of those `before`, and fill again until none is.

    Args:
        fill: fills the budget without documents at the positions given.
        find_near_duplicates: of positions, best first, returns those that nearly duplicate an earlier one.
        before: positions taken before.
    """
    before, excluded = np.empty(0, dtype=np.int64) if before is None else before, np.empty(0, dtype=np.int64)
    while len((taken := fill(excluded)).position_B):
        duplicates = find_near_duplicates(np.concatenate([before, taken.position_B]))
        if not np.isin(taken.position_B, duplicates).any():
            break
        excluded = np.union1d(excluded, duplicates)
    return taken


def read_leading(
    store: Store, rankings: Sequence[Ranking], tokens: int, excluded: Int64, above: float = -np.inf
) -> Rows:
    """Read the first documents of rankings that hold so many tokens, and as many more as the longest document has.

    None of them is passed over because it does not fit.

    Args:
        store: the workspace.
        rankings: in order; all but the last are held as rows.
        tokens: of what is read.
        excluded: positions of documents that are left out.
        above: value that a document's must exceed.
    """
    wanted = Wanted(START, ANY_TOKENS, np.sort(excluded), above=above)
    left, pieces = tokens + max((_longest(store, ranked, wanted) for ranked in rankings), default=0), list[Rows]()
    for ranked in rankings:
        pieces.append(next_run(store, ranked, wanted, left))
        left -= int(pieces[-1].tokens_B.sum())
        if isinstance(ranked, Rows) and len(pieces[-1].position_B) < len(
            ranking.keep_wanted(ranked, wanted).position_B
        ):
            break
    return ranking.join(pieces)


def next_run(store: Store, ranked: Ranking, wanted: Wanted, tokens: int) -> Rows:
    """Read the next documents of a ranking that hold so many tokens together, in order; none where none is left."""
    if isinstance(ranked, Rows):
        return ranking.merge_run([ranking.keep_wanted(ranked, wanted)], tokens)
    asked = [(store, block, _wanted_of(wanted, block)) for block in ranked]
    if tokens <= OFFERED_TOKENS:
        return ranking.merge_run(map_blocks(offer_leading, [(*one, tokens) for one in asked], "select"), tokens)

    def count(prefix: int, bits: int) -> list[ranking.Digits]:
        return map_blocks(count_digits, [(*one, prefix, bits) for one in asked], "find the cut")

    found = ranking.find_last_value(count, tokens)
    if found is None:
        return ranking.NO_ROWS
    value, left = found
    shares = ranking.split_among_blocks(map_blocks(tokens_at, [(*one, value) for one in asked], "find the cut"), left)
    items = [(*one, value, share) for one, share in zip(asked, shares, strict=True)]
    return ranking.in_order(ranking.join(map_blocks(take_best, items, "select")))


def offer_leading(store: Store, block: Block, wanted: Wanted, tokens: int) -> Rows:
    """Return a block's best documents, as `ranking.take_leading`, on a worker."""
    return ranking.take_leading(_read_wanted(store, block, wanted), tokens)


def count_digits(store: Store, block: Block, wanted: Wanted, prefix: int, bits: int) -> ranking.Digits:
    """Sum a block's tokens by the next digit of values, as `ranking.count_digits`, on a worker."""
    return ranking.count_digits(_read_wanted(store, block, wanted), prefix, bits)


def tokens_at(store: Store, block: Block, wanted: Wanted, value: float) -> int:
    """Sum the tokens of a block's documents at a value, on a worker."""
    return ranking.tokens_at(_read_wanted(store, block, wanted), value)


def take_best(store: Store, block: Block, wanted: Wanted, value: float, tokens: int) -> Rows:
    """Return a block's documents above a value and the first ones at it, as `ranking.take_best`, on a worker."""
    return ranking.take_best(_read_wanted(store, block, wanted), value, tokens)


def longest(store: Store, block: Block, wanted: Wanted) -> int:
    """Return the most tokens of one of a block's documents, on a worker."""
    return int(_read_wanted(store, block, wanted).tokens_B.max(initial=0))


def _longest(store: Store, ranked: Ranking, wanted: Wanted) -> int:
    if isinstance(ranked, Rows):
        return int(ranking.keep_wanted(ranked, wanted).tokens_B.max(initial=0))
    asked = [(store, block, _wanted_of(wanted, block)) for block in ranked]
    return max(map_blocks(longest, asked, "find the longest"), default=0)


def _read_wanted(store: Store, block: Block, wanted: Wanted) -> Rows:
    return ranking.keep_wanted(read_rows(store, block), wanted)


def _wanted_of(wanted: Wanted, block: Block) -> Wanted:
    """Keep of what is wanted what concerns a block."""
    arms = wanted.arms
    if arms is not None:
        own = _arms_of_block(arms.start_A, block)
        arms = ArmLimits(arms.start_A[own], arms.left_A[own])
    return wanted._replace(excluded=within(wanted.excluded, block), arms=arms)
