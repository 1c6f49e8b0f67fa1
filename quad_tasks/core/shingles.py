"""Texts that share most of their words in order: pairs of high Jaccard similarity of five-word shingles.

Owns what a shingle is, MinHash signatures (Broder 1997, by multiply-shift hashes) and the search for alike pairs by
banding (Leskovec, Rajaraman and Ullman 2020, chapter 3). What signatures propose is a candidate: callers compare its
shingles themselves (`similarity`). Work and memory grow with the documents, not with their pairs, so that likeness is
found in a whole selection and not only inside arms. datasketch was decided against: its index holds Python objects by
the document, and a selection needs none that lasts.

Shape suffixes: N documents, S shingles of a text, P hashes of a signature, M pairs.
"""

import re
import zlib

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
UInt32 = npt.NDArray[np.uint32]

SHINGLE_WORDS = 5
"""As in the deduplication of pretraining data by Lee et al. 2022 (arXiv 2107.06499)."""
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
"""A run of letters and digits; in Chinese and Japanese, which do not space words, each character."""
HASHES, BAND_HASHES = 128, 4
"""32 bands of 4 hashes: a pair of similarity 0.8 shares no band with a chance of 5e-8, one of 0.6 with 0.01."""
ESTIMATE_MARGIN = 0.15
"""By how much a signature's estimate may fall short of a pair's similarity: four standard errors at 0.8."""
COMPARED_ROWS = 32
"""Signatures compared with their group at once; it bounds memory."""
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str) -> UInt64:
    """Hash a text's five-word shingles; letter case and what stands between words say nothing.

    Args:
        text: any; one of fewer words, or without words, is a single shingle.

    Returns:
        [S] distinct hashes, ascending, at least one.
    """
    words = WORD.findall(text.casefold()) or [text.strip()]
    word_hash = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    size = min(SHINGLE_WORDS, len(words))
    mixed_S = np.zeros(len(words) - size + 1, dtype=np.uint64)
    for start in range(size):
        mixed_S = (mixed_S ^ word_hash[start : start + len(mixed_S)]) * GOLDEN_RATIO
        mixed_S ^= mixed_S >> np.uint64(29)
    return np.unique(mixed_S)


def signature(shingles_S: UInt64) -> UInt32:
    """Compute a MinHash signature, [P]: two texts' agree in a share of their hashes that estimates similarity."""
    generator = np.random.default_rng(0)  # one family of hashes for all texts and processes
    factor_P, addend_P = generator.integers(0, 2**64, (2, HASHES), dtype=np.uint64)
    hashed_SP = shingles_S[:, None] * (factor_P | np.uint64(1)) + addend_P
    least_P: UInt32 = (hashed_SP >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return least_P


def similarity(shingles_S: UInt64, others_S: UInt64) -> float:
    """Compute the Jaccard similarity of two texts' shingles, in [0, 1]."""
    shared = len(np.intersect1d(shingles_S, others_S, assume_unique=True))
    return shared / (len(shingles_S) + len(others_S) - shared)


def candidate_pairs(signatures_NP: UInt32, threshold: float) -> npt.NDArray[np.int64]:
    """Find the pairs whose similarity may reach a threshold.

    Args:
        signatures_NP: [N, P] uint32.
        threshold: similarity, in (0, 1].

    Returns:
        [M, 2] distinct pairs of rows, the lower one first, ascending.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    for band in range(0, HASHES, BAND_HASHES):
        keys_N = np.ascontiguousarray(signatures_NP[:, band : band + BAND_HASHES]).view(f"V{4 * BAND_HASHES}")[:, 0]
        _, group_N, size_G = np.unique(keys_N, return_inverse=True, return_counts=True)
        together = np.flatnonzero(size_G[group_N] > 1)
        order = together[np.argsort(group_N[together], kind="stable")]
        for rows in np.split(order, np.cumsum(size_G[size_G > 1])[:-1]) if len(order) else []:
            found.append(_alike_inside(signatures_NP, rows, threshold - ESTIMATE_MARGIN))
    return np.unique(np.concatenate(found), axis=0)


def _alike_inside(signatures_NP: UInt32, rows: Int64, estimate: float) -> npt.NDArray[np.int64]:
    """List the pairs among ascending rows of one band whose signatures agree in a share of at least `estimate`."""
    group_GP, pairs = signatures_NP[rows], []
    for start in range(0, len(rows), COMPARED_ROWS):
        block_BP = group_GP[start : start + COMPARED_ROWS]
        agreed_BG = (block_BP[:, None] == group_GP[None]).mean(axis=2)
        lower, upper = np.nonzero(agreed_BG >= estimate)
        lower += start
        later = upper > lower
        pairs.append(np.stack([rows[lower[later]], rows[upper[later]]], axis=1))
    return np.concatenate(pairs)
