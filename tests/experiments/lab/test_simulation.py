"""A simulated run depends on nothing that it did not score, and spends no more than it may."""

import dataclasses

import numpy as np
import pytest
from drawn_streams import note_streams

from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.experiments.lab.simulation import (
    Pool,
    Rules,
    influence_share,
    run_policy,
    select_from_scores,
    simulate_selection,
    spend_scores,
)

N, ARMS, BUDGET = 400, 8, 3_000


@pytest.fixture
def influence(pool):
    return 0.5 * pool.features[:, 0] + np.random.default_rng(1).standard_normal(N)


@pytest.fixture
def pool():
    generator = np.random.default_rng(0)
    arm = generator.integers(0, ARMS, N).astype(np.int32)
    features = generator.standard_normal((N, 4)) + arm[:, None]
    return Pool(arm, generator.integers(5, 60, N), features, BUDGET)


@pytest.mark.parametrize("mode", ["predicted", "instance", "cluster"])
@pytest.mark.parametrize("active", [0, 12])
def test_what_was_not_scored_does_not_matter(influence, pool, mode, active):
    rules = Rules(mode=mode, active_documents=active, pilot_documents=20)
    selected = simulate_selection(influence, pool, rules, seed=3)
    assert selected.scored.sum() == int(0.1 * N)
    assert pool.n_tokens[selected.rows].sum() <= BUDGET
    unseen = np.where(selected.scored, influence, 1e6)
    again = simulate_selection(unseen, pool, rules, seed=3)
    np.testing.assert_array_equal(again.rows, selected.rows)


def test_a_function_scores_as_known_influence_does(influence, pool):
    asked = []

    def score(rows):
        asked.extend(rows.tolist())
        return influence[rows]

    known, scored = (simulate_selection(each, pool, seed=2) for each in (influence, score))
    np.testing.assert_array_equal(known.rows, scored.rows)
    assert sorted(asked) == np.flatnonzero(known.scored).tolist()


def test_scoring_everything_takes_the_best(influence, pool):
    rules = Rules(scored_share=1.0, threshold=-np.inf, general_share=0.0)
    rows = simulate_selection(influence, pool, rules).rows
    best = fill_budget(np.argsort(-influence, kind="stable"), pool.n_tokens, BUDGET)
    assert set(rows) == set(best)
    assert influence_share(rows, influence, pool.n_tokens, BUDGET) == pytest.approx(1.0, abs=0.02)
    everything = influence_share(np.arange(N), influence, pool.n_tokens, BUDGET)
    assert everything == pytest.approx(0.0, abs=1e-12)


def test_a_general_share_takes_from_the_rest_whatever_its_influence(influence, pool):
    rules = Rules(scored_share=1.0, threshold=-np.inf, general_share=0.25)
    rows = simulate_selection(influence, pool, rules).rows
    order = np.argsort(-influence, kind="stable")
    targeted = fill_budget(order, pool.n_tokens, int(0.75 * BUDGET))
    np.testing.assert_array_equal(rows[: len(targeted)], targeted)
    assert BUDGET - 60 < pool.n_tokens[rows].sum() <= BUDGET


def test_what_was_taken_before_and_its_near_duplicates_are_not_taken_again(influence, pool):
    embedding = np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    best = int(np.argmax(influence))
    twin = int(np.flatnonzero((pool.arm == pool.arm[best]) & (np.arange(N) != best))[0])
    embedding[twin] = embedding[best]
    pool = dataclasses.replace(pool, embedding=embedding)
    rules = Rules(scored_share=1.0, threshold=-np.inf, general_share=0.0)
    scores = spend_scores(influence, pool, rules, 0)
    first = select_from_scores(scores, pool, rules, 0).rows
    assert best in first
    assert twin not in first
    second = select_from_scores(scores, pool, rules, 0, taken=first).rows
    assert len(second)
    assert not set(second) & {*first.tolist(), twin}


def test_the_threshold_is_the_pilots_quantile(influence, pool):
    low, high = (
        simulate_selection(influence, pool, Rules(mode="instance", threshold_quantile=q, pilot_documents=20)).threshold
        for q in (0.0, 1.0)
    )
    assert low < high <= influence.max()


def test_arms_are_pulled_by_the_policy_given(influence, pool):
    rules = Rules(policy=dataclasses.replace(run_policy(), arms_per_round=1), active_documents=0, pilot_documents=8)
    assert simulate_selection(influence, pool, rules).scored.sum() == int(0.1 * N)


def test_the_share_of_a_selection_is_worked_by_hand():
    # tokens all alike: the pool's mean is 2, the best two average 3.5, the selection 2.5
    rows, influence, n_tokens = np.array([1, 3]), np.array([0.0, 1.0, 3.0, 4.0]), np.full(4, 10)
    assert influence_share(rows, influence, n_tokens, 20) == pytest.approx((2.5 - 2) / (3.5 - 2))


def test_flops_limit_what_is_scored_after_the_pilot_by_a_cheaper_scorer(influence, pool):
    cost = pool.n_tokens / pool.n_tokens.sum()
    priced = dataclasses.replace(pool, cost=cost)
    rules = Rules(cost_share=0.2, scorer_cost=0.5, trial_cost=0.01, pilot_documents=20)
    selected = simulate_selection(influence, priced, rules, seed=1)
    # the pilot is what a run that stops after it scores: as dear as exact scores
    pilot = simulate_selection(influence, priced, dataclasses.replace(rules, trial_cost=1.0), seed=1)
    assert pilot.scored.sum() == 20
    assert pilot.cost_share == pytest.approx(cost[pilot.scored].sum() + 1.0)
    later = selected.scored & ~pilot.scored
    assert selected.cost_share == pytest.approx(cost[pilot.scored].sum() + 0.01 + 0.5 * cost[later].sum())
    assert 0.2 - 0.5 * cost.max() < selected.cost_share <= 0.2


def test_counted_documents_cost_their_share(influence, pool):
    assert simulate_selection(influence, pool).cost_share == pytest.approx(0.1)


def test_the_general_share_has_a_stream_of_its_own(influence, pool, monkeypatch):
    states = note_streams(monkeypatch)
    simulate_selection(influence, pool, Rules(pilot_documents=20), seed=3)
    assert len(set(states)) == len(states) > 1
