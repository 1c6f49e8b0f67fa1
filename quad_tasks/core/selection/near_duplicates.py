"""Find near-duplicates among documents about to be selected: of each family the best one is kept.

There are two kinds. Those by embedding are searched inside arms: near embeddings share a cluster, and the work stays
proportional to an arm's size. Those by text (`minhash.py`) are searched across arms, since copies that differ in a few
words may lie in different clusters. Embeddings are unit vectors: an inner product is a cosine.

Shape suffixes: N candidates, D embedding, P hashes of a signature, B bands of it, C documents of one arm.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.core.selection.minhash import ESTIMATE_MARGIN, band_codes, estimate_similarity, similarity

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

SEARCH_BLOCK = 256
"""Documents whose near-duplicates are searched at once; it bounds the memory of a search."""
TEXT_BLOCK = 64
"""Documents whose texts are read at once."""
COMPARED_KEPT, KEPT_PER_CODE = 64, 128
"""Kept documents with which one is compared shingle by shingle; those looked at by signature, for each shared band."""
KEPT_SHINGLES = 2**22
"""Shingles, of 8 bytes, that are remembered from one block to the next: of ten thousand documents or so."""


def near_duplicates_by_embedding(
    embeddings_ND: Float32, arm_N: npt.NDArray[np.int32], order: Int64, threshold: float
) -> npt.NDArray[np.bool_]:
    """Find near-duplicates inside arms, by the cosine of their embeddings.

    Of two near-duplicates the one that comes first in `order` is kept.

    Args:
        embeddings_ND: [N, D] float32 unit vectors.
        arm_N: [N] arm of each row.
        order: the rows to compare, best first; other rows are ignored.
        threshold: cosine, in (-1, 1], above which two documents are near-duplicates.

    Returns:
        [N] bool, the rows to drop. No two kept rows of one arm are near-duplicates, and each dropped row is a
        near-duplicate of a kept one.
    """
    dropped_N = np.zeros(len(arm_N), dtype=np.bool_)
    for rows in _rows_by_arm(order, arm_N):
        dropped_N[rows] = _mark_duplicates(np.ascontiguousarray(embeddings_ND[rows]), threshold)
    return dropped_N


def near_duplicates_by_text(
    signatures_NP: npt.NDArray[np.uint32],
    read_shingles: Callable[[Int64], Sequence[npt.NDArray[np.uint64]]],
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Find near-duplicates across arms, by the Jaccard similarity of their shingles.

    Of two near-duplicates the one in the earlier row is kept. A row is compared with kept rows only: of a family of
    near-duplicates, pages made from one template, each costs one comparison, and no list of pairs is ever made.

    Args:
        signatures_NP: [N, P] MinHash signatures, rows best first.
        read_shingles: returns the shingles of ascending rows; called block by block, and only for rows whose signatures
            are similar.
        threshold: Jaccard similarity of shingles, in (0, 1], from which two documents are near-duplicates.

    Returns:
        [N] bool, the rows to drop. No two kept rows are near-duplicates, and each dropped row is a near-duplicate of a
        kept one. Where many kept rows are alike without being near-duplicates, a row is compared with the likest
        `COMPARED_KEPT` of the first `KEPT_PER_CODE` that share each of its bands, so that work stays linear.
    """
    dropped_N = np.zeros(len(signatures_NP), dtype=np.bool_)
    # Groups of each band that a row shares with others: [N, B]; rows that share none have no near-duplicate
    codes_NB = band_codes(signatures_NP)
    sharing = np.flatnonzero((codes_NB >= 0).any(axis=1))
    kept_by_code: dict[int, list[int]] = {}
    cache: OrderedDict[int, npt.NDArray[np.uint64]] = OrderedDict()
    for start in range(0, len(sharing), TEXT_BLOCK):
        block = sharing[start : start + TEXT_BLOCK].tolist()
        # Earlier rows that each may nearly duplicate, by signature; then the shingles of all of these
        candidates = _find_candidates(block, codes_NB, kept_by_code, signatures_NP, threshold - ESTIMATE_MARGIN)
        asked = sorted({*candidates, *itertools.chain.from_iterable(candidates.values())} - cache.keys())
        if asked:
            cache |= zip(asked, read_shingles(np.array(asked, dtype=np.int64)), strict=True)
        # In order, drop each row that nearly duplicates a kept one
        for row in block:
            near = (other for other in candidates.get(row, ()) if not dropped_N[other])
            dropped_N[row] = any(similarity(cache[other], cache[row]) >= threshold for other in near)
        for row in block:
            if not dropped_N[row]:
                _add_codes(kept_by_code, codes_NB[row], row)
        _forget(cache, dropped_N)
    return dropped_N


