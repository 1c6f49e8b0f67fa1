"""Fill a token budget: go through documents best first and take each that still fits.

A budget is never exceeded, and no document that was left out would still fit, so the shortfall is less than one
document. A run fills it from rankings that lie in blocks (`stages.selection.fill_pool_budget`), to the same end.

Shape suffixes: N documents, B documents taken.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int64]
FindNearDuplicates = Callable[[Ids], Ids]
"""Given ids in the order of selection, returns those that nearly duplicate an earlier one."""
LOOKAHEAD = 3.0
"""A diverse selection is made among the best documents of this many budgets: their embeddings must fit in memory."""


def targeted_budget(budget_tokens: int, general_share: float) -> int:
    """Compute the tokens of a budget that are selected by influence, not drawn from the rest of the pool."""
    return budget_tokens - int(general_share * budget_tokens)


def fill_budget(order: Int64, n_tokens_N: Int64, budget_tokens: int) -> Int64:
    """Fill a token budget greedily: go through rows in order and take each that still fits.

    Args:
        order: rows, best first.
        n_tokens_N: [N] tokens of each row, > 0.
        budget_tokens: most tokens to take, >= 0.

    Returns:
        [B] the rows taken, in order.

    Raises:
        ValueError: a negative budget.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    taken = [np.empty(0, dtype=np.int64)]
    left, rest = budget_tokens, order
    # Take whole runs of rows that fit; a row that no longer fits never will, so it is dropped from the rest.
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
    """Fill a token budget greedily, with a limit for each arm.

    Args:
        order: rows, best first.
        n_tokens_N: [N] tokens of each row, > 0.
        arm_N: [N] arm of each row.
        budget_tokens: most tokens to take, >= 0.
        per_arm_share: largest share of the budget that one arm may fill, in (0, 1].

    Returns:
        [B] the rows taken, in order.

    Raises:
        ValueError: a negative budget.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    arm_budget = int(per_arm_share * budget_tokens)
    left, arm_left, taken = budget_tokens, dict.fromkeys(np.unique(arm_N).tolist(), arm_budget), []
    for row, tokens, arm in zip(order.tolist(), n_tokens_N[order].tolist(), arm_N[order].tolist(), strict=True):
        if tokens <= left and tokens <= arm_left[arm]:
            taken.append(row)
            left -= tokens
            arm_left[arm] -= tokens
    return np.array(taken, dtype=np.int64)
