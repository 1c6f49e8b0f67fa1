"""A choice on looked-up scores pays for what it sees, and spends no more than it may."""

import dataclasses

import numpy as np
import pytest

from quad_tasks.core.selection import fill_budget
from quad_tasks.experiments.lookup import Rules, choose, influence_share, run_policy

N, ARMS, BUDGET = 400, 8, 3_000


@pytest.fixture
def pool():
    generator = np.random.default_rng(0)
    arm = generator.integers(0, ARMS, N).astype(np.int32)
    features = generator.standard_normal((N, 4)) + arm[:, None]
    influence = 0.5 * features[:, 0] + generator.standard_normal(N)
    return {
        "influence_N": influence,
        "arm_N": arm,
        "n_tokens_N": generator.integers(5, 60, N),
        "features_ND": features,
        "budget_tokens": BUDGET,
    }


@pytest.mark.parametrize("mode", ["predicted", "instance", "cluster"])
@pytest.mark.parametrize("active", [0, 12])
def test_what_was_not_scored_does_not_matter(pool, mode, active):
    rules = Rules(mode=mode, active_documents=active, pilot_documents=20)
    choice = choose(**pool, rules=rules, seed=3)
    assert choice.scored.sum() == int(0.1 * N)
    assert pool["n_tokens_N"][choice.rows].sum() <= BUDGET
    unseen = np.where(choice.scored, pool["influence_N"], 1e6)
    again = choose(**{**pool, "influence_N": unseen}, rules=rules, seed=3)
    np.testing.assert_array_equal(again.rows, choice.rows)


def test_scoring_everything_takes_the_best(pool):
    rules = Rules(scored_share=1.0, threshold=-np.inf, general_share=0.0)
    rows = choose(**pool, rules=rules).rows
    best = fill_budget(np.argsort(-pool["influence_N"], kind="stable"), pool["n_tokens_N"], BUDGET)
    assert set(rows) == set(best)
    assert influence_share(rows, pool["influence_N"], pool["n_tokens_N"], BUDGET) == pytest.approx(1.0, abs=0.02)
    everything = influence_share(np.arange(N), pool["influence_N"], pool["n_tokens_N"], BUDGET)
    assert everything == pytest.approx(0.0, abs=1e-12)


def test_a_general_share_takes_from_the_rest_whatever_its_influence(pool):
    rules = Rules(scored_share=1.0, threshold=-np.inf, general_share=0.25)
    rows = choose(**pool, rules=rules).rows
    order = np.argsort(-pool["influence_N"], kind="stable")
    targeted = fill_budget(order, pool["n_tokens_N"], int(0.75 * BUDGET))
    np.testing.assert_array_equal(rows[: len(targeted)], targeted)
    assert BUDGET - 60 < pool["n_tokens_N"][rows].sum() <= BUDGET


def test_the_threshold_is_the_pilots_quantile(pool):
    low = choose(**pool, rules=Rules(mode="instance", threshold_quantile=0.0, pilot_documents=20)).threshold
    high = choose(**pool, rules=Rules(mode="instance", threshold_quantile=1.0, pilot_documents=20)).threshold
    assert low < high <= pool["influence_N"].max()


def test_arms_are_pulled_by_the_policy_given(pool):
    rules = Rules(policy=dataclasses.replace(run_policy(), arms_per_round=1), active_documents=0, pilot_documents=8)
    assert choose(**pool, rules=rules).scored.sum() == int(0.1 * N)
