"""Fill the token budget of a run: take documents from rankings of the whole pool, best first, each that still fits.

Workers answer for the blocks of a ranking (`rank_pool`); the driving process holds sums, and what it takes. What is
taken equals `core.selection.fill_budget` on the whole pool in memory, whatever the blocks and however many workers. A
ranking of few documents, those scored, is held as it is.

Shape suffixes: N documents taken, B documents of a block, A arms with documents.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.core.selection import fill_budget, ranking
from quad_tasks.core.selection.ranking import START, ArmLimits, Place, Rows, Wanted
from quad_tasks.stages.bandit.pool_prediction import Block, map_blocks, read_rows, within
from quad_tasks.stages.selection.rank_pool import arms_of_block
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Ranking = list[Block] | Rows

OFFERED_TOKENS = 2**16
"""Where no more is left, every block offers what may fill it, in one pass; else the cut is found in several."""
ANY_TOKENS = np.iinfo(np.int64).max


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
    """Read the first documents of rankings that hold this many tokens, and as many more as the longest document has.

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
    """Read the next documents of a ranking that hold this many tokens together, in order; none where none is left."""
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
        own = arms_of_block(arms.start_A, block)
        arms = ArmLimits(arms.start_A[own], arms.left_A[own])
    return wanted._replace(excluded=within(wanted.excluded, block), arms=arms)
