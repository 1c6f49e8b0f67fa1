"""A plan is what it says: parts of one ranking, a refit that counts, a gate that goes by its trials."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter

from quad_tasks.core.lm import training
from quad_tasks.experiments import stages
from quad_tasks.experiments.lab.train_choice import common_targets, measure_losses
from quad_tasks.experiments.lab.trials import CONTINUED_RATE, hold_out
from quad_tasks.experiments.stages import (
    Before,
    GatedRefit,
    Plan,
    PlanOutcome,
    Refit,
    Result,
    carry_out,
    first_ranking,
    take_next,
)

NONE_TAKEN = np.empty(0, dtype=np.int64)


@pytest.fixture(scope="module")
def carried(tiny_testbed):
    plans = {
        "once": Plan(),
        "never": Plan(2, "never"),
        "stage": Plan(2, "stage"),
        "gated": Plan(2, "gated"),
        "restart": Plan(2, "never", restart=True),
        "random": Plan(random=True),
    }
    place = (tiny_testbed.workspace, tiny_testbed.key)
    return {name: carry_out(*place, asdict(plan), 0) for name, plan in plans.items()}


def test_one_shot_is_training_on_what_the_simulation_selects(tiny_testbed, carried):
    size = tiny_testbed.size
    ranking = first_ranking(tiny_testbed, 0)
    rows = take_next(tiny_testbed, ranking, Plan(), NONE_TAKEN, 0)
    model = copy.deepcopy(tiny_testbed.model)
    targets = common_targets(size.budget_tokens, 2 * size.batch_tokens)
    total = training.count_steps(targets, 2 * size.batch_tokens)
    training.train(
        model,
        training.make_optimizer(model, 0.01),
        [tiny_testbed.documents[row] for row in np.sort(rows)],
        training.Schedule(CONTINUED_RATE, 0.05 * total, total),
        0,
        size.window_tokens,
        2 * size.batch_tokens,
        size.batch_tokens,
        np.random.default_rng([0, 0, 1]),
        targets,
    )
    expected = measure_losses(model, hold_out(tiny_testbed))
    assert carried["once"].reference_loss == expected.reference_loss
    assert carried["once"].domains == expected.domains
    assert carried["once"].losses == [expected.reference_loss]


def test_the_gate_goes_by_its_trials_and_the_rest_follows(carried):
    (refit,) = carried["gated"].refits
    assert isinstance(refit, GatedRefit)
    fresh, old = refit.trial_losses
    assert refit.accepted == (fresh < old)
    other = carried["stage" if refit.accepted else "never"]
    assert carried["gated"].reference_loss == other.reference_loss
    assert carried["never"].refits == []
    assert carried["stage"].refits == [Refit(refit.stale, refit.agree, accepted=True)]
    assert -1 <= refit.stale <= 1


def test_a_restarted_schedule_trains_otherwise_on_the_same_documents(carried):
    assert carried["restart"].losses[1] != carried["never"].losses[1]
    assert carried["random"].reference_loss > carried["once"].reference_loss


@pytest.mark.parametrize("random", [False, True])
def test_no_document_is_taken_twice(tiny_testbed, random):
    ranking, plan = first_ranking(tiny_testbed, 0), Plan(2, random=random)
    first = take_next(tiny_testbed, ranking, plan, NONE_TAKEN, 0)
    second = take_next(tiny_testbed, ranking, plan, first, 0)
    assert len(second)
    assert not set(first) & set(second)


def test_an_outcome_reads_back_from_json_with_its_kind_of_refit(carried):
    outcomes = TypeAdapter(PlanOutcome)
    for outcome in carried.values():
        assert outcomes.validate_json(outcomes.dump_json(outcome)) == outcome


def test_claims_tables_and_drawings_follow_from_the_plans():
    def outcomes(loss):
        return [PlanOutcome(loss + 0.01 * seed, {}, 3.0, 3.0, [loss], []) for seed in range(3)]

    plans = {name: outcomes(5.0) for name in stages.PLANS}
    plans["2 stages, refit stage"] = outcomes(5.2)
    claims = {claim.claim: claim for claim in stages.judge(plans)}
    worse = claims["reference loss, 2 stages, refit stage less 2 stages, refit never"]
    assert worse.measured == pytest.approx(0.2)
    assert not worse.holds
    assert len(claims) == 5
    result = Result(60, 1000, Before(6.0, 3.1), plans, "gated", list(claims.values()))
    rows = next(iter(stages.lay_out(result).values()))
    assert len(rows) == len(plans)
    assert rows[-1]["plan"] == "2 stages, refit stage"
    assert set(stages.draw(result)) == {"stages"}
