"""The pool's predictions: kept while rounds use them, deleted in their own run alone."""

from types import SimpleNamespace

import pytest

from quad_tasks.config.schema import BanditConfig
from quad_tasks.records import Stage
from quad_tasks.stages.bandit import plan_round
from quad_tasks.stages.bandit.cost import Room
from quad_tasks.stages.bandit.plan_round import drop_predictions, predicted_pool
from quad_tasks.storage.errors import StoreUnavailable
from quad_tasks.storage.keys import prediction_folder, predictions_folder
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
