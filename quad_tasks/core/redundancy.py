"""Documents that say what others already say: near-duplicates dropped, and a greedy choice that avoids likeness.

Two likenesses. That of embeddings is looked for inside arms: what is near in embedding shares a cluster, and work stays
proportional to an arm's size. That of words (`shingles.py`) is looked for across arms, since two clusters may share a
text's copies when a few words differ. Embeddings are unit vectors, so that an inner product is a cosine.

Shape suffixes: N candidates, D embedding, B documents taken, C documents of one arm.
"""

import heapq
from collections.abc import Callable, Sequence

import faiss
import numpy as np
import numpy.typing as npt

from quad_tasks.core.shingles import candidate_pairs, similarity

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SEARCH_BLOCK = 256
"""Documents whose near-duplicates are looked for at once; it bounds what a search holds."""


def near_duplicates(
    embeddings_ND: Float32, arm_N: npt.NDArray[np.int32], order: Int64, threshold: float
) -> npt.NDArray[np.bool_]:
    """Mark every document whose like in the same arm ranks higher and is kept.

    Args:
        embeddings_ND: [N, D] float32 unit vectors.
        arm_N: [N] arm of each row.
        order: the rows to look at, best first; others are neither marked nor compared with.
        threshold: cosine, in (-1, 1], above which two documents are alike.

    Returns:
        [N] bool, the rows to drop. No two rows kept in one arm are alike, and each dropped row has its like among them.
    """
    dropped_N = np.zeros(len(arm_N), dtype=np.bool_)
    for rows in _rows_by_arm(order, arm_N):
        dropped_N[rows] = _drop_inside(np.ascontiguousarray(embeddings_ND[rows]), threshold)
    return dropped_N


def shared_texts(
    signatures_NP: npt.NDArray[np.uint32],
    read_shingles: Callable[[Int64], Sequence[npt.NDArray[np.uint64]]],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Mark every document most of whose word sequences a better one that is kept has too, whatever their arms.

    Args:
        signatures_NP: [N, P] MinHash signatures, rows best first.
        read_shingles: gives the shingles of rows, ascending; asked only for those that signatures find alike.
        threshold: Jaccard similarity of shingles, in (0, 1], at which two documents are alike.

    Returns:
        [N] bool, the rows to drop. No two rows kept are alike, and each dropped row has its like among them.
    """
    pairs_M2 = candidate_pairs(signatures_NP, threshold)
    rows = np.unique(pairs_M2)
    of_row = dict(zip(rows.tolist(), read_shingles(rows), strict=True))
    dropped_N = np.zeros(len(signatures_NP), dtype=np.bool_)
    for better, worse in pairs_M2.tolist():
        if not (dropped_N[better] or dropped_N[worse]):
            dropped_N[worse] = similarity(of_row[better], of_row[worse]) >= threshold
    return dropped_N


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
    """Fill a budget greedily, each document's worth falling as its likes are taken.

    Maximal marginal relevance (Carbonell and Goldstein 1998) with influence as relevance: the next document taken is
    the one of largest

        influence(z) - redundancy · σ · max(0, max over taken z' of its arm of cos(z, z'))

    σ being the standard deviation of influence over `order`, which makes `redundancy` free of its scale. Since the
    worth can only fall, the largest stale value that stays largest once refreshed is the largest of all (Minoux 1978):
    few likenesses are ever computed.

    Args:
        order: the eligible rows; ties in worth go to the earlier.
        influence_N: [N] influence per token.
        n_tokens_N: [N] tokens of each row, > 0.
        embeddings_ND: [N, D] float32 unit vectors.
        arm_N: [N] arm of each row.
        budget_tokens: tokens to take at most, >= 0.
        redundancy: penalty of a copy of a taken document, in σ, >= 0.
        per_arm_share: largest share of the budget that one arm may fill; None: any.

    Returns:
        [B] rows in the order taken; what does not fit is skipped, as in `fill_budget`.

    Raises:
        ValueError: a negative budget or redundancy.
    """
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens: expected >= 0, got {budget_tokens}")
    if redundancy < 0:
        raise ValueError(f"redundancy: expected >= 0, got {redundancy}")
    scale = redundancy * float(np.std(influence_N[order])) if len(order) else 0.0
    likeness, seen = np.zeros(len(arm_N)), np.zeros(len(arm_N), dtype=np.int64)
    arms, size = np.unique(arm_N[order], return_counts=True)
    first = dict(zip(arms.tolist(), (np.cumsum(size) - size).tolist(), strict=True))
    count = dict.fromkeys(arms.tolist(), 0)
    taken_BD = np.empty((len(order), embeddings_ND.shape[1]), dtype=np.float32)  # an arm's from first[arm] on
    heap = list(zip((-influence_N[order]).tolist(), range(len(order)), order.tolist(), strict=True))
    heapq.heapify(heap)
    taken, left = [], budget_tokens
    arm_left = dict.fromkeys(arms.tolist(), int((1.0 if per_arm_share is None else per_arm_share) * budget_tokens))
    while heap:
        _, rank, row = heapq.heappop(heap)
        arm = int(arm_N[row])
        if n_tokens_N[row] > min(left, arm_left[arm]):
            continue
        if count[arm] > seen[row]:
            cosines = taken_BD[first[arm] + seen[row] : first[arm] + count[arm]] @ embeddings_ND[row]
            seen[row] = count[arm]
            likeness[row] = max(likeness[row], cosines.max())
            heapq.heappush(heap, (float(scale * likeness[row] - influence_N[row]), rank, row))
            continue
        taken.append(row)
        taken_BD[first[arm] + count[arm]] = embeddings_ND[row]
        count[arm] += 1
        left -= int(n_tokens_N[row])
        arm_left[arm] -= int(n_tokens_N[row])
    return np.array(taken, dtype=np.int64)


def _rows_by_arm(order: Int64, arm_N: npt.NDArray[np.int32]) -> list[Int64]:
    """The rows of each arm, in the order given."""
    grouped = order[np.argsort(arm_N[order], kind="stable")]
    return np.split(grouped, np.flatnonzero(np.diff(arm_N[grouped])) + 1) if len(order) else []


def _drop_inside(embeddings_CD: Float32, threshold: float) -> npt.NDArray[np.bool_]:
    """Mark rows, best first, that are like an earlier kept row."""
    index = faiss.IndexFlatIP(embeddings_CD.shape[1])
    index.add(embeddings_CD)
    dropped_C = np.zeros(len(embeddings_CD), dtype=np.bool_)
    for start in range(0, len(embeddings_CD), SEARCH_BLOCK):
        block = start + np.flatnonzero(~dropped_C[start : start + SEARCH_BLOCK])
        limits, _, found = index.range_search(embeddings_CD[block], threshold)
        for position, row in enumerate(block.tolist()):
            if not dropped_C[row]:
                likes = found[limits[position] : limits[position + 1]]
                dropped_C[likes[likes > row]] = True
    return dropped_C
