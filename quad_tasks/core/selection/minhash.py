"""Shingles of a text, their Jaccard similarity, and MinHash signatures that foretell it.

Owns shingles, MinHash signatures (Broder 1997, by multiply-shift hashes) and the search for candidate pairs by banding
(Leskovec, Rajaraman and Ullman 2020, chapter 3). Signatures only propose candidates: callers compare the shingles
themselves (`similarity`). datasketch was rejected: its index keeps Python objects for every document, and a selection
needs no index that lasts.

Shape suffixes: N documents, S shingles of a text, P hashes of a signature, B bands, G groups that share a band.
"""

import re
import zlib

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
UInt32 = npt.NDArray[np.uint32]

SHINGLE_WORDS = 5
"""As in the deduplication of pretraining data by Lee et al. 2022 (arXiv 2107.06499)."""
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
"""A run of letters and digits; in Chinese and Japanese, which do not space words, each character."""
HASHES, BAND_HASHES = 128, 4
"""32 bands of 4 hashes: a pair of similarity 0.8 is missed with probability 5e-8, one of 0.6 with probability 0.01."""
ESTIMATE_MARGIN = 0.15
"""How far the estimate by signatures may lie below the true similarity: four standard errors at 0.8."""
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str, length: int = SHINGLE_WORDS) -> UInt64:
    """Hash the word shingles of a text; letter case, spaces and punctuation are ignored.

    Args:
        text: any text; one of fewer words than a shingle is a single shingle.
        length: words of a shingle, > 0.

    Returns:
        [S] distinct hashes, ascending, at least one.
    """
    # One hash per word: [words]
    words = WORD.findall(text.casefold()) or [text.strip()]
    word_hash = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    size = min(length, len(words))
    # Mix the hashes of each run of words: [words - size + 1]
    mixed_S = np.zeros(len(words) - size + 1, dtype=np.uint64)
    for start in range(size):
        mixed_S = (mixed_S ^ word_hash[start : start + len(mixed_S)]) * GOLDEN_RATIO
        mixed_S ^= mixed_S >> np.uint64(29)
    return np.unique(mixed_S)


def signature(shingles_S: UInt64) -> UInt32:
    """Compute a MinHash signature, [P]: the share of equal hashes of two signatures estimates their similarity."""
    generator = np.random.default_rng(0)  # one family of hashes for all texts and processes
    factor_P, addend_P = generator.integers(0, 2**64, (2, HASHES), dtype=np.uint64)
    hashed_SP = shingles_S[:, None] * (factor_P | np.uint64(1)) + addend_P
    # The least value of each hash function over all shingles: [S, P] -> [P]
    least_P: UInt32 = (hashed_SP >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return least_P


def similarity(shingles_S: UInt64, others_S: UInt64) -> float:
    """Compute the Jaccard similarity of two sets of shingles, in [0, 1]."""
    shared = len(np.intersect1d(shingles_S, others_S, assume_unique=True))
    return shared / (len(shingles_S) + len(others_S) - shared)


def band_codes(signatures_NP: UInt32) -> npt.NDArray[np.int32]:
    """Number the groups of documents whose hashes agree in a whole band, by banding.

    Args:
        signatures_NP: [N, P] uint32.

    Returns:
        [N, bands] the number of each document's group in each band; -1 where it is alone in its band. No two bands
        share a number.
    """
    codes_NB = np.full((len(signatures_NP), HASHES // BAND_HASHES), -1, dtype=np.int32)
    first = 0
    for band in range(codes_NB.shape[1]):
        # Documents with equal hashes in this band form a group: [N] -> groups of rows
        hashes_N4 = signatures_NP[:, band * BAND_HASHES : (band + 1) * BAND_HASHES]
        keys_N = np.ascontiguousarray(hashes_N4).view(f"V{4 * BAND_HASHES}")[:, 0]
        _, group_N, size_G = np.unique(keys_N, return_inverse=True, return_counts=True)
        together = size_G > 1
        code_G = np.where(together, first + np.cumsum(together) - 1, -1)
        codes_NB[:, band] = code_G[group_N]
        first += int(together.sum())
    return codes_NB


def estimate_similarity(signature_P: UInt32, others_MP: UInt32) -> npt.NDArray[np.float64]:
    """Estimate the Jaccard similarity of a document with M others by their signatures, [M]."""
    shared_M: npt.NDArray[np.float64] = (others_MP == signature_P).mean(axis=1)
    return shared_M
