"""What the bandit's stage makes of a configuration and of the ledger."""

import dataclasses
import inspect
import math

import numpy as np
import pyarrow as pa
import pytest
from small_pool import round_info, small_config, stored

from flows.select_data import select_data
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core import bandit
from quad_tasks.records import Pull, Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit import commit_round as committing
from quad_tasks.stages.bandit import ledger
from quad_tasks.stages.bandit import plan_round as planning
from quad_tasks.stages.bandit.commit_round import ARM_SCHEMA, PULL_SCHEMA, _pilot_sample, _pull, commit_round
from quad_tasks.stages.bandit.draw_pulls import Draw
from quad_tasks.stages.bandit.ledger import SCORE_SCHEMA, load_arms, read_chosen, read_ledger
from quad_tasks.stages.bandit.pilot import calibrate_scorer, choose_threshold, describe_pilot
from quad_tasks.stages.bandit.plan_round import Plan, plan_round
from quad_tasks.stages.bandit.round_settings import pull_sizes, round_settings
from quad_tasks.stages.bandit.score_index import add_scores, empty_index
from quad_tasks.stages.bandit.score_round import score_round
from quad_tasks.stages.bandit.stopping import stop_reason
from quad_tasks.stages.selection.select_documents import _arm_means
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store


def configured(arms=6, **keys):
    body = small_config("/corpus", "/workspace", clustering__arms=arms)
    body["bandit"] = {"pilot_documents": 24, **keys}
    return round_settings(parse_config(body, "small"), 0)


def version_of(config):
    return pinned_pool(open_store(config.workspace), config.run)


def direction_of(config, stage):
    return rounds.read_round(open_store(config.workspace), config.run, stage, 0).info.direction


def documents_of(config):
    """Documents of the pool."""
    stage = Stage("unbegun", 0, version_of(config), "", "")
    return read_ledger(open_store(config.workspace), stage, 0, config.bandit.discount).n_documents


def state_of(config, stage, number):
    return read_ledger(open_store(config.workspace), stage, number, config.bandit.discount).state


def reason_of(config, stage, number):
    return stop_reason(open_store(config.workspace), stage, number, round_settings(config, stage.number))


@pytest.mark.parametrize("preset", ["paper", "released", "thompson", "contextual"])
def test_every_preset_takes_every_choice_of_a_configuration(preset):
    sizes = {"arms_per_round": 3, "documents_per_pull": 5, "active_share": 0.75}
    built = configured(preset=preset, alpha=0.5, propagation="weights", **sizes).policy
    n_random = 5 - 3  # a whole pull is its random part: three of five are drawn actively
    assert (built.name, built.arms_per_round, built.documents_per_pull) == (preset, 3, n_random)


def test_what_the_released_preset_is_not_told_it_takes_from_the_published_code():
    sizes = pull_sizes(configured(preset="released").bandit)
    assert (sizes.arms_per_round, sizes.documents_per_pull, sizes.random_documents) == (50, 10, 10)
    assert configured(preset="released").policy.documents_per_pull == 10
    told = pull_sizes(configured(preset="released", arms_per_round=3, documents_per_pull=8, active_share=0.5).bandit)
    assert (told.arms_per_round, told.documents_per_pull, told.random_documents) == (3, 8, 4)
    paper = pull_sizes(configured().bandit)
    assert (paper.arms_per_round, paper.documents_per_pull, paper.random_documents) == (8, 16, 4)


def test_the_released_presets_rewards_are_counted_less_the_threshold_in_force():
    assert configured(preset="released", threshold=0.5).policy.reward_offset == 0.5
    policy = bandit.centre_rewards(configured(preset="released").policy, 0.25)
    assert policy.reward_offset == 0.25
    assert bandit.centre_rewards(configured().policy, 0.25).reward_offset == 0.0


def test_a_pull_counts_the_share_of_it_that_is_scored_along_the_direction():
    """Of documents 10 to 13, 13 alone: a quarter of a pull of four."""
    known = pa.table({"position": [13, 3], "influence": [5.0, 9.0], "n_targets": [98, 99]})
    pull = _pull(Draw(0, 10, 4), 0, add_scores(empty_index(), known))
    assert (pull.n_targets, pull.n_scored, pull.reward) == (98, 1, 5.0)
    state = dataclasses.replace(bandit.initial_state([100, 100]), cursor=np.array([10, 0]))
    after = bandit.update(state, [pull], bandit.paper_policy(documents_per_pull=4))
    assert after.pulls.tolist() == [0.25, 0]
    assert after.reward_sum.tolist() == [1.25, 0]
    assert after.reward_moments.tolist() == [0.25, 1.25, 6.25]
    assert after.cursor.tolist() == [14, 0]


