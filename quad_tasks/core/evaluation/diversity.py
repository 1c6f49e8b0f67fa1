"""Measure the diversity of a selection: over arms, over embeddings, over words.

Owns the measures by which a selection is compared with a random one of the same size. There are several, because a
selection can score well on one and badly on another. All but those over arms depend on the number of documents: compare
equal numbers.

Shape suffixes: N documents, D embedding, K arms.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NEAR_DUPLICATE_COSINE = 0.99
"""Character n-gram vectors of different texts of one genre often exceed 0.95."""
DISTINCT_SIZES = (1, 3)
"""Lengths of the word n-grams counted: words, and phrases of three."""
COMPRESSION_LEVEL = 6
"""The default of zlib, fixed so that ratios stay comparable."""


def cluster_entropy(weights_K: npt.ArrayLike) -> float:
    """Compute the entropy of a distribution over arms, in nats.

    Args:
        weights_K: [K] documents, tokens or pulls per arm; non-negative, on any scale.

    Raises:
        ValueError: no weight is positive.
    """
    wide_K = np.asarray(weights_K, np.float64)
    positive = wide_K[wide_K > 0]
    if not len(positive):
        raise ValueError(f"expected an arm with documents, tokens or pulls, found none in {len(wide_K)}")
    share = positive / positive.sum()
    return float((share * np.log(1 / share)).sum())


def effective_arms(weights_K: npt.ArrayLike) -> float:
    """Compute the effective number of arms, exp(entropy) (Hill number of order 1).

    Raises:
        ValueError: no weight is positive.
    """
    return float(np.exp(cluster_entropy(weights_K)))


def coverage(selected_counts_K: npt.ArrayLike, pool_counts_K: npt.ArrayLike) -> float:
    """Compute the share of the pool's non-empty arms that the selection has a document of."""
    held_K = np.asarray(pool_counts_K) > 0
    return float((np.asarray(selected_counts_K)[held_K] > 0).mean())


def vendi_score(embeddings_ND: npt.NDArray[np.floating]) -> float:
    """Compute the Vendi score: the effective number of distinct documents (Friedman and Dieng 2023, arXiv 2210.02410).

    It is exp(entropy) of the eigenvalues of the cosine similarity matrix [N, N] divided by N. The Gram matrix [D, D]
    has the same nonzero eigenvalues; the smaller of the two is decomposed.

    Args:
        embeddings_ND: [N, D] unit vectors.

    Returns:
        1 (all equal) to min(N, D) (mutually orthogonal).
    """
    wide_ND = np.asarray(embeddings_ND, np.float64)
    n, d = wide_ND.shape
    gram = wide_ND @ wide_ND.T if n < d else wide_ND.T @ wide_ND
    return effective_arms(np.linalg.eigvalsh(gram / n))


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Compute distinct-n: the share of distinct word n-grams among all of all texts (Li et al. 2016).

    Texts without any n-gram give 0.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.split()
        ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
        seen.update(ngrams)
        total += len(ngrams)
    return len(seen) / total if total else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Compute the compression ratio by zlib, bytes before over after (Shaib et al. 2024, arXiv 2403.00553).

    Higher: more redundant. zlib looks 32 kB back, so a text is compared with the few before it: shuffle the texts
    before comparing selections.
    """
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, COMPRESSION_LEVEL))


def near_duplicate_rate(embeddings_ND: npt.NDArray[np.floating], threshold: float = NEAR_DUPLICATE_COSINE) -> float:
    """Compute the share of documents that have a near-duplicate: another one at a cosine of at least `threshold`.

    Args:
        embeddings_ND: [N, D] unit vectors.
        threshold: cosine, in (-1, 1].
    """
    import faiss  # as in `clustering.kmeans`

    if len(embeddings_ND) < 2:
        return 0.0
    rows_ND = np.ascontiguousarray(embeddings_ND, np.float32)
    # The nearest neighbour of a document is itself, at cosine 1: look at the second nearest
    similarity_N2, _ = faiss.knn(rows_ND, rows_ND, 2, faiss.METRIC_INNER_PRODUCT)
    return float((similarity_N2[:, 1] >= threshold).mean())


def diversity_profile(
    texts: Sequence[str],
    embeddings_ND: npt.NDArray[np.floating],
    counts_K: npt.ArrayLike,
    pool_counts_K: npt.ArrayLike,
) -> dict[str, float]:
    """Measure the diversity of a selection, or of a sample of it, by every measure above.

    Args:
        texts: its N texts, in random order.
        embeddings_ND: [N, D] their unit embeddings.
        counts_K: [K] its documents per arm.
        pool_counts_K: [K] the pool's documents per arm.

    Raises:
        ValueError: there is no document.
    """
    return {
        "cluster_entropy": cluster_entropy(counts_K),
        "effective_arms": effective_arms(counts_K),
        "coverage": coverage(counts_K, pool_counts_K),
        "vendi_score": vendi_score(embeddings_ND),
        **{f"distinct_{n}grams": distinct_ngrams(texts, n) for n in DISTINCT_SIZES},
        "compression_ratio": compression_ratio(texts),
        "near_duplicate_rate": near_duplicate_rate(embeddings_ND),
    }
