"""Find what a token budget takes of a ranking whose documents lie in blocks, without sorting it as a whole.

A ranking goes from the highest value to the lowest, of equal values from the lowest position on. A run is the longest
stretch of it, from a place on, whose documents fit what is left of a budget: filling a budget greedily takes run after
run, each of the documents that still fit (`fill_budget`). Blocks lie with workers; who fills the budget holds sums and
the documents taken. A run's end is found by radix search over values: each pass fixes 16 more bits of it, by the tokens
of the documents that share the bits before. Where little is left, blocks offer what could be the run instead.

Shape suffixes: B documents of a block, U distinct digits, A arms.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Digits = tuple[Int64, Int64]
"""Ascending digits of values, [U], and the tokens of the documents that have each, [U]."""

DIGIT_BITS, KEY_BITS = 16, 64
SIGN = np.uint64(2**63)


class Rows(NamedTuple):
    """Documents of a ranking.

    Attributes:
        position_B: [B] int64.
        value_B: [B] float64, higher first; NaN: not in the ranking.
        tokens_B: [B] int64, > 0.
    """

    position_B: Int64
    value_B: Float64
    tokens_B: Int64


class Place(NamedTuple):
    """A place in a ranking: that of the document with this value and position."""

    value: float
    position: int


class ArmLimits(NamedTuple):
    """What arms may still hold.

    Attributes:
        start_A: [A] position at which each arm's documents begin, ascending; they end where the next arm's begin.
        left_A: [A] tokens that each arm may still hold.
    """

    start_A: Int64
    left_A: Int64


class Wanted(NamedTuple):
    """Which documents a run may hold.

    Attributes:
        after: the place after which it begins.
        tokens: most tokens of a document.
        excluded: positions of documents that may not be taken, ascending.
        arms: limits by arm; None: there are none.
        above: value that a document's must exceed.
    """

    after: Place
    tokens: int
    excluded: Int64
    arms: ArmLimits | None = None
    above: float = -np.inf


START = Place(np.inf, -1)
"""Before every document."""
NO_ROWS = Rows(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))


def arms_at(start_A: Int64, position_B: Int64) -> Int64:
    """Find the arm of each position among arms that begin at ascending positions, [B]."""
    found: Int64 = np.searchsorted(start_A, position_B, side="right") - 1
    return found


def keep_wanted(rows: Rows, wanted: Wanted) -> Rows:
    """Keep the documents of a block that a run may hold."""
    kept_B = (rows.tokens_B <= wanted.tokens) & (rows.value_B > wanted.above)
    value, position = wanted.after
    kept_B &= (rows.value_B < value) | ((rows.value_B == value) & (rows.position_B > position))
    kept_B &= ~np.isin(rows.position_B, wanted.excluded)
    if wanted.arms is not None:
        kept_B &= rows.tokens_B <= wanted.arms.left_A[arms_at(wanted.arms.start_A, rows.position_B)]
    return take_rows(rows, kept_B)


def count_digits(rows: Rows, prefix: int, bits: int) -> Digits:
    """Sum tokens by the next digit of values, of the documents whose values' first `bits` bits are `prefix`."""
    key_B, tokens_B = _keys(rows.value_B), rows.tokens_B
    if bits:
        chosen = key_B >> np.uint64(KEY_BITS - bits) == np.uint64(prefix)
        key_B, tokens_B = key_B[chosen], tokens_B[chosen]
    digit_B = key_B >> np.uint64(KEY_BITS - bits - DIGIT_BITS) & np.uint64(2**DIGIT_BITS - 1)
    digits, where = np.unique(digit_B.astype(np.int64), return_inverse=True)
    return digits, np.bincount(where, weights=tokens_B, minlength=len(digits)).astype(np.int64)


def find_last_value(count: Callable[[int, int], Sequence[Digits]], budget_tokens: int) -> tuple[float, int] | None:
    """Find the value at which a budget ends, best documents first: the first value whose documents do not all fit.

    Args:
        count: returns each block's `count_digits`, of a prefix and its bits.
        budget_tokens: of the run.

    Returns:
        The value, the lowest one where all documents fit, and the tokens that the documents above it leave; None where
        there is no document.
    """
    prefix, left = 0, budget_tokens
    for bits in range(0, KEY_BITS, DIGIT_BITS):
        digits, tokens = _merge(count(prefix, bits))
        if len(digits) == 0:
            return None
        filled = np.cumsum(tokens[::-1])
        index = min(int(np.searchsorted(filled, left, side="right")), len(digits) - 1)
        left -= int(filled[index - 1]) if index else 0
        prefix = prefix << DIGIT_BITS | int(digits[::-1][index])
    return _value_of(prefix), left