def test_a_pilot_whose_documents_were_all_scored_before_takes_the_threshold_from_their_scores():
    known = pa.table({"position": [0, 1, 2, 7], "influence": [1.0, 2.0, 3.0, 50.0]})
    sample = _pilot_sample(known, np.array([0, 1, 2]))
    assert choose_threshold(None, None, 0, configured(threshold_quantile=0.5).bandit, sample) == 2.0
    nothing_drawn = _pilot_sample(known, np.empty(0, dtype=np.int64))
    assert choose_threshold(None, None, 0, configured(threshold_quantile=1.0).bandit, nothing_drawn) == 50.0


def test_a_document_drawn_for_its_prediction_is_at_random_once_a_pull_covers_it(small_run, monkeypatch):
    """One arm of 100: the best 40 were drawn first, then a pull goes through all; the mean is that of all."""
    influence = np.random.default_rng(0).normal(size=100)
    best_first = np.argsort(-influence)
    order = np.concatenate([best_first[:40], np.sort(best_first[40:])])
    scores = pa.table({"position": order, "arm": np.zeros(100, np.int32), "influence": influence[order]})
    monkeypatch.setattr(ledger, "load_arms", lambda store, version: pa.table({"arm": [0], "position": [0]}))
    marked = ledger.mark_at_random(None, "", scores, np.array([100]))
    assert _arm_means(marked, 1)[0] == pytest.approx(influence.mean())
    part = ledger.mark_at_random(None, "", scores, np.array([30]))
    assert sorted(part.filter(part["at_random"])["position"].to_pylist()) == list(range(30))
    assert _arm_means(part, 1)[0] == pytest.approx(influence[:30].mean())


def test_no_stage_scores_more_than_its_share_of_the_pool(small_run):
    n_documents, scored = documents_of(small_run), 0
    for stage in range(2):
        limit = math.floor(0.6 * (stage + 1) / 2 * n_documents)
        for manifest in rounds.list_rounds(open_store(small_run.workspace), small_run.run, stage):
            scored += manifest.info.documents
        assert scored <= limit


@pytest.mark.parametrize("room", [1, 3, 7])
def test_the_last_round_is_cut_to_what_may_still_be_scored(small_run, room):
    n_documents = documents_of(small_run)
    pilot = rounds.read_round(open_store(small_run.workspace), small_run.run, 0, 0).info.documents
    section = small_run.bandit.model_copy(update={"max_scored_share": 2 * (pilot + room) / n_documents})
    config = small_run.model_copy(update={"bandit": section})
    stage = Stage(small_run.run, 0, version_of(small_run), "", direction_of(small_run, 0))
    plan = plan_round.fn(open_store(small_run.workspace), stage, 1, round_settings(config, 0))
    assert sum(map(len, plan.chunks)) == room


def test_a_pilot_takes_half_of_what_its_stage_may_score(small_run):
    section = small_run.bandit.model_copy(update={"max_scored_share": 2 * 12 / documents_of(small_run)})
    config = small_run.model_copy(update={"run": "half", "bandit": section})
    stage = Stage("half", 0, version_of(small_run), "", "")
    plan = plan_round.fn(open_store(small_run.workspace), stage, 0, round_settings(config, 0))
    assert sum(map(len, plan.chunks)) == 6


def test_a_refit_puts_arms_statistics_on_the_new_directions_scale(small_run):
    """Arms that the second pilot does not draw keep half of the first stage's S times the slope of the sample."""
    last = rounds.count_rounds(open_store(small_run.workspace), small_run.run, 0)
    stage = Stage(small_run.run, 0, version_of(small_run), "", "")
    before, after = (
        state_of(small_run, dataclasses.replace(stage, number=n), count) for n, count in ((0, last), (1, 1))
    )
    _, tables = committed_tables(small_run, 1, 0)
    old, new = (tables["rescored"][name].to_numpy() for name in ("before", "influence"))
    slope = (old @ new) / (old @ old)
    expected_S, expected_T = slope * 0.5 * before.reward_sum, 0.5 * before.pulls
    n_random = pull_sizes(small_run.bandit).random_documents
    for pull in tables["pulls"].to_pylist():
        expected_T[pull["arm"]] += pull["n_scored"] / n_random
        expected_S[pull["arm"]] += pull["n_scored"] / n_random * pull["reward"]
    assert after.reward_sum == pytest.approx(expected_S)
    assert after.pulls == pytest.approx(expected_T)


def test_a_later_stage_scores_nothing_that_an_earlier_one_chose(small_run):
    chosen = read_chosen(open_store(small_run.workspace), small_run.run, 1)["position"].to_pylist()
    for number in range(rounds.count_rounds(open_store(small_run.workspace), small_run.run, 1)):
        _, tables = committed_tables(small_run, 1, number)
        assert not set(tables["scores"]["position"].to_pylist()) & set(chosen)


