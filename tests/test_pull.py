"""What the bandit's stage makes of a configuration and of the ledger."""

import numpy as np
import pyarrow as pa
import pytest
from small_pool import small_config

from flows.select_data import select_data
from quad_tasks.config_file import parse_config
from quad_tasks.draw import choose_round, policy
from quad_tasks.pull import (
    ARM_SCHEMA,
    calibrate_scorer,
    commit_round,
    describe_pilot,
    load_state,
    score_round,
    stop_reason,
)
from quad_tasks.records import Stage
from quad_tasks.run import pinned_pool
from quad_tasks.state import SCORE_SCHEMA, load_arms
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
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


def committed_tables(config, stage, number):
    store = open_store(config.workspace)
    manifest = rounds.read_round(store, config.run, stage, number)
    return manifest, {name: rounds.read_round_table(store, manifest, name) for name in manifest.tables}


def positions_of(config, pulls):
    """The positions each pull of a round covers: its arm's first, and the cursor's documents from there."""
    first = load_arms(config.workspace, pinned_pool(config))["position"].to_pylist()
    rows = pulls.select(["arm", "cursor", "n_documents"]).to_pylist()
    return [set(range(first[r["arm"]] + r["cursor"], first[r["arm"]] + r["cursor"] + r["n_documents"])) for r in rows]


def test_a_pulls_reward_is_the_mean_of_its_own_documents_whoever_drew_them_first(small_run):
    known: dict[int, float] = {}
    for number in range(rounds.count_rounds(open_store(small_run.workspace), small_run.run, 0)):
        _, tables = committed_tables(small_run, 0, number)
        scores = tables["scores"].to_pylist()
        assert not known.keys() & {row["position"] for row in scores}
        known |= {row["position"]: row["influence"] for row in scores}
        covered = positions_of(small_run, tables["pulls"])
        for pull, own in zip(tables["pulls"].to_pylist(), covered, strict=True):
            assert own <= known.keys()
            assert pull["reward"] == pytest.approx(np.mean([known[position] for position in own]))
        assert [row["active"] for row in scores] == [row["position"] not in set().union(*covered) for row in scores]


def test_a_round_scores_no_more_documents_than_its_pulls_hold(small_run):
    for stage in range(2):
        for number in range(1, rounds.count_rounds(open_store(small_run.workspace), small_run.run, stage)):
            manifest, tables = committed_tables(small_run, stage, number)
            n_pulls = tables["pulls"].num_rows
            at_random = tables["pulls"]["n_documents"].to_numpy().sum()
            assert at_random <= n_pulls * (1 - small_run.bandit.active_share) * small_run.bandit.documents_per_pull
            assert manifest.info["documents"] <= n_pulls * small_run.bandit.documents_per_pull
            assert manifest.info["active_documents"] > 0


def test_the_next_stage_scores_some_documents_again_to_tell_how_stale_influence_is(small_run):
    store = open_store(small_run.workspace)
    before = {}
    for manifest in rounds.list_rounds(store, small_run.run, 0):
        table = rounds.read_round_table(store, manifest, "scores")
        before |= dict(zip(table["position"].to_pylist(), table["influence"].to_pylist(), strict=True))
    _, tables = committed_tables(small_run, 1, 0)
    again = tables["rescored"].to_pylist()
    assert len({row["position"] for row in again}) == len(again) == min(100, len(before))
    assert all(row["before"] == before[row["position"]] != row["influence"] for row in again)
    assert "rescored" not in committed_tables(small_run, 0, 0)[1]
    assert "rescored" not in committed_tables(small_run, 1, 1)[1]


def test_the_pilot_advises_the_pull_that_tells_its_arms_apart():
    # two arms of two, means 1 and 3: within-arm variance 2 about each, mean square between 4; (4 - 2) / 2 = 1 between
    advice = describe_pilot(np.array([0.0, 2.0, 2.0, 4.0]), np.array([0, 0, 1, 1], dtype=np.int32))
    assert advice["within_arms_deviation"] ** 2 == pytest.approx(2)
    assert advice["between_arms_deviation"] ** 2 == pytest.approx(1)
    assert advice["wanted_standard_error"] == pytest.approx(0.5)
    assert advice["documents_per_pull"] == 8  # 2 / 0.5²
    assert describe_pilot(np.ones(4), np.array([0, 0, 1, 1], dtype=np.int32))["documents_per_pull"] is None


@pytest.mark.parametrize(("floor", "accepted"), [(0.0, True), (1.0, False)])
def test_an_approximate_scorer_is_used_where_it_ranks_as_exact_scoring_does(small_run, floor, accepted):
    bandit = small_run.bandit.model_copy(
        update={"scorer": "forward_only", "scorer_floor": floor, "calibration_documents": 16}
    )
    config = small_run.model_copy(update={"run": f"gated-{floor}", "bandit": bandit})
    first = rounds.list_rounds(open_store(small_run.workspace), small_run.run, 0)[0]
    checkpoint = read_manifest(open_store(small_run.workspace), pinned_pool(small_run))["model"]
    stage = Stage(config.run, 0, pinned_pool(small_run), checkpoint, first.info["direction"])
    plan = choose_round.fn(config, stage, 0)
    found = calibrate_scorer.fn(config, stage, plan)
    scores = score_round.fn(config, stage, plan)
    commit_round.fn(config, stage, 0, plan, scores, found)
    assert found["accepted"] is accepted
    assert found["documents"] == 16
    assert 0.9 < found["spearman"] < 1
    following = choose_round.fn(config, stage, 1)
    assert following.scorer["scorer"] == ("forward_only" if accepted else "exact")
    assert plan.scorer["scorer"] == "exact"
    exact = score_round.fn(config, stage, following._replace(scorer={"scorer": "exact"}))[0]["influence"].to_numpy()
    used = score_round.fn(config, stage, following)[0]["influence"].to_numpy()
    assert np.array_equal(used, exact) is not accepted
