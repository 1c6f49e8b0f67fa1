"""A plan is what it says: parts of one ranking, a refit that counts, a gate that goes by its trials."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest

from quad_tasks.core import training
from quad_tasks.experiments import stages
from quad_tasks.experiments.stages import Plan, carry_out
from quad_tasks.experiments.trials import CONTINUED_RATE, measure_model


@pytest.fixture(scope="module")
def carried(tiny_laboratory):
    plans = {
        "once": Plan(),
        "never": Plan(2, "never"),
        "stage": Plan(2, "stage"),
        "gated": Plan(2, "gated"),
        "restart": Plan(2, "never", restart=True),
        "random": Plan(random=True),
    }
    place = (tiny_laboratory.workspace, tiny_laboratory.key)
    return {name: carry_out(*place, asdict(plan), 0) for name, plan in plans.items()}


def test_one_shot_is_training_on_what_the_look_up_chooses(tiny_laboratory, carried):
    size = tiny_laboratory.size
    ranking = stages._first_ranking(tiny_laboratory, 0)
    rows = stages._next(tiny_laboratory, ranking, size.budget_tokens, np.empty(0, dtype=np.int64), 0, False)
    model = copy.deepcopy(tiny_laboratory.model)
    total = size.budget_tokens
    training.train(
        model,
        training.make_optimizer(model, 0.01),
        [tiny_laboratory.documents[row] for row in np.sort(rows)],
        training.Schedule(CONTINUED_RATE, 0.05 * total, total),
        0,
        size.window_tokens,
        2 * size.batch_tokens,
        np.random.default_rng([0, 0]),
    )
    assert carried["once"]["reference_loss"] == measure_model(tiny_laboratory, model)["reference_loss"]
    assert carried["once"]["losses"] == [carried["once"]["reference_loss"]]


def test_the_gate_goes_by_its_trials_and_the_rest_follows(carried):
    gated = carried["gated"]
    (refit,) = gated["refits"]
    fresh, old = refit["trial_losses"]
    assert refit["accepted"] == (fresh < old)
    other = carried["stage" if refit["accepted"] else "never"]
    assert gated["reference_loss"] == other["reference_loss"]
    assert carried["never"]["refits"] == []
    assert carried["stage"]["refits"][0]["accepted"]
    assert carried["stage"]["refits"][0]["stale"] == refit["stale"] <= 1


def test_a_restarted_schedule_trains_otherwise_on_the_same_documents(carried):
    assert carried["restart"]["losses"][1] != carried["never"]["losses"][1]
    assert carried["random"]["reference_loss"] > carried["once"]["reference_loss"]


def test_no_document_is_taken_twice(tiny_laboratory):
    ranking = stages._first_ranking(tiny_laboratory, 0)
    first = stages._next(tiny_laboratory, ranking, 120, np.empty(0, dtype=np.int64), 0, False)
    second = stages._next(tiny_laboratory, ranking, 120, first, 0, False)
    assert len(second)
    assert not set(first) & set(second)


def test_claims_tables_and_drawings_follow_from_the_plans(carried):
    def losses(value):
        return [
            {"reference_loss": value + 0.01 * seed, "losses": [value], "other_domains_bpb": 3.0, "refits": []}
            for seed in range(3)
        ]

    plans = {name: losses(5.0) for name in stages.PLANS}
    plans["2 stages, refit stage"] = losses(5.2)
    shows = {show["claim"]: show for show in stages.judge(plans)}
    worse = shows["reference loss, 2 stages, refit stage less 2 stages, refit never"]
    assert worse["measured"] == pytest.approx(0.2)
    assert not worse["holds"]
    assert len(shows) == 5
    body = {
        "plans": plans,
        "before": {"reference_loss": 6.0, "other_domains_bpb": 3.1},
        "budget_tokens": 1000,
        "documents": 60,
        "shows": list(shows.values()),
    }
    rows = next(iter(stages.tables(body).values()))
    assert len(rows) == len(plans)
    assert set(stages.draw(body)) == {"stages"}
    assert replace(Plan(), stages=2) == Plan(2)
