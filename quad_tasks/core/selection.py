"""Which candidates are taken for a token budget: rankings, and how a ranking fills the budget.

Owns the budget's exactness: what is taken never exceeds it, and after it no eligible document that was left would still
fit, so that the shortfall is less than one document. Refuses to score or predict: influence per target token comes
measured (`influence.py`) or predicted (`prediction.py`). Influence > 0: training on it lowers the reference loss.

Who is eligible, best first, by mode:

    instance   scored documents above τ, by influence (the paper)
    cluster    those first; then the unscored documents of arms whose mean is above τ, by that mean, in arm order (the
               published code takes an accepted arm's next documents unseen)
    predicted  documents above τ, by influence measured or predicted

A `general_share` of the budget may go to the rest of the pool instead, every arm giving in proportion to its tokens: it
is what the other domains keep while the reference gains (half the budget halved their loss in the pilot).

Order among equals is by id, so that no result depends on the order of rows, except where `cluster` follows an arm's.

Shape suffixes: N candidates, K arms, D embedding, B documents taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Mode = Literal["instance", "cluster", "predicted"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Documents that may be taken, as parallel arrays.

    Attributes:
        id: [N] unique and ordered: names, or positions.
        arm: [N] int32.
        n_tokens: [N] int64, > 0, in the run's tokenizer.
        influence: [N] float64 per target token, measured or predicted; NaN where neither.
        scored: [N] bool, whether the influence was measured.
    """

    id: npt.NDArray[np.generic]
    arm: npt.NDArray[np.int32]
    n_tokens: npt.NDArray[np.int64]
    influence: npt.NDArray[np.float64]
    scored: npt.NDArray[np.bool_]


def select(
    candidates: Candidates,
    budget_tokens: int,
    threshold: float,
    mode: Mode = "instance",
    arm_mean_K: Float64 | None = None,
    per_arm_share: float | None = None,
    general_share: float = 0.0,
    generator: np.random.Generator | None = None,
    find_likes: Callable[[Int64], Int64] | None = None,
    fill: Callable[[Int64, int], Int64] | None = None,
) -> Int64:
    """Take documents above the threshold, best first, until the token budget is full.

    Args:
        candidates: those not taken before.
        budget_tokens: tokens to take at most, >= 0.
        threshold: τ, influence per target token that a document (or an arm's mean) must exceed.
        mode: who is eligible, in which order.
        arm_mean_K: [K] mean influence of each arm, NaN where unknown; for `cluster` only.
        per_arm_share: largest share of the targeted budget that one arm may fill, in (0, 1]; None: any.
        general_share: share of the budget, in [0, 1], drawn from the rest of the pool; it also takes up what the
            targeted part could not fill.
        generator: draws the general part; needed where there is one.
        find_likes: given rows in the order they would be taken, says which are too like an earlier one, so that others
            take their place; None: all may stay.
        fill: given the eligible rows, best first, and a budget, chooses among them otherwise; it heeds `per_arm_share`
            itself. None: each that still fits.

    Returns:
        [B] row numbers, the targeted in the order chosen, then the general; fewer tokens than the budget only where no
        eligible document fits.

    Raises:
        ValueError: a negative budget, an unknown mode, `cluster` without arm means, a share out of its range, or a
            general share without a generator.
    """
    if not 0 <= general_share <= 1:
        raise ValueError(f"general_share: expected a share in [0, 1], got {general_share}")
    n_tokens, targeted_tokens = candidates.n_tokens, targeted_budget(budget_tokens, general_share)

    def best_first(order: Int64, tokens: int) -> Int64:
        if fill is not None:
            return fill(order, tokens)
        if per_arm_share is None:
            return fill_budget(order, n_tokens, tokens)
        return fill_budget_by_arm(order, n_tokens, candidates.arm, tokens, per_arm_share)

    order = rank(candidates, threshold, mode, arm_mean_K)
    targeted = _fill_unlike(order, targeted_tokens, best_first, find_likes, np.empty(0, dtype=np.int64))
    if general_share == 0:
        return targeted
    if generator is None:
        raise ValueError(f"generator: expected one to draw a general share of {general_share}, got None")
    rest = np.setdiff1d(np.arange(len(candidates.id)), targeted, assume_unique=True)
    order = proportional_order(rest, n_tokens, candidates.arm, generator)
    left = budget_tokens - int(n_tokens[targeted].sum())
    general = _fill_unlike(order, left, lambda rows, tokens: fill_budget(rows, n_tokens, tokens), find_likes, targeted)
    return np.concatenate((targeted, general))


def _fill_unlike(
    order: Int64,
    budget_tokens: int,
    fill: Callable[[Int64, int], Int64],
    find_likes: Callable[[Int64], Int64] | None,
    before: Int64,
) -> Int64:
    """Fill a budget, leave out what is too like another of it or of what was taken `before`, and fill again."""
    while True:
        taken = fill(order, budget_tokens)
        if find_likes is None or len(taken) == 0:
            return taken
        alike = np.intersect1d(find_likes(np.concatenate((before, taken))), taken)
        if len(alike) == 0:
            return taken
        order = order[~np.isin(order, alike)]


def targeted_budget(budget_tokens: int, general_share: float) -> int:
    """Return the tokens of a budget that are not drawn from the rest of the pool."""
    return budget_tokens - int(general_share * budget_tokens)


