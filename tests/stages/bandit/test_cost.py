"""What scoring costs: caps of a configuration, what is read before, and rounds cut to what a stage may spend."""

import math

import numpy as np
import pytest
from small_pool import small_config

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import flops
from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.run import pinned_pool, starting_checkpoint
from quad_tasks.stages.bandit import cost as module
from quad_tasks.stages.bandit.cost import (
    CostCap,
    cheapest_unscored,
    cost_cap,
    cost_limit,
    pool_cost,
    read_lengths,
    read_settings,
    read_size,
    reading_cost,
    scoring_costs,
    whole_pool_reading,
)
from quad_tasks.stages.bandit.plan_round import EXACT, plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.bandit.stopping import cost_so_far, stop_reason
from quad_tasks.storage import rounds
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import open_store


def configured(**keys):
    body = small_config("/corpus", "/workspace")
    mode = keys.pop("mode", "predicted")
    body["bandit"], body["selection"]["mode"] = keys, mode
    return parse_config(body, "small")


def capped(small_run, run, **keys):
    """The small run's configuration under another cap and name."""
    bandit = small_run.bandit.model_copy(update={"max_scored_share": None, **keys})
    return small_run.model_copy(update={"run": run, "bandit": bandit})


def version_of(config):
    return pinned_pool(open_store(config.workspace), config.run)


def all_costs(store, version, reading, scorer):
    return scoring_costs(store, version, reading, scorer, np.arange(read_version(store, version).documents))


def test_a_cap_is_the_configured_one_or_a_tenth_beside_what_is_read_before():
    assert cost_cap(configured()) == CostCap(0.1, beside_reading=True)
    assert cost_cap(configured(max_cost_share=0.3)) == CostCap(0.3, beside_reading=False)
    assert cost_cap(configured(max_cost_share=0.3, max_scored_share=0.2)) == CostCap(0.3, beside_reading=False)
    assert cost_cap(configured(max_scored_share=0.2)) is None  # as before there were costs
    assert cost_cap(configured(mode="instance")) is None


def test_what_is_read_before_is_paid_first_and_stages_share_the_rest():
    assert cost_limit(None, 100.0, 30.0, 0.5) == math.inf
    assert cost_limit(CostCap(0.5, beside_reading=False), 100.0, 30.0, 0.5) == 30 + 20 / 2
    assert cost_limit(CostCap(0.5, beside_reading=True), 100.0, 30.0, 0.5) == 30 + 50 / 2
    assert cost_limit(CostCap(0.5, beside_reading=True), 100.0, 30.0, 1.0) == 80


def test_costs_of_a_pool_are_those_of_its_models_shape(small_run):
    store, version = open_store(small_run.workspace), version_of(small_run)
    model, _ = load_checkpoint(store, starting_checkpoint(store, version), "float32", "cpu")
    size, reading = flops.model_size(model, find_blocks(model)), read_settings(small_run)
    assert read_size(store, version, "joint") == size
    n_tokens = read_positions(store, version, np.arange(read_version(store, version).documents), ["n_tokens"])
    n_tokens = n_tokens["n_tokens"].to_numpy()
    exact = flops.document_flops(flops.exact_flops(size), n_tokens, 64)
    assert np.array_equal(all_costs(store, version, reading, EXACT), exact)
    some = np.array([7, 3])
    assert np.array_equal(scoring_costs(store, version, reading, EXACT, some), exact[some])
    cheap = np.argsort(exact, kind="stable")
    assert cheapest_unscored(store, version, reading, EXACT, np.bincount(n_tokens[cheap[:9]])) == exact[cheap[9]]
    assert cheapest_unscored(store, version, reading, EXACT, np.bincount(n_tokens)) == np.inf
    assert pool_cost(store, version, reading) == exact.sum()
    assert reading_cost(store, version, reading) == 0
    cheaper = all_costs(store, version, reading, {"scorer": "forward_only", "step": 1.0})
    assert np.array_equal(cheaper, flops.document_flops(flops.forward_only_flops(size), n_tokens, 64))
    factored = all_costs(store, version, reading, {"scorer": "low_rank", "energy": 0.9, "numbers": 100})
    assert np.array_equal(factored, flops.document_flops(flops.contracted_flops(size, 100), n_tokens, 64))


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_lengths_come_in_the_order_asked_for_however_many_one_task_reads(small_run, monkeypatch, at_once):
    monkeypatch.setattr(module, "READ_DOCUMENTS", at_once)
    store, version = open_store(small_run.workspace), version_of(small_run)
    positions = np.random.default_rng(0).permutation(read_version(store, version).documents)[:20]
    expected = read_positions(store, version, positions, ["n_tokens"])["n_tokens"].to_pylist()
    assert module.read_lengths(store, version, positions).tolist() == expected
    assert module.read_lengths(store, version, positions[:0]).tolist() == []


