"""What the bandit's stage makes of a configuration and of the ledger."""

import numpy as np
import pyarrow as pa
import pytest
from small_pool import small_config

from flows.select_data import select_data
from quad_tasks.config import parse_config
from quad_tasks.draw import policy
from quad_tasks.pull import ARM_SCHEMA, load_state, stop_reason
from quad_tasks.records import Stage
from quad_tasks.run import pinned_pool
from quad_tasks.state import SCORE_SCHEMA, load_arms
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store


def configured(**bandit):
    body = small_config("/corpus", "/workspace")
    body["bandit"] = {"pilot_documents": 24, **bandit}
    return parse_config(body, "small")


@pytest.mark.parametrize("preset", ["paper", "released", "thompson", "contextual"])
def test_every_preset_takes_every_choice_of_a_configuration(preset):
    built = policy(configured(preset=preset, alpha=0.5, propagation="weights", arms_per_round=3, documents_per_pull=5))
    n_random = 5 - 3  # a whole pull is its random part: three of five are drawn actively
    assert (built.name, built.arms_per_round, built.documents_per_pull) == (preset, 3, n_random)


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


def test_a_state_is_the_last_word_of_the_rounds_before_it_however_many_there_are(small_run):
    stage = Stage("long", 0, pinned_pool(small_run), "", "")
    config = small_run.model_copy(update={"run": "long"})
    store = open_store(small_run.workspace)
    arms, n_rounds = load_arms(small_run.workspace, stage.version).num_rows, 1100  # more than Python's recursion limit
    for number in range(n_rounds):
        row = {"arm": number % arms, "cursor": 1, "pulls": float(number), "reward_sum": -float(number)}
        info = {"reward_moments": [number, 0.0, 0.0], "accepted_tokens": 1, "direction": ""}
        tables = {"arms": pa.Table.from_pylist([row], ARM_SCHEMA), "scores": SCORE_SCHEMA.empty_table()}
        rounds.commit_round(store, "long", 0, number, tables, info)
    last = np.array([max(n for n in range(n_rounds) if n % arms == arm) for arm in range(arms)])
    state = load_state(config, stage, n_rounds)
    assert state.round == n_rounds
    assert np.array_equal(state.pulls, last)
    assert np.array_equal(state.reward_sum, -last)
    assert state.reward_moments[0] == n_rounds - 1
    assert load_state(config, stage, 3).pulls.max() == 2
    assert stop_reason(config, stage, 100) is None


def test_a_stage_stops_when_its_rounds_accepted_tokens_hold_the_oversampled_budget(small_run):
    stage = Stage(small_run.run, 0, pinned_pool(small_run), "", "")
    config = small_run.model_copy(update={"bandit": small_run.bandit.model_copy(update={"max_scored_share": 1.0})})
    committed = rounds.list_rounds(open_store(small_run.workspace), small_run.run, 0)
    wanted = config.bandit.oversample * config.selection.budget_tokens / config.training.stages
    held = np.cumsum([r.info["accepted_tokens"] for r in committed])
    for number, tokens in enumerate(held, start=1):
        assert (stop_reason(config, stage, number) == "budget") == (tokens >= wanted)