def rank(candidates: Candidates, threshold: float, mode: Mode = "instance", arm_mean_K: Float64 | None = None) -> Int64:
    """List the eligible rows, best first; arguments and errors as `select`."""
    if mode == "predicted":
        return _by_influence(candidates, candidates.influence > threshold)
    scored_order = _by_influence(candidates, candidates.scored & (candidates.influence > threshold))
    if mode == "instance":
        return scored_order
    if mode != "cluster":
        raise ValueError(f"mode: expected 'instance', 'cluster' or 'predicted', got {mode!r}")
    if arm_mean_K is None:
        raise ValueError("arm_mean_K: expected the arms' means for mode 'cluster', got None")
    return np.concatenate((scored_order, _by_arm_mean(candidates, threshold, arm_mean_K)))


def proportional_order(
    rows: Int64, n_tokens_N: Int64, arm_N: npt.NDArray[np.int32], generator: np.random.Generator
) -> Int64:
    """Order rows so that every beginning holds each arm in proportion to its tokens among them.

    Systematic sampling: inside an arm the order is random; a row stands at the share of its arm's tokens before it,
    plus a random part, one per arm, of its own, so that small arms get their turn as often as they should.

    Args:
        rows: the rows to order.
        n_tokens_N: [N] tokens of each row, > 0.
        arm_N: [N] arm of each row.
        generator: draws the orders.

    Returns:
        The same rows.
    """
    shuffled = generator.permutation(rows)
    grouped = shuffled[np.argsort(arm_N[shuffled], kind="stable")]
    _, first, arm = np.unique(arm_N[grouped], return_index=True, return_inverse=True)
    tokens = n_tokens_N[grouped]
    before = np.cumsum(tokens) - tokens
    total = np.bincount(arm, weights=tokens)
    own_part = generator.random(len(first))
    position = (before - before[first][arm] + own_part[arm] * tokens) / total[arm]
    return grouped[np.argsort(position, kind="stable")]


def random_control(n_tokens_N: Int64, budget_tokens: int, generator: np.random.Generator) -> Int64:
    """Fill the same budget with documents drawn uniformly, without replacement.

    Args:
        n_tokens_N: [N] tokens of each document, > 0.
        budget_tokens: tokens to take at most, >= 0.
        generator: draws the order.

    Returns:
        [B] row numbers in the order drawn; as exact as `select`.

    Raises:
        ValueError: a negative budget.
    """
    return fill_budget(generator.permutation(len(n_tokens_N)), n_tokens_N, budget_tokens)


def fill_budget(order: Int64, n_tokens_N: Int64, budget_tokens: int) -> Int64:
    """Go through rows in order and take each that still fits.

    Whole runs of rows that fit are taken at once; what no longer fits never will, so it is dropped from the rest.

    Args:
        order: rows, best first.
        n_tokens_N: [N] tokens of each row, > 0.
        budget_tokens: tokens to take at most, >= 0.

    Returns:
        [B] the rows taken, in order.

    Raises:
        ValueError: a negative budget.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    taken = [np.empty(0, dtype=np.int64)]
    left, rest = budget_tokens, order
    while len(rest := rest[n_tokens_N[rest] <= left]) > 0:
        filled = np.cumsum(n_tokens_N[rest])
        count = int(np.searchsorted(filled, left, side="right"))
        taken.append(rest[:count])
        left -= int(filled[count - 1])
        rest = rest[count:]
    return np.concatenate(taken)


def fill_budget_by_arm(
    order: Int64, n_tokens_N: Int64, arm_N: npt.NDArray[np.int32], budget_tokens: int, per_arm_share: float
) -> Int64:
    """Go through rows in order and take each that fits both the budget and its arm's share of it.

    Args:
        order: rows, best first.
        n_tokens_N: [N] tokens of each row, > 0.
        arm_N: [N] arm of each row.
        budget_tokens: tokens to take at most, >= 0.
        per_arm_share: largest share of the budget that one arm may fill, in (0, 1].

    Returns:
        [B] the rows taken, in order.

    Raises:
        ValueError: a negative budget, or a share outside (0, 1].
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    if not 0 < per_arm_share <= 1:
        raise ValueError(f"per_arm_share: expected a share in (0, 1], got {per_arm_share}")
    arm_budget = int(per_arm_share * budget_tokens)
    left, arm_left, taken = budget_tokens, dict.fromkeys(np.unique(arm_N).tolist(), arm_budget), []
    for row, tokens, arm in zip(order.tolist(), n_tokens_N[order].tolist(), arm_N[order].tolist(), strict=True):
        if tokens <= left and tokens <= arm_left[arm]:
            taken.append(row)
            left -= tokens
            arm_left[arm] -= tokens
    return np.array(taken, dtype=np.int64)


def _by_influence(candidates: Candidates, eligible_N: npt.NDArray[np.bool_]) -> Int64:
    rows = np.flatnonzero(eligible_N)
    return rows[np.lexsort((candidates.id[rows], -candidates.influence[rows]))]


def _by_arm_mean(candidates: Candidates, threshold: float, arm_mean_K: Float64) -> Int64:
    mean_N = arm_mean_K[candidates.arm]
    rows = np.flatnonzero(~candidates.scored & (mean_N > threshold))
    return rows[np.lexsort((rows, candidates.arm[rows], -mean_N[rows]))]