def test_a_share_too_small_to_score_anything_is_refused_with_numbers(small_run):
    bandit_section = small_run.bandit.model_copy(update={"max_scored_share": 0.01})
    config = small_run.model_copy(update={"run": "tiny", "bandit": bandit_section})
    stage = Stage("tiny", 0, version_of(small_run), "", "")
    with pytest.raises(ConfigError, match=r"max_scored_share: expected to leave stage 0 at least 2 of \d+ .*, got 0"):
        plan_round.fn(open_store(small_run.workspace), stage, 0, round_settings(config, 0))


@pytest.mark.parametrize("payable", [0, 1])
def test_a_pilot_whose_documents_cost_more_than_the_stage_may_spend_is_refused_before_any_is_scored(
    small_run, monkeypatch, payable
):
    """The cap leaves room for many documents of mean length; those drawn are far longer."""
    monkeypatch.setattr(
        planning, "scoring_costs", lambda *known: np.where(np.arange(len(known[-1])) < payable, 0, 1e30)
    )
    section = small_run.bandit.model_copy(update={"max_scored_share": None, "max_cost_share": 0.9})
    config = small_run.model_copy(update={"run": "long-documents", "bandit": section})
    stage = Stage("long-documents", 0, version_of(small_run), "", "")
    with pytest.raises(ConfigError, match=rf"max_cost_share: .* at least 2 documents, got that of {payable}"):
        plan_round.fn(open_store(small_run.workspace), stage, 0, round_settings(config, 0))


def test_a_pilot_that_scored_nothing_tries_no_scorer():
    """Every document was scored along the direction in the stage before, whose refit the gate did not let pass."""
    stage = Stage("all-known", 1, "", "", "")
    found = calibrate_scorer.fn(None, stage, Plan([], []), configured(scorer="auto"), [])
    assert (found.accepted, found.documents, found.used) == (False, 0, {"scorer": "exact"})
    assert found.reason == "scored exactly, since the pilot has too few documents to try auto on"


def test_every_arm_is_visited_first_only_where_the_pilot_could_reach_each():
    assert configured().policy.prior_pulls == 0
    assert configured(arms=1000).policy.prior_pulls > 0


def test_propagation_changes_what_unpulled_arms_are_known_by(dask_client, corpus, tmp_path):
    body = small_config(corpus, str(tmp_path), bandit__propagation="weights", training__stages=1)
    config = parse_config(body, "spread")
    select_data(config, until="bandit")
    state = state_of(config, Stage(config.run, 0, version_of(config), "", ""), 1)
    assert state.pulls.sum() > state.cursor.sum() / pull_sizes(config.bandit).random_documents


@pytest.mark.parametrize("centroids", [[[1.0, 0.0]], [[1.0, 0.0]] * 3], ids=["one arm", "arms that coincide"])
def test_arms_that_no_distance_tells_apart_have_no_neighbours_to_tell_of_a_pull(monkeypatch, centroids):
    vector = pa.list_(pa.float32(), 2)
    still = [[0.0, 0.0] for _ in centroids]
    arms = pa.table({"centroid": pa.array(centroids, vector), "variance": pa.array(still, vector)})
    monkeypatch.setattr(committing, "load_arms", lambda store, version: arms)
    policy = bandit.paper_policy(documents_per_pull=4, propagation="weights")
    neighbours = committing._neighbours(None, f"{len(centroids)} arms", policy, 0)
    state, pull = bandit.initial_state([9] * len(centroids)), Pull(0, 0, 4, 40, 2.5, 1.0, 4)
    told, alone = bandit.update(state, [pull], policy, neighbours), bandit.update(state, [pull], configured().policy)
    assert told.reward_sum.tolist() == alone.reward_sum.tolist() == [2.5] + [0.0] * (len(centroids) - 1)
    assert told.pulls.tolist() == alone.pulls.tolist()


def test_a_state_is_the_last_word_of_the_rounds_before_it_and_reading_them_does_not_recurse(small_run, monkeypatch):
    stage = Stage("long", 0, version_of(small_run), "", "")
    config = small_run.model_copy(update={"run": "long"})
    store = open_store(small_run.workspace)
    arms, n_rounds, depths = load_arms(store, stage.version).num_rows, 40, set()
    read_round = rounds.read_round

    def read(*which):
        depths.add(len(inspect.stack(0)))
        return read_round(*which)

    monkeypatch.setattr(rounds, "read_round", read)
    for number in range(n_rounds):
        row = {"arm": number % arms, "cursor": 1, "pulls": float(number), "reward_sum": -float(number)}
        info = round_info(reward_moments=(number, 0.0, 0.0), accepted_tokens=1, direction="")
        tables = {"arms": pa.Table.from_pylist([row], ARM_SCHEMA), "scores": SCORE_SCHEMA.empty_table()}
        tables["pulls"] = PULL_SCHEMA.empty_table()
        rounds.commit_round(store, "long", 0, number, tables, info)
    last = np.array([max(n for n in range(n_rounds) if n % arms == arm) for arm in range(arms)])
    state = state_of(config, stage, n_rounds)
    assert len(depths) == 1
    assert state.round == n_rounds
    assert np.array_equal(state.pulls, last)
    assert np.array_equal(state.reward_sum, -last)
    assert state.reward_moments[0] == n_rounds - 1
    assert state_of(config, stage, 3).pulls.max() == 2
    assert reason_of(config, stage, n_rounds) is None