def test_a_round_reads_the_lengths_of_what_it_draws_alone(small_run, monkeypatch):
    """What was scored has its length in the ledger, what lies near the cut in the predictions' blocks."""
    asked = []
    monkeypatch.setattr(module, "read_lengths", lambda *given: asked.append(given[-1]) or read_lengths(*given))
    store, version = open_store(small_run.workspace), version_of(small_run)
    documents = read_version(store, version).documents
    stage = Stage(small_run.run, 0, version, "", rounds.read_round(store, small_run.run, 0, 0).info.direction)
    settings = round_settings(capped(small_run, small_run.run, max_cost_share=0.9), 0)
    plan = plan_round.fn(store, stage, 1, settings)
    assert len(plan.positions()) > len(asked[0]) > 0
    assert set(np.concatenate(asked)) < set(plan.positions())
    assert sum(map(len, asked)) < documents / 2
    assert stop_reason(store, stage, 1, settings) is None
    assert len(asked) == 1


def test_hidden_states_and_an_embedding_by_the_model_are_forward_passes(small_run):
    store = open_store(small_run.workspace)
    size, n_tokens = read_size(store, version_of(small_run), "joint"), np.array([100, 10])
    body = small_config("/corpus", "/workspace", bandit__features="hidden_states", embedding__method="model")
    body["embedding"]["max_tokens"] = 20
    found = whole_pool_reading(size, n_tokens, np.array([1, 3]), read_settings(parse_config(body, "small")))
    states = flops.document_flops(flops.forward_flops(size), n_tokens, 64) @ [1, 3]
    first_20 = flops.document_flops(flops.forward_flops(size, head=False), np.array([20, 10]), 64) @ [1, 3]
    assert found == pytest.approx(states + first_20)


def test_rounds_say_what_they_cost(small_run):
    """All stages together; what was scored again at the second stage's start counts too."""
    store, version = open_store(small_run.workspace), version_of(small_run)
    exact, total = all_costs(store, version, read_settings(small_run), EXACT), 0.0
    for number in range(2):
        for committed in rounds.list_rounds(store, small_run.run, number):
            for name in ("scores", "rescored"):
                if name in committed.tables:
                    table = rounds.read_round_table(store, committed, name)
                    total += exact[table["position"].to_numpy()].sum()
            cost = committed.info.cost
            assert cost.so_far == pytest.approx(total)
            assert cost.share == pytest.approx(total / exact.sum())
        assert cost_so_far(store, Stage(small_run.run, number, version, "", "")) == cost.share


@pytest.mark.parametrize("documents", [0.4, 1.5, 3.0, 4.0])
def test_the_last_round_is_cut_to_what_may_still_be_spent(small_run, documents):
    """A stage has two halves: the cap leaves the first this many documents of mean cost after its pilot."""
    store, version = open_store(small_run.workspace), version_of(small_run)
    costs = all_costs(store, version, read_settings(small_run), EXACT)
    pilot = rounds.read_round(store, small_run.run, 0, 0).info
    room = documents * costs.mean()
    config = capped(small_run, small_run.run, max_cost_share=2 * (pilot.cost.so_far + room) / costs.sum())
    stage = Stage(small_run.run, 0, version, "", pilot.direction)
    plan = plan_round.fn(store, stage, 1, round_settings(config, 0))
    spent = costs[plan.positions()].sum()
    assert plan.cut
    assert spent <= room
    assert room - spent < costs.max()
    assert (len(plan.positions()) > 0) or documents < 2


def test_a_stage_ends_where_the_cheapest_document_left_costs_too_much(small_run):
    store, version = open_store(small_run.workspace), version_of(small_run)
    costs = all_costs(store, version, read_settings(small_run), EXACT)
    pilot = rounds.read_round(store, small_run.run, 0, 0).info
    stage = Stage(small_run.run, 0, version, "", pilot.direction)

    def reason(room):
        share = 2 * (pilot.cost.so_far + room) / costs.sum()
        return stop_reason(store, stage, 1, round_settings(capped(small_run, small_run.run, max_cost_share=share), 0))

    assert reason(0.5 * costs.min()) == "max_cost"
    assert reason(costs.max()) is None


def test_a_pilot_takes_half_of_what_its_stage_may_spend(small_run):
    store, version = open_store(small_run.workspace), version_of(small_run)
    costs = all_costs(store, version, read_settings(small_run), EXACT)
    config = capped(small_run, "half-cost", max_cost_share=2 * 16 * costs.mean() / costs.sum())
    plan = plan_round.fn(store, Stage("half-cost", 0, version, "", ""), 0, round_settings(config, 0))
    assert len(plan.positions()) == 8
    assert costs[plan.positions()].sum() <= 16 * costs.mean()


def test_a_cap_that_leaves_nothing_to_score_is_refused_with_numbers(small_run):
    store, version = open_store(small_run.workspace), version_of(small_run)
    stage = Stage("dear", 0, version, "", "")
    config = capped(small_run, "dear", max_cost_share=0.2, features="hidden_states")
    expected = r"max_cost_share: expected to leave stage 0 .* at least 2 .*, got that of 0; hidden states .* take 0\.3"
    with pytest.raises(ConfigError, match=expected):
        plan_round.fn(store, stage, 0, round_settings(config, 0))