def _find_candidates(
    block: list[int],
    codes_NB: npt.NDArray[np.int32],
    kept_by_code: dict[int, list[int]],
    signatures_NP: npt.NDArray[np.uint32],
    estimate: float,
) -> dict[int, list[int]]:
    """Find the earlier rows whose signatures are similar to those of a block's rows, kept ones of before and its own.

    Returns:
        For each row that has any: `COMPARED_KEPT` kept rows, likest first, then rows of the block, ascending.
    """
    found: dict[int, list[int]] = {}
    block_WP = signatures_NP[block]
    for number, row in enumerate(block):
        others = sorted({other for code in codes_NB[row].tolist() for other in kept_by_code.get(code, ())})
        alike = estimate_similarity(block_WP[number], signatures_NP[others])
        likest = np.argsort(-alike, kind="stable")[:COMPARED_KEPT]
        similar = [others[i] for i in likest.tolist() if alike[i] >= estimate]
        own = np.flatnonzero(estimate_similarity(block_WP[number], block_WP[:number]) >= estimate)
        similar += [block[i] for i in own.tolist()]
        if similar:
            found[row] = similar
    return found


def _add_codes(rows_by_code: dict[int, list[int]], codes_B: npt.NDArray[np.int32], row: int) -> None:
    for code in codes_B[codes_B >= 0].tolist():
        rows = rows_by_code.setdefault(code, [])
        if len(rows) < KEPT_PER_CODE:
            rows.append(row)


def _forget(cache: OrderedDict[int, npt.NDArray[np.uint64]], dropped_N: npt.NDArray[np.bool_]) -> None:
    """Forget the shingles of dropped rows, and the oldest beyond `KEPT_SHINGLES`: they are read again if needed."""
    for row in [row for row in cache if dropped_N[row]]:
        del cache[row]
    kept = sum(map(len, cache.values()))
    while kept > KEPT_SHINGLES:
        kept -= len(cache.popitem(last=False)[1])


def _rows_by_arm(order: Int64, arm_N: npt.NDArray[np.int32]) -> list[Int64]:
    """Split rows by arm, keeping their order."""
    grouped = order[np.argsort(arm_N[order], kind="stable")]
    return np.split(grouped, np.flatnonzero(np.diff(arm_N[grouped])) + 1) if len(order) else []


def _mark_duplicates(embeddings_CD: Float32, threshold: float) -> npt.NDArray[np.bool_]:
    """Mark the rows of one arm, best first, that nearly duplicate an earlier kept row, [C]."""
    import faiss  # as in `clustering.kmeans`

    index = faiss.IndexFlatIP(embeddings_CD.shape[1])
    index.add(embeddings_CD)
    dropped_C = np.zeros(len(embeddings_CD), dtype=np.bool_)
    for start in range(0, len(embeddings_CD), SEARCH_BLOCK):
        block = start + np.flatnonzero(~dropped_C[start : start + SEARCH_BLOCK])
        limits, _, found = index.range_search(embeddings_CD[block], threshold)
        for position, row in enumerate(block.tolist()):
            if not dropped_C[row]:
                near = found[limits[position] : limits[position + 1]]
                dropped_C[near[near > row]] = True
    return dropped_C
