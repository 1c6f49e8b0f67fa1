"""The pool's predictions: kept while rounds use them, deleted in their own run alone."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from quad_tasks.config.schema import BanditConfig, ConfigError
from quad_tasks.core import bandit
from quad_tasks.records import Stage
from quad_tasks.stages.bandit import plan_round
from quad_tasks.stages.bandit.cost import Room
from quad_tasks.stages.bandit.draw_pulls import OpenDocuments, covered_positions
from quad_tasks.stages.bandit.ledger import LedgerState
from quad_tasks.stages.bandit.plan_round import drop_predictions, predicted_pool
from quad_tasks.storage.errors import StoreUnavailable
from quad_tasks.storage.keys import prediction_folder, predictions_folder, run_folder
from quad_tasks.storage.lease import LeaseLost, Owner, claim_lease
from quad_tasks.storage.store import open_store

STAGE = Stage(run="run", number=1, version="version", checkpoint="checkpoint", direction="direction")


@pytest.fixture(autouse=True)
def predictions_are_a_file(monkeypatch):
    """Predict the pool by writing an empty block."""

    def write(store, stage, settings, ledger):
        store.put(f"{prediction_folder(stage.run, stage.number, ledger.fitted_round)}/block.npy", b"")
        return SimpleNamespace(round=ledger.fitted_round)

    monkeypatch.setattr(plan_round, "_predict_pool", write)
    plan_round._predicted_pools().clear()
    yield
    plan_round._predicted_pools().clear()


def predict_in(store, round_: int):
    return predicted_pool(store, STAGE, None, SimpleNamespace(fitted_round=round_))


def test_a_prediction_replaces_its_stage_s_last_and_what_a_killed_driver_left(tmp_path):
    store = open_store(str(tmp_path))
    store.put(f"{prediction_folder('run', 1, 0)}/left.npy", b"")
    store.put(f"{prediction_folder('run', 0, 0)}/other-stage.npy", b"")
    assert predict_in(store, 3) is predict_in(store, 3)
    assert store.list(predictions_folder("run", 1)) == [f"{prediction_folder('run', 1, 3)}/block.npy"]
    assert predict_in(store, 5).round == 5
    assert store.list(predictions_folder("run", 1)) == [f"{prediction_folder('run', 1, 5)}/block.npy"]
    drop_predictions(store, STAGE)
    assert store.list() == [f"{prediction_folder('run', 0, 0)}/other-stage.npy"]


def test_predictions_of_a_run_that_another_process_drives_are_left_alone(tmp_path):
    store = open_store(str(tmp_path))
    predict_in(store, 3)
    another = Owner(host="elsewhere", user="ada", pid=12, started=datetime(2024, 5, 6, tzinfo=UTC))
    claim_lease(store, run_folder(STAGE.run), another)
    for drop in (lambda: drop_predictions(store, STAGE), lambda: predict_in(store, 5)):
        with pytest.raises(LeaseLost):
            drop()
    assert store.list(predictions_folder("run", 1)) == [f"{prediction_folder('run', 1, 3)}/block.npy"]


def test_a_run_needs_nothing_of_the_store_of_the_last_run_in_its_process(tmp_path, monkeypatch):
    lost, own = open_store(str(tmp_path / "lost")), open_store(str(tmp_path / "own"))
    predict_in(lost, 3)

    def fail(key):
        raise StoreUnavailable(key)

    monkeypatch.setattr(lost, "delete", fail)
    monkeypatch.setattr(lost, "list", fail)
    predict_in(own, 3)
    assert len(own.list()) == 1


@pytest.mark.parametrize(("scorer", "pilot"), [("exact", 4), ("auto", 4), ("conditional_loss", 5)])
def test_a_pilot_is_as_large_as_half_of_what_its_own_scorer_can_pay_for(scorer, pilot, monkeypatch):
    """Room for 75 of what scoring 100 documents takes: 1,000 exactly, 750 by the conditional loss."""
    prices = {"exact": 1000.0, "conditional_loss": 750.0}
    monkeypatch.setattr(plan_round, "pool_cost", lambda *known: prices[known[-1]])
    settings = SimpleNamespace(bandit=BanditConfig(scorer=scorer), reading=None)
    assert plan_round._pilot_sizes(None, STAGE, settings, Room(10**6, 75.0), 100, False) == (pilot, 0)


def pilot_of(monkeypatch, costs, flops, closed=(), scored=()):
    """Plan the pilot of two documents of a pool of four: arms of one each, so that each is a draw of its own."""
    monkeypatch.setattr(plan_round, "pool_cost", lambda *known: 1.0)
    monkeypatch.setattr(plan_round, "reading_cost", lambda *known: 0.25)
    state = bandit.initial_state([1, 1, 1, 1])
    ledger = LedgerState(state, scored_S=np.array(scored, dtype=np.int64))
    first_K = np.arange(4)
    documents = OpenDocuments(first_K, state.cursor, first_K + 1, np.array(closed, dtype=np.int64), ledger.scored_S)
    settings = SimpleNamespace(bandit=BanditConfig(), reading=None)
    common = (STAGE, ledger, documents, Room(4, flops), lambda positions: np.array(costs[: len(positions)]))
    pilot = plan_round._plan_pilot(*common, (2, 0), np.random.default_rng(0))
    plan_round._refuse_small_pilot(None, STAGE, settings, ledger, documents, pilot)
    return pilot


@pytest.mark.parametrize(("costs", "scored"), [([1.0, 9.0], 1), ([9.0, 9.0], 0)])
def test_a_pilot_that_can_pay_for_less_than_two_of_the_documents_drawn_is_refused(monkeypatch, costs, scored):
    """Two of mean length can be paid for, and those drawn are longer."""
    message = (
        rf"bandit\.max_cost_share: expected to leave stage 1 .* at least 2 documents, got that of {scored}; .* 0\.25"
    )
    with pytest.raises(ConfigError, match=message):
        pilot_of(monkeypatch, costs, 5.0)
    assert sum(map(len, pilot_of(monkeypatch, [1.0, 4.0], 5.0).chunks)) == 2


def test_a_pool_with_one_document_left_to_score_is_refused_by_its_inputs(monkeypatch):
    with pytest.raises(ConfigError, match=r"pool\.inputs: expected at least 2 documents that stage 1 .* got 1 of 4"):
        pilot_of(monkeypatch, [1.0], float("inf"), closed=[0, 1, 2])


def test_a_refitted_stage_with_one_document_open_scores_others_again(monkeypatch):
    pilot = pilot_of(monkeypatch, [1.0], float("inf"), closed=[0, 1, 2], scored=[0, 1, 2])
    assert pilot.chunks[0] == (3,)
    assert len(pilot.chunks[1]) == 2
    assert set(pilot.chunks[1]) < {0, 1, 2}


def test_a_later_pilot_draws_every_open_document_with_the_same_chance():
    """A half of arm 0 was drawn actively along the direction, a third of arm 1 was chosen: open ones alone count."""
    generator, n_pilot, repeats = np.random.default_rng(0), 12, 4000
    state, first_K, drawn_N = bandit.initial_state([30, 30]), np.array([0, 30]), np.zeros(60)
    for _ in range(repeats):
        order = generator.permutation(30)  # documents of an arm stand in a random order
        chosen, scored_S = np.sort(30 + order[:10]), np.sort(generator.permutation(30)[:15])
        ledger = LedgerState(state, scored_S=scored_S)
        documents = OpenDocuments(first_K, state.cursor, first_K + 30, chosen, scored_S)
        pilot = plan_round._plan_pilot(
            STAGE, ledger, documents, Room(60, 60.0), lambda asked: np.ones(len(asked)), (n_pilot, 0), generator
        )
        covered = np.concatenate([covered_positions(first_K, draw) for draw in pilot.draws])
        drawn_N[np.setdiff1d(covered, chosen)] += 1
        asked = np.concatenate([np.array(chunk) for chunk in pilot.chunks])
        assert set(asked) == set(covered) - set(chosen) - set(scored_S)
    assert np.allclose(drawn_N.reshape(2, 30).sum(axis=1) / repeats, [n_pilot * 30 / 50, n_pilot * 20 / 50], rtol=0.03)
