"""Keys of older releases are read as what replaced them, and what is not set follows from the rest."""

import pytest

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError

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


@pytest.mark.parametrize("overrides", [[], ["bandit.alpha=1"], ["pool.fields.id=uid"], ["model.fresh.width=64"]])
def test_a_section_whose_keys_are_all_left_out_is_an_empty_one(overrides):
    body = {**BODY, "bandit": None, "model": None, "pool": {**BODY["pool"], "fields": None}}
    written = {**BODY, "bandit": {}, "model": {"fresh": {}}, "pool": {**BODY["pool"], "fields": {}}}
    assert parse_config(body, "config.yaml", overrides) == parse_config(written, "config.yaml", overrides)


def test_a_required_section_without_keys_names_what_it_lacks():
    with pytest.raises(ConfigError, match=r"config\.yaml: selection\.budget_tokens: expected a value, found none"):
        parse_config({**BODY, "selection": None}, "config.yaml")


@pytest.mark.parametrize(
    ("frontier", "message"),
    [
        ([0.1, 0.1], r"training\.frontier: expected shares that differ in their first six digits, found 0\.1 twice"),
        ([0.1, 0.1000000001], r"training\.frontier: .*found 0\.1 twice"),
        (
            [0.3, 0.05],
            r"training\.frontier: expected other shares than selection\.general_share, found 0\.05 there too",
        ),
    ],
)
def test_a_frontier_trains_nothing_twice(frontier, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**BODY, "training": {"frontier": frontier}}, "config.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.batch_tokens=0", "model.batch_tokens: expected greater than 0 or 'auto', found 0"),
        ("compute.memory_limit=large", "compute.memory_limit: expected bytes, or a size such as 10GB, found 'large'"),
        ("training.frontier=[0.1, 2]", "training.frontier.1: expected less than or equal to 1, found 2"),
        ("reference.sets={a: {inputs: [x], weight: -1}}", "reference.sets.a.weight: expected greater than 0, found -1"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(override, message):
    with pytest.raises(ConfigError) as raised:
        parse_config(dict(BODY), "config.yaml", [override])
    assert str(raised.value) == f"config.yaml: {message}"