def tokens_at(rows: Rows, value: float) -> int:
    """Sum the tokens of a block's documents at a value."""
    return int(rows.tokens_B[rows.value_B == value].sum())


def split_among_blocks(tokens_of: Sequence[int], left: int) -> list[int]:
    """Split what is left at a run's last value among blocks in the order of positions, by their tokens at it."""
    tokens = np.array(tokens_of, dtype=np.int64)
    before = np.cumsum(tokens) - tokens
    shares: list[int] = np.clip(left - before, 0, tokens).tolist()
    return shares


def take_best(rows: Rows, value: float, tokens: int) -> Rows:
    """Take a block's documents above a value, and the first ones at it that hold this many tokens."""
    at = np.flatnonzero(rows.value_B == value)
    at = at[np.argsort(rows.position_B[at], kind="stable")]
    at = at[np.cumsum(rows.tokens_B[at]) <= tokens]
    taken = np.concatenate([np.flatnonzero(rows.value_B > value), at])
    return take_rows(rows, taken)


def take_leading(rows: Rows, tokens: int) -> Rows:
    """Take a block's best documents that hold this many tokens, and the one after them: it may be what ends the run."""
    ordered = in_order(rows)
    count = int(np.searchsorted(np.cumsum(ordered.tokens_B), tokens, side="right")) + 1
    return take_rows(ordered, slice(count))


def take_rows(rows: Rows, taken: slice | Int64 | npt.NDArray[np.bool_]) -> Rows:
    """Take some of the documents, by their numbers or by a mask."""
    return Rows(rows.position_B[taken], rows.value_B[taken], rows.tokens_B[taken])


def in_order(rows: Rows) -> Rows:
    """Put documents in the order of the ranking."""
    order = np.lexsort((rows.position_B, -rows.value_B))
    return take_rows(rows, order)


def merge_run(pieces: Sequence[Rows], tokens: int) -> Rows:
    """Merge what blocks gave, and keep the run: the first documents in order that hold this many tokens."""
    merged = in_order(join(pieces))
    count = int(np.searchsorted(np.cumsum(merged.tokens_B), tokens, side="right"))
    return take_rows(merged, slice(count))


def join(pieces: Sequence[Rows]) -> Rows:
    """Join documents, in the order given."""
    return Rows(
        np.concatenate([NO_ROWS.position_B, *(rows.position_B for rows in pieces)]),
        np.concatenate([NO_ROWS.value_B, *(rows.value_B for rows in pieces)]),
        np.concatenate([NO_ROWS.tokens_B, *(rows.tokens_B for rows in pieces)]),
    )


def take_within_arms(run: Rows, limits: ArmLimits, budget_tokens: int) -> tuple[Rows, ArmLimits]:
    """Take of a run, in order, what fits the budget and its arm's limit; return it and what the arms may still hold."""
    arm_left, left, taken = limits.left_A.copy(), budget_tokens, []
    arms = arms_at(limits.start_A, run.position_B)
    for row, (arm, tokens) in enumerate(zip(arms.tolist(), run.tokens_B.tolist(), strict=True)):
        if tokens <= left and tokens <= arm_left[arm]:
            taken.append(row)
            left -= tokens
            arm_left[arm] -= tokens
    return take_rows(run, np.array(taken, dtype=np.int64)), limits._replace(left_A=arm_left)


def _merge(counts: Sequence[Digits]) -> Digits:
    """Add up tokens by digit over blocks."""
    digits, where = np.unique(np.concatenate([digits for digits, _ in counts]), return_inverse=True)
    tokens = np.zeros(len(digits), dtype=np.int64)
    np.add.at(tokens, where, np.concatenate([tokens for _, tokens in counts]))
    return digits, tokens


def _keys(value_B: Float64) -> UInt64:
    """Map values to integers in the same order."""
    bits = (value_B + 0.0).view(np.uint64)  # of -0.0, 0.0: they are equal
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value_of(key: int) -> float:
    """Return the value of a key."""
    bits = np.array([key], dtype=np.uint64)
    return float(np.where(bits & SIGN, bits ^ SIGN, ~bits).view(np.float64)[0])
