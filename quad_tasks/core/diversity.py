"""How diverse a selection is: over arms, over embeddings, over words.

Owns the measures by which a selection is compared with a random one of the same size; several, because each can be
had cheaply without the others. All but the arms' measures depend on the number of documents: compare equal numbers.

Shapes: N documents, D embedding, K arms.
"""

import zlib
from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

NEAR_DUPLICATE_COSINE = 0.99  # character n-gram vectors of different texts of one genre often pass 0.95
DISTINCT_SIZES = (1, 3)  # vocabulary, and phrases
COMPRESSION_LEVEL = 6  # zlib's default, named so that ratios stay comparable


def cluster_entropy(weights_K: npt.ArrayLike) -> float:
    """Compute the entropy of a distribution over arms, in nats.

    Args:
        weights_K: documents, tokens or pulls per arm; non-negative, any scale.

    Raises:
        ValueError: no weight is positive.
    """
    wide_K = np.asarray(weights_K, np.float64)
    positive = wide_K[wide_K > 0]
    if not len(positive):
        raise ValueError(f"weights_K: expected a positive weight, found none in {len(wide_K)}")
    share = positive / positive.sum()
    return float((share * np.log(1 / share)).sum())


def effective_arms(weights_K: npt.ArrayLike) -> float:
    """Compute exp(entropy): how many equally weighted arms are as diverse (Hill number of order 1).

    Raises:
        ValueError: no weight is positive.
    """
    return float(np.exp(cluster_entropy(weights_K)))


def coverage(selected_counts_K: npt.ArrayLike, pool_counts_K: npt.ArrayLike) -> float:
    """Compute the share of the pool's arms with documents that the selection has any document of."""
    held_K = np.asarray(pool_counts_K) > 0
    return float((np.asarray(selected_counts_K)[held_K] > 0).mean())


def vendi_score(embeddings_ND: npt.NDArray[np.floating]) -> float:
    """Compute the effective number of distinct documents (Friedman and Dieng 2023, arXiv 2210.02410).

    It is exp(entropy) of the eigenvalues of the documents' cosine similarity matrix over N; those of the [D, D]
    covariance are the same and taken where D is smaller.

    Args:
        embeddings_ND: unit rows.

    Returns:
        1 (all alike) to min(N, D) (mutually orthogonal).
    """
    wide_ND = np.asarray(embeddings_ND, np.float64)
    n, d = wide_ND.shape
    gram = wide_ND @ wide_ND.T if n < d else wide_ND.T @ wide_ND
    return effective_arms(np.linalg.eigvalsh(gram / n))


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Compute the share of distinct ones among all word n-grams of all texts (distinct-n, Li et al. 2016).

    Texts without any n-gram have none that is distinct: 0.
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
    """Compute bytes before over bytes after zlib (Shaib et al. 2024, arXiv 2403.00553); higher: more redundant.

    zlib sees 32 kB back, so that texts are compared with the few before them: shuffle before comparing selections.
    """
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, COMPRESSION_LEVEL))


def near_duplicate_rate(embeddings_ND: npt.NDArray[np.floating], threshold: float = NEAR_DUPLICATE_COSINE) -> float:
    """Compute the share of documents that have another at a cosine of at least `threshold`.

    Args:
        embeddings_ND: unit rows.
        threshold: cosine.
    """
    if len(embeddings_ND) < 2:
        return 0.0
    rows_ND = np.ascontiguousarray(embeddings_ND, np.float32)
    # A document is its own neighbour at cosine 1: another one is alike when the second best is.
    similarity_N2, _ = faiss.knn(rows_ND, rows_ND, 2, faiss.METRIC_INNER_PRODUCT)
    return float((similarity_N2[:, 1] >= threshold).mean())


def diversity_profile(
    texts: Sequence[str],
    embeddings_ND: npt.NDArray[np.floating],
    counts_K: npt.ArrayLike,
    pool_counts_K: npt.ArrayLike,
) -> dict[str, float]:
    """Measure a selection, or a sample of it, by every measure above.

    Args:
        texts: its texts, in random order.
        embeddings_ND: their unit embeddings.
        counts_K: its documents per arm.
        pool_counts_K: the pool's documents per arm.

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