def test_a_stage_stops_when_its_rounds_accepted_tokens_hold_the_oversampled_budget(small_run):
    stage = Stage(small_run.run, 0, version_of(small_run), "", "")
    config = small_run.model_copy(update={"bandit": small_run.bandit.model_copy(update={"max_scored_share": 1.0})})
    committed = rounds.list_rounds(open_store(small_run.workspace), small_run.run, 0)
    wanted = config.bandit.oversample * config.selection.budget_tokens / config.training.stages
    held = np.cumsum([r.info.accepted_tokens for r in committed])
    for number, tokens in enumerate(held, start=1):
        assert (reason_of(config, stage, number) == "budget") == (tokens >= wanted)


def committed_tables(config, stage, number):
    store = open_store(config.workspace)
    manifest = rounds.read_round(store, config.run, stage, number)
    return manifest, {name: rounds.read_round_table(store, manifest, name) for name in manifest.tables}


def positions_of(config, pulls):
    """The positions each pull of a round covers: its arm's first, and the cursor's documents from there."""
    first = load_arms(open_store(config.workspace), version_of(config))["position"].to_pylist()
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
        assert [pull["n_scored"] for pull in tables["pulls"].to_pylist()] == [len(own) for own in covered]


def test_a_round_scores_no_more_documents_than_its_pulls_hold(small_run):
    for stage in range(2):
        for number in range(1, rounds.count_rounds(open_store(small_run.workspace), small_run.run, stage)):
            manifest, tables = committed_tables(small_run, stage, number)
            n_pulls = tables["pulls"].num_rows
            at_random = tables["pulls"]["n_documents"].to_numpy().sum()
            passed_over = at_random - tables["pulls"]["n_scored"].to_numpy().sum()
            assert at_random - passed_over <= n_pulls * pull_sizes(small_run.bandit).random_documents
            assert manifest.info.documents <= n_pulls * small_run.bandit.documents_per_pull
            assert manifest.info.active_documents > 0


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
    assert advice.within_arms_deviation**2 == pytest.approx(2)
    assert advice.between_arms_deviation**2 == pytest.approx(1)
    assert advice.wanted_standard_error == pytest.approx(0.5)
    assert advice.documents_per_pull == 8  # 2 / 0.5²
    assert describe_pilot(np.ones(4), np.array([0, 0, 1, 1], dtype=np.int32)).documents_per_pull is None


@pytest.mark.parametrize(("floor", "accepted"), [(0.0, True), (1.0, False)])
def test_an_approximate_scorer_is_used_where_it_ranks_as_exact_scoring_does(small_run, monkeypatch, floor, accepted):
    monkeypatch.setattr("quad_tasks.core.calibration.STEPS", (1.0,))  # coarse, so that the scorers differ in rank
    section = small_run.bandit.model_copy(
        update={"scorer": "forward_only", "scorer_floor": floor, "calibration_documents": 16}
    )
    config = small_run.model_copy(update={"run": f"gated-{floor}", "bandit": section})
    store, settings = open_store(small_run.workspace), round_settings(config, 0)
    version, first = version_of(small_run), rounds.list_rounds(store, small_run.run, 0)[0]
    stage = Stage(config.run, 0, version, stored(store, version)["model"], first.info.direction)
    plan = plan_round.fn(store, stage, 0, settings)
    scores = score_round.fn(store, stage, plan, settings.use)
    found = calibrate_scorer.fn(store, stage, plan, settings, scores)
    commit_round.fn(store, stage, 0, settings, plan, scores, found)
    assert found.accepted is accepted
    assert found.documents == 16
    assert 0.9 < found.spearman < 1
    following = plan_round.fn(store, stage, 1, settings)
    assert following.scorer["scorer"] == ("forward_only" if accepted else "exact")
    assert plan.scorer["scorer"] == "exact"
    exact = score_round.fn(store, stage, following._replace(scorer={"scorer": "exact"}), settings.use)[0]
    used = score_round.fn(store, stage, following, settings.use)[0]
    assert np.array_equal(used["influence"].to_numpy(), exact["influence"].to_numpy()) is not accepted
