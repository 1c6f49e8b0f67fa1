"""The columns influence is predicted from: what each holds, and which group it belongs to."""

import numpy as np
import pytest

from quad_tasks.core.selection.features import document_features

EMBEDDING_ND = np.zeros((2, 4), dtype=np.float32)
TOKENS, BYTES = np.array([10, 100]), np.array([40, 200])
STATES_NH, LOSS_N = np.array([[1.0, 2, 3], [4, 5, 6]]), np.array([7.0, 8.0])
TOKEN_NF = np.arange(14.0).reshape(2, 7)


def test_features_stand_side_by_side_where_their_groups_say() -> None:
    built_NC, groups = document_features(
        EMBEDDING_ND, TOKENS, BYTES, tokens_NF=TOKEN_NF, states_NH=STATES_NH, loss_N=LOSS_N
    )
    names = ["embedding", "length", "tokens", "states", "loss"]
    assert list(groups) == names
    assert built_NC.dtype == np.float64
    assert built_NC.shape[1] == groups["loss"].stop == 4 + 2 + 7 + 3 + 1
    assert not built_NC[:, groups["embedding"]].any()
    assert built_NC[:, groups["length"]] == pytest.approx(np.log([[10, 0.25], [100, 0.5]]))
    assert built_NC[:, groups["tokens"]].tolist() == TOKEN_NF.tolist()
    assert built_NC[:, groups["states"]].tolist() == STATES_NH.tolist()
    assert built_NC[:, groups["loss"]].tolist() == [[7], [8]]


def test_what_is_not_given_has_no_columns() -> None:
    plain_NC, groups = document_features(EMBEDDING_ND, TOKENS, BYTES)
    assert list(groups) == ["embedding", "length"]
    assert plain_NC.shape == (2, 6)
