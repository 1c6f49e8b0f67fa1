"""What the bandit's stage makes of a configuration."""

import pytest
from small_pool import small_config

from flows.select_data import select_data
from quad_tasks.config import parse_config
from quad_tasks.pull import load_state, policy
from quad_tasks.records import Stage
from quad_tasks.run import pinned_pool


def configured(**bandit):
    body = small_config("/corpus", "/workspace")
    body["bandit"] = {"pilot_documents": 24, **bandit}
    return parse_config(body, "small")


@pytest.mark.parametrize("preset", ["paper", "released", "thompson", "contextual"])
def test_every_preset_takes_every_choice_of_a_configuration(preset):
    built = policy(configured(preset=preset, alpha=0.5, propagation="weights", arms_per_round=3, documents_per_pull=5))
    assert (built.name, built.arms_per_round, built.documents_per_pull) == (preset, 3, 5)


def test_every_arm_is_visited_first_only_where_the_pilot_could_reach_each():
    assert policy(configured()).prior_pulls == 0
    body = small_config("/corpus", "/workspace", clustering__arms=1000)
    assert policy(parse_config(body, "small")).prior_pulls > 0


def test_propagation_changes_what_unpulled_arms_are_known_by(prefect_server, dask_client, corpus, tmp_path):
    body = small_config(corpus, str(tmp_path), bandit__propagation="weights", training__stages=1)
    config = parse_config(body, "spread")
    select_data(config)
    state = load_state(config, Stage(config.run, 0, pinned_pool(config), "", ""), 1)
    assert state.pulls.sum() > state.cursor.sum() / config.bandit.documents_per_pull
