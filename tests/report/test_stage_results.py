"""What the report says of a stage is what it was ranked by, trained on and measured at."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from small_pool import small_config, stored

from quad_tasks.config.load import parse_config
from quad_tasks.report import stage_results
from quad_tasks.report.report_json import parse_report
from quad_tasks.storage.store import open_store


@pytest.fixture
def body(small_run):
    return open_store(small_run.workspace).get(f"runs/{small_run.run}/report/report.json")


def test_a_stage_is_told_by_the_ranking_that_its_gate_let_through(small_run, body):
    store, report = open_store(small_run.workspace), parse_report(body)
    gate = stored(store, f"runs/{small_run.run}/stage-01/gate.json")
    assert [stage.refit_accepted for stage in report.stages] == [None, gate["accepted"]]
    for number, stage in enumerate(report.stages):
        chosen = stored(store, f"runs/{small_run.run}/stage-{number:02d}/selected.json")
        assert (stage.direction, stage.threshold) == (chosen["direction"], chosen["threshold"])
        assert report.provenance.stages[number].direction == chosen["direction"]
    assert report.stages[1].direction == gate["used"]


def test_every_stage_says_the_steps_of_its_trainings_and_they_are_equal(small_run, body):
    store = open_store(small_run.workspace)
    for number, stage in enumerate(parse_report(body).stages):
        folder = f"runs/{small_run.run}/stage-{number:02d}"
        for kind, losses in (("selected", stage.selected), ("random", stage.random)):
            training = stored(store, f"{folder}/trained/{kind}-0/losses.json")["training"]
            assert (losses.steps, losses.target_tokens) == (training["steps"], training["target_tokens"])
            chosen = stored(store, f"{folder}/{kind if kind == 'selected' else 'random-0'}.json")
            assert 0 < losses.target_tokens <= chosen["tokens"] - chosen["documents"]
            assert losses.steps == math.ceil(losses.target_tokens / small_run.training.batch_tokens)
            assert training["padded_tokens"] >= 0
        assert abs(stage.selected.steps - stage.random.steps) <= 0.01 * stage.random.steps


def test_losses_are_means_over_seeds_of_what_was_measured(small_run, body):
    store, report = open_store(small_run.workspace), parse_report(body)
    for stage in report.stages:
        trained = f"runs/{small_run.run}/stage-{stage.stage:02d}/trained"
        for kind, losses in (("selected", stage.selected), ("random", stage.random)):
            measured = [stored(store, f"{trained}/{kind}-{seed}/losses.json") for seed in stage.seeds]
            assert losses.reference_loss_by_seed == tuple(one["reference_loss"] for one in measured)
            assert losses.reference_loss == pytest.approx(np.mean(losses.reference_loss_by_seed))
            assert losses.domains == pytest.approx(measured[0]["domains"])
        assert [point.general_share for point in stage.frontier] == [0.05, 0.5, 1.0]
        assert stage.frontier[-1].reference_loss == stage.random.reference_loss_by_seed[0]


def test_a_selection_of_the_general_share_alone_is_a_point_beside_the_random_control(tmp_path, monkeypatch):
    changes = {"selection__general_share": 1.0, "training__frontier": [0.5, 0.0]}
    run = SimpleNamespace(config=parse_config(small_config(tmp_path, str(tmp_path), **changes), "test"))
    losses = {"general-0": 1.0, "general-0.5": 2.0, "selected-0": 3.0, "random-0": 4.0}

    def read(_run, _stage, name):
        return SimpleNamespace(training=None, domains={}, reference_loss=losses[name])

    monkeypatch.setattr(stage_results, "_read_losses", read)
    points = [(point.general_share, point.reference_loss) for point in stage_results._frontier(run, 0)]
    assert points == [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (1.0, 4.0)]
