"""What scored documents say of the others: a regression on stored features, applied to a pool version block by block.

The mathematics is `core.selection.prediction`; here the features are read and the blocks spread over Dask.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.values import Features
from quad_tasks.core.selection import prediction
from quad_tasks.core.selection.features import FORWARD_PASSES, FeatureMatrix, document_features
from quad_tasks.records import ModelUse
from quad_tasks.stages.influence.extract_states import load_states, states_of
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import Store

FEATURE_COLUMNS = ("embedding", "n_tokens", "n_bytes", "arm")


@dataclass(frozen=True)
class FeatureSource:
    """What is read of a document to predict its influence, beside its embedding and length.

    Attributes:
        tokens: whether its token features, which stand in the pool version.
        states: key of the pool's hidden states and losses (`extract_states.py`); None: these are no candidates.
    """

    tokens: bool = False
    states: str | None = None


def feature_source(store: Store, version: str, features: Features, use: ModelUse) -> FeatureSource:
    """Say what `bandit.features` reads of a pool version; one that an older release made has no token features."""
    tokens = features != "embedding" and read_version(store, version).token_features is not None
    return FeatureSource(tokens, states_of(store, version, use) if FORWARD_PASSES[features] else None)


def fit_scored(
    store: Store,
    version: str,
    scores: pa.Table,
    n_arms: int,
    generator: np.random.Generator,
    features: FeatureSource | None = None,
) -> prediction.Predictor:
    """Fit a regression of influence on the features of the documents in a table of scores.

    Args:
        store: the workspace.
        version: key of the pool version.
        scores: `position`, `influence` and `at_random` (`ledger.mark_at_random`) of the documents scored.
        n_arms: of the version.
        generator: see `prediction.fit_predictor`.
        features: what is read of a document; None: embedding and length alone.
    """
    known, arms = _read_features(store, version, scores["position"].to_numpy(), features or FeatureSource())
    at_random = scores["at_random"].to_numpy(zero_copy_only=False)
    influence = scores["influence"].to_numpy()
    return prediction.fit_predictor(known.values_NC, influence, arms, n_arms, generator, known.groups, at_random)


def predict_block(
    predictor: prediction.Predictor,
    store: Store,
    version: str,
    positions: npt.NDArray[np.int64],
    features: FeatureSource | None = None,
) -> npt.NDArray[np.float64]:
    """Predict the influence per token of the documents at `positions`, [N], on a worker."""
    known, arms = _read_features(store, version, positions, features or FeatureSource())
    return prediction.predict(predictor, known.values_NC, arms)


def _read_features(
    store: Store, version: str, positions: npt.NDArray[np.int64], features: FeatureSource
) -> tuple[FeatureMatrix, npt.NDArray[Any]]:
    columns = (*FEATURE_COLUMNS, "token_features") if features.tokens else FEATURE_COLUMNS
    rows = read_positions(store, version, positions, columns)
    vectors, arms = column_vectors(rows["embedding"]), rows["arm"].to_numpy()
    tokens = column_vectors(rows["token_features"]) if features.tokens else None
    states = load_states(store, features.states, positions) if features.states else None
    known = document_features(
        vectors,
        rows["n_tokens"].to_numpy(),
        rows["n_bytes"].to_numpy(),
        tokens_NF=tokens,
        states_NH=None if states is None else states[:, :-1],
        loss_N=None if states is None else states[:, -1],
    )
    return known, arms
