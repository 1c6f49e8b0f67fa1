"""Select diverse documents greedily: what resembles a selected document of its arm is worth less.

The rule is maximal marginal relevance with influence as relevance (Carbonell and Goldstein 1998); embeddings are unit
vectors, so that an inner product is a cosine.
A document's value can only fall as others are selected. So a heap of stale values suffices: if the largest stale value
is still the largest once refreshed, it is the largest of all (Minoux 1978), and few cosines are ever computed.

Shape suffixes: N candidates, D embedding, B documents selected, C documents of one arm.
"""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def select_diverse(
    order: Int64,
    influence_N: Float64,
    n_tokens_N: Int64,
    embeddings_ND: Float32,
    arm_N: npt.NDArray[np.int32],
    budget_tokens: int,
    redundancy: float,
    per_arm_share: float | None = None,
) -> Int64:
    """Select diverse documents for a token budget by maximal marginal relevance.

    The next document selected is the one with the largest

        influence(z) - redundancy · σ · max(0, max over selected z' of its arm of cos(z, z'))

    σ is the standard deviation of influence over `order`, so `redundancy` does not depend on the scale of influence.

    Args:
        order: the eligible rows; of equal values the earlier row is selected.
        influence_N: [N] influence per token.
        n_tokens_N: [N] tokens of each row, > 0.
        embeddings_ND: [N, D] float32 unit vectors.
        arm_N: [N] arm of each row.
        budget_tokens: most tokens to select, >= 0.
        redundancy: penalty of a copy of a selected document, in σ, >= 0.
        per_arm_share: largest share of the budget that one arm may fill; None: no limit.

    Returns:
        [B] rows in the order selected; a row that does not fit is skipped, as in `fill_budget`.

    Raises:
        ValueError: a negative budget.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    scale = redundancy * float(np.std(influence_N[order])) if len(order) else 0.0
    # Each row's largest cosine with selected rows of its arm, and how many of those it was compared with: [N], [N]
    similarity_N, compared_N = np.zeros(len(arm_N)), np.zeros(len(arm_N), dtype=np.int64)
    arms = _start_arms(arm_N[order], embeddings_ND.shape[1], budget_tokens, per_arm_share)
    # Heap of (minus the value when last computed, position in order, row): the top has the largest value
    heap = sorted(zip((-influence_N[order]).tolist(), range(len(order)), order.tolist(), strict=True))
    selected, left = [], budget_tokens
    while heap:
        _, rank, row = heapq.heappop(heap)
        arm = arms[int(arm_N[row])]
        if n_tokens_N[row] > min(left, arm.left_tokens):
            continue
        if arm.count > compared_N[row]:  # its value is stale: compare with the newly selected, and put it back
            cosines = arm.embeddings_CD[compared_N[row] : arm.count] @ embeddings_ND[row]
            compared_N[row] = arm.count
            similarity_N[row] = max(similarity_N[row], cosines.max())
            heapq.heappush(heap, (float(scale * similarity_N[row] - influence_N[row]), rank, row))
            continue
        selected.append(row)
        arm.embeddings_CD[arm.count] = embeddings_ND[row]
        arm.count += 1
        arm.left_tokens -= int(n_tokens_N[row])
        left -= int(n_tokens_N[row])
    return np.array(selected, dtype=np.int64)


@dataclass
class _ArmSelection:
    """What is selected of one arm so far: the first `count` embeddings, and the tokens left of its limit."""

    embeddings_CD: Float32
    left_tokens: int
    count: int = 0


def _start_arms(
    arm_N: npt.NDArray[np.int32], dimension: int, budget_tokens: int, per_arm_share: float | None
) -> dict[int, _ArmSelection]:
    """Start every arm with nothing selected, room for all its documents and its share of the budget."""
    arms, sizes = np.unique(arm_N, return_counts=True)
    limit = int((1.0 if per_arm_share is None else per_arm_share) * budget_tokens)
    return {
        arm: _ArmSelection(np.empty((size, dimension), dtype=np.float32), limit)
        for arm, size in zip(arms.tolist(), sizes.tolist(), strict=True)
    }
