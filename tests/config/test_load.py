"""Keys of older releases are read as what replaced them, and what is not set follows from the rest."""

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


@pytest.mark.parametrize(
    ("chosen", "dtype", "rounded"),
    [(None, "float32", False), (None, "bfloat16", True), (True, "float32", True), (False, "bfloat16", False)],
)
def test_a_fits_products_are_rounded_as_set_or_else_where_the_models_numbers_are(chosen, dtype, rounded):
    config = parse_config({**BODY, "factors": {"rounded_products": chosen}}, "config.yaml")
    assert config.factors.rounds_products(dtype) is rounded
