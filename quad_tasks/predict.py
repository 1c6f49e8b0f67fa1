"""What scored documents say of the others: a regression on stored features, applied to a pool version block by block.

The mathematics is `core.prediction`; here the features are read and the blocks spread over Dask.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.compute import spread
from quad_tasks.core import prediction
from quad_tasks.states import load_states
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import Store, open_store

FEATURE_COLUMNS = ("embedding", "n_tokens", "n_bytes", "arm")
PREDICT_ROWS = 8192


def fit_scored(
    workspace: str,
    version: str,
    scores: pa.Table,
    n_arms: int,
    generator: np.random.Generator,
    states: str | None = None,
) -> prediction.Predictor:
    """Fit a regression of influence on the features of the documents in a table of scores.

    Args:
        workspace: where the pool is.
        version: key of the pool version.
        scores: `position`, `influence` and `active` of the documents scored.
        n_arms: of the version.
        generator: see `prediction.fit_predictor`.
        states: key of the pool's hidden states and losses (`states.py`); None: these are no candidates.
    """
    features, arms, groups = _features(open_store(workspace), version, scores["position"].to_numpy(), states)
    at_random = ~scores["active"].to_numpy(zero_copy_only=False)
    influence = scores["influence"].to_numpy()
    return prediction.fit_predictor(features, influence, arms, n_arms, generator, groups, at_random)


def predict_positions(
    workspace: str,
    version: str,
    predictor: prediction.Predictor,
    positions: npt.NDArray[np.int64],
    states: str | None = None,
) -> npt.NDArray[np.float64]:
    """Predict the influence per token of the documents at `positions`, [N], in blocks over the Dask cluster."""
    blocks = [positions[start : start + PREDICT_ROWS] for start in range(0, len(positions), PREDICT_ROWS)]
    items = [(workspace, version, predictor, block, states) for block in blocks]
    if len(items) == 1:
        return predict_block(*items[0])
    return np.concatenate([np.empty(0), *spread(predict_block, items, "predict", "blocks")])


def predict_block(
    workspace: str,
    version: str,
    predictor: prediction.Predictor,
    positions: npt.NDArray[np.int64],
    states: str | None = None,
) -> npt.NDArray[np.float64]:
    """Predict one block, on a worker."""
    features, arms, _ = _features(open_store(workspace), version, positions, states)
    return prediction.predict(predictor, features, arms)


def _features(
    store: Store, version: str, positions: npt.NDArray[np.int64], states: str | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any], dict[str, slice]]:
    rows = read_positions(store, version, positions, FEATURE_COLUMNS)
    vectors, arms = column_vectors(rows["embedding"]), rows["arm"].to_numpy()
    known = (vectors, rows["n_tokens"].to_numpy(), rows["n_bytes"].to_numpy())
    if states is None:
        return prediction.document_features(*known), arms, prediction.feature_groups(vectors.shape[1])
    read = load_states(store, states, positions)
    groups = prediction.feature_groups(vectors.shape[1], read.shape[1] - 1, loss=True)
    return prediction.document_features(*known, read[:, :-1], read[:, -1]), arms, groups
