"""Lay out what influence is predicted from: a document's embedding and length, its tokens, what the model makes of it.

Owns the columns of the regression's features, their groups, and what each choice of features costs.

Shape suffixes: N documents, D embedding, F token features, H hidden state, C columns.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
Int64 = npt.NDArray[np.int64]

FORWARD_PASSES = {"embedding": 0, "tokens": 0, "hidden_states": 1}
"""Passes of the model over the whole pool, forward alone, that each choice of features takes (`bandit.features`)."""


class FeatureMatrix(NamedTuple):
    """Features of documents, [N, C] float64, and the columns of each group by its name."""

    values_NC: Float64
    groups: dict[str, slice]


def document_features(
    embeddings_ND: Floats,
    n_tokens_N: Int64,
    n_bytes_N: Int64,
    *,
    tokens_NF: Floats | None = None,
    states_NH: Floats | None = None,
    loss_N: Floats | None = None,
) -> FeatureMatrix:
    """Build the feature matrix: embedding, length, and where given token features, hidden state and loss.

    Args:
        embeddings_ND: [N, D] embeddings.
        n_tokens_N: [N] tokens, > 0.
        n_bytes_N: [N] bytes of UTF-8, > 0.
        tokens_NF: [N, F] features of the documents' tokens (`core.lm.token_features`), or None.
        states_NH: [N, H] the model's mean hidden states, or None.
        loss_N: [N] the model's loss per target, or None.
    """
    named: dict[str, Floats] = {
        "embedding": embeddings_ND,
        "length": np.stack([np.log(n_tokens_N), np.log(n_tokens_N / n_bytes_N)], axis=1),
    }
    if tokens_NF is not None:
        named["tokens"] = tokens_NF
    if states_NH is not None:
        named["states"] = states_NH
    if loss_N is not None:
        named["loss"] = loss_N[:, None]
    ends = np.cumsum([0, *(columns.shape[1] for columns in named.values())]).tolist()
    groups = {name: slice(start, end) for name, start, end in zip(named, ends[:-1], ends[1:], strict=True)}
    return FeatureMatrix(np.concatenate(list(named.values()), axis=1, dtype=np.float64), groups)
