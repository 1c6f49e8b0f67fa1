"""Describe documents by their token ids and a model's input embeddings, without a pass of the model.

Influence is a function of what a model computes from a document's tokens; a part of that is foreseen from the tokens
alone. A document's features are the mean of its tokens' input embeddings, the mean of the elementwise products of
neighbouring tokens' embeddings (which bigrams it holds, as the model sees them), and statistics of its tokens. They
take a table look-up a token, where hidden states take a forward pass.

Embeddings wider than `WIDTH` are projected first, so that features of every model have at most the same width and a
token costs no more. The projection is a count sketch (Charikar, Chen and Farach-Colton 2002) with buckets of equal
size: every output is the sum of a few coordinates with random signs, so inner products are kept in expectation.

Sums are of one document's tokens alone, in float64 and in their order: a document's features have the same bits
whatever documents stand beside it.

Shape suffixes: N documents, T tokens of a document, V vocabulary, E embedding, P projected embedding, F features.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

WIDTH = 128
"""P: most coordinates of a projected embedding."""
CHUNK_TOKENS = 4096
"""Tokens of a document whose embeddings are in memory at once."""
STATISTICS = 3
"""Share of distinct tokens; mean and standard deviation of the tokens' embedding norms."""
PROJECTION_SEED = 0
"""One for all runs: features belong to a checkpoint, and runs share them."""


def project_embeddings(embedding_VE: npt.NDArray[np.floating], width: int = WIDTH) -> Float32:
    """Project a model's input embeddings to at most `width` coordinates.

    Args:
        embedding_VE: [V, E] input embeddings.
        width: P, > 0.

    Returns:
        [V, min(E, P)] float32; the embeddings themselves where E <= P. The same matrix and width give the same bits.
    """
    n_coordinates = embedding_VE.shape[1]
    if n_coordinates <= width:
        return np.ascontiguousarray(embedding_VE, dtype=np.float32)
    generator = np.random.default_rng([PROJECTION_SEED, n_coordinates, width])
    order_E, sign_E = generator.permutation(n_coordinates), generator.choice([-1.0, 1.0], n_coordinates)
    projected_VP = np.zeros((len(embedding_VE), width))
    for start in range(0, n_coordinates, width):
        taken = order_E[start : start + width]
        projected_VP[:, : len(taken)] += embedding_VE[:, taken] * sign_E[taken]
    return projected_VP.astype(np.float32)


def token_features(documents: Sequence[Sequence[int]], embedding_VP: Float32) -> Float32:
    """Compute documents' features from their token ids.

    Args:
        documents: N lists of token ids, each of at least one.
        embedding_VP: [V, P] from `project_embeddings`.

    Returns:
        [N, F] float32: P means of embeddings, P means of products, then the statistics (`STATISTICS`).

    Raises:
        ValueError: a document without tokens.
    """
    norm_V = np.sqrt(np.einsum("vp,vp->v", embedding_VP, embedding_VP, dtype=np.float64))
    features_NF = np.empty((len(documents), feature_width(embedding_VP.shape[1])), dtype=np.float32)
    for row, ids in enumerate(documents):
        if not len(ids):
            raise ValueError(f"document {row}: expected at least one token, got none")
        features_NF[row] = _describe(np.asarray(ids, dtype=np.int64), embedding_VP, norm_V)
    return features_NF


def feature_width(projected: int) -> int:
    """Return F, the width of the features that embeddings of `projected` coordinates give."""
    return 2 * projected + STATISTICS


def _describe(ids_T: npt.NDArray[np.int64], embedding_VP: Float32, norm_V: Float64) -> Float64:
    """Compute one document's features, [F]."""
    n_tokens, projected = len(ids_T), embedding_VP.shape[1]
    sum_P, product_P = np.zeros(projected), np.zeros(projected)
    for start in range(0, n_tokens, CHUNK_TOKENS):
        # Each chunk and the token after it, so that every pair of neighbours is met once: [T + 1, P]
        read_TP = embedding_VP[ids_T[start : start + CHUNK_TOKENS + 1]].astype(np.float64)
        sum_P += read_TP[:CHUNK_TOKENS].sum(axis=0)
        product_P += np.einsum("tp,tp->p", read_TP[:-1], read_TP[1:])
    norm_T = norm_V[ids_T]
    statistics = (len(np.unique(ids_T)) / n_tokens, norm_T.mean(), norm_T.std())
    return np.concatenate([sum_P / n_tokens, product_P / max(n_tokens - 1, 1), statistics])
