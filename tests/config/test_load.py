"""Keys of older releases are read as what replaced them."""

import pytest

from quad_tasks.config.load import parse_config

BODY = {
    "pool": {"inputs": ["pool.jsonl"]},
    "reference": {"inputs": ["reference.jsonl"]},
    "selection": {"budget_tokens": 1000},
}


@pytest.mark.parametrize(
    ("states", "bandit", "features"),
    [
        (True, {}, "hidden_states"),
        (False, {}, "tokens"),
        (True, {"features": "embedding"}, "embedding"),
        (False, {"alpha": 0.5}, "tokens"),
    ],
)
def test_the_older_key_for_hidden_states_says_what_influence_is_predicted_from(states, bandit, features):
    old = {**BODY, "bandit": bandit, "selection": {"budget_tokens": 1000, "states": states}}
    assert parse_config(old, "old.yaml") == parse_config(
        {**BODY, "bandit": {**bandit, "features": features}}, "new.yaml"
    )
    assert old["selection"]["states"] is states
