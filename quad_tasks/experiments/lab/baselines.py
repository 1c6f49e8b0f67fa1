"""Rank documents by methods without influence: at random, by cluster, loss, likeness to the reference, a classifier.

Each function returns an order of the pool's rows, best first, to be cut at a token budget
(`core.selection.fill_budget`). The n-gram importance weights are those of DSIR (Xie et al. 2023, arXiv 2302.03169):
word unigrams and bigrams hashed into 10,000 buckets, two bag-of-n-grams models, resampling by the Gumbel top-k trick.
BM25 is Robertson and Zaragoza's (2009), with the weights of words and the defaults that Lucene has.

Shape suffixes: N documents of the pool, M of the reference, B buckets, W words, D embedding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import vstack
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.linear_model import LogisticRegression

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

BUCKETS = 10_000
"""DSIR's own number of hash buckets."""
BM25_SATURATION, BM25_LENGTH_SHARE = 1.2, 0.75
"""k1 and b: how soon a word's repeats count no more, and how far a document's length does."""


def random_order(n_documents: int, generator: np.random.Generator) -> Int64:
    """Order all rows at random."""
    return generator.permutation(n_documents)


def cluster_uniform_order(arm_N: npt.NDArray[np.int32], generator: np.random.Generator) -> Int64:
    """Take a random document of every cluster in turn, so that clusters give equally many until they are empty.

    Args:
        arm_N: [N] cluster of each document.
        generator: draws the order within clusters and among them.

    Returns:
        [N] row numbers.
    """
    shuffled = generator.permutation(len(arm_N))
    grouped = shuffled[np.argsort(arm_N[shuffled], kind="stable")]
    _, first, count = np.unique(arm_N[grouped], return_index=True, return_counts=True)
    turn = np.arange(len(arm_N)) - np.repeat(first, count)
    return grouped[np.lexsort((generator.random(len(arm_N)), turn))]


def lowest_loss_order(loss_N: Float64) -> Int64:
    """Order by loss per token, lowest first: the perplexity filter that keeps easy documents."""
    return np.argsort(loss_N, kind="stable")


def middle_loss_order(loss_N: Float64) -> Int64:
    """Order by how near the loss's rank is to the median's: the perplexity filter that drops both ends."""
    rank_N = np.argsort(np.argsort(loss_N, kind="stable"), kind="stable")
    return np.argsort(np.abs(2 * rank_N - (len(loss_N) - 1)), kind="stable")


def importance_order(pool: Sequence[str], reference: Sequence[str], generator: np.random.Generator) -> Int64:
    """Resample by hashed n-gram importance (DSIR): log weight plus Gumbel noise, highest first.

    Args:
        pool: texts.
        reference: texts of the target.
        generator: draws the noise.

    Returns:
        [N] row numbers.
    """
    return np.argsort(-(log_importance(pool, reference) + generator.gumbel(size=len(pool))), kind="stable")


def log_importance(pool: Sequence[str], reference: Sequence[str]) -> Float64:
    """Compute log p_reference(z) / p_pool(z), [N], under two bags of hashed n-grams with one count added to each."""
    hashing = _hashing()
    pool_NB, reference_NB = hashing.transform(pool), hashing.transform(reference)
    target_B, source_B = (np.asarray(x.sum(axis=0)).ravel() + 1 for x in (reference_NB, pool_NB))
    ratio_B = np.log(target_B / target_B.sum()) - np.log(source_B / source_B.sum())
    weight_N: Float64 = pool_NB @ ratio_B
    return weight_N


def classifier_order(pool: Sequence[str], reference: Sequence[str]) -> Int64:
    """Order by a logistic regression on normalised hashed n-grams, the reference against the pool, most alike first."""
    hashing = _hashing("l2")
    pool_NB, reference_NB = hashing.transform(pool), hashing.transform(reference)
    positive = np.arange(len(pool) + len(reference)) >= len(pool)
    model = LogisticRegression(max_iter=200, class_weight="balanced").fit(vstack([pool_NB, reference_NB]), positive)
    return np.argsort(-model.decision_function(pool_NB), kind="stable")


def bm25_order(pool: Sequence[str], reference: Sequence[str]) -> Int64:
    """Order by BM25, every document of the reference a query of words, its mean score over queries highest first."""
    return np.argsort(-bm25_scores(pool, reference), kind="stable")


def bm25_scores(pool: Sequence[str], reference: Sequence[str]) -> Float64:
    """Compute every document's mean BM25 score over the reference's documents as queries, [N]."""
    words = CountVectorizer(token_pattern=r"\w+").fit(pool)
    count_NW, query_W = words.transform(pool).tocsr().astype(np.float64), words.transform(reference).sum(axis=0)
    holding_W = np.bincount(count_NW.indices, minlength=count_NW.shape[1])
    rarity_W = np.log1p((len(pool) - holding_W + 0.5) / (holding_W + 0.5))
    length_N = np.asarray(count_NW.sum(axis=1)).ravel()
    damping_N = BM25_SATURATION * (1 - BM25_LENGTH_SHARE + BM25_LENGTH_SHARE * length_N / length_N.mean())
    count_NW.data /= count_NW.data + np.repeat(damping_N, np.diff(count_NW.indptr))
    scores_N: Float64 = count_NW @ (rarity_W * np.asarray(query_W).ravel()) / len(reference)
    return scores_N


def similarity_order(embedding_ND: npt.NDArray[np.floating], reference_MD: npt.NDArray[np.floating]) -> Int64:
    """Order by the mean cosine of a document's embedding to the reference's, both with unit rows, highest first."""
    return np.argsort(-(embedding_ND @ reference_MD.mean(axis=0)), kind="stable")


def _hashing(norm: str | None = None) -> HashingVectorizer:
    return HashingVectorizer(
        n_features=BUCKETS, ngram_range=(1, 2), alternate_sign=False, norm=norm, token_pattern=r"\w+|[^\w\s]"
    )
