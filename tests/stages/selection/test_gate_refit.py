"""The gate goes by its trials, a stage uses what it let pass, and `never` fits once."""

import numpy as np
import pyarrow as pa
import pytest
from small_pool import small_config, stored

from quad_tasks.config.load import parse_config
from quad_tasks.core.lm import measurement
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.manifests.run import DocumentLosses
from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.selection import gate_refit
from quad_tasks.stages.selection.select_documents import stage_selection
from quad_tasks.stages.selection.train import training_run
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import open_store


def stage_key(config, number, name):
    return f"runs/{config.run}/stage-{number:02d}/{name}"


def test_the_stage_uses_the_ranking_that_its_gate_names(small_run):
    store = open_store(small_run.workspace)
    gate = stored(store, stage_key(small_run, 1, "gate.json"))
    first, second = (stored(store, stage_key(small_run, n, "selected.json"))["direction"] for n in range(2))
    fitted = rounds.read_round(store, small_run.run, 1, 0).info.direction
    assert gate["accepted"] <= (gate["refitted_loss"] < gate["earlier_loss"])
    assert gate["used"] == second == (fitted if gate["accepted"] else first)
    assert fitted != first
    assert not store.exists(stage_key(small_run, 0, "gate.json"))


def losses(saved_N):
    """Losses of 40 documents of ten targets, each less by what a ranking saves on it."""
    documents = DocumentLosses(nats=tuple((30.0 - np.asarray(saved_N)).tolist()), targets=(10,) * len(saved_N))
    return {"reference": documents}


@pytest.mark.parametrize(
    ("saved_N", "accepted"),
    [
        (np.full(40, 0.5), True),
        (np.where(np.arange(40) % 2, 3.0, -2.5), False),  # less loss by .025 a target, and by chance
        (np.full(40, -0.5), False),
        (np.full(1, 0.5), False),  # one document has no interval
    ],
)
def test_a_refitted_ranking_needs_more_than_a_smaller_loss(small_run, monkeypatch, saved_N, accepted):
    """Its gain over the earlier one, paired by document, must be above 0 with the whole of its interval."""
    store = open_store(small_run.workspace)
    first = stored(store, stage_key(small_run, 0, "selected.json"))["direction"]
    fitted = rounds.read_round(store, small_run.run, 1, 0).info.direction
    checkpoint = stage_key(small_run, 0, "trained/selected-0")
    stage = Stage(small_run.run, 1, pinned_pool(store, small_run.run), checkpoint, fitted)
    said: list[str] = []
    tried = pa.table({"n_tokens": [10] * 40})
    monkeypatch.setattr(gate_refit, "notice", said.append)
    monkeypatch.setattr(gate_refit, "try_choice", lambda store, stage, how, name: name)
    monkeypatch.setattr(gate_refit, "read_trial", lambda store, run, chosen: tried)
    monkeypatch.setattr(
        gate_refit, "map_tasks", lambda *given, **also: [losses(saved_N), losses(np.zeros(len(saved_N)))]
    )
    how = stage_selection(small_run, 1)
    verdict = gate_refit._try_both(store, stage, training_run(small_run), how, first)
    assert verdict.accepted is accepted
    assert verdict.used == (fitted if accepted else first)
    assert (verdict.refitted_loss < verdict.earlier_loss) == (saved_N.mean() > 0)
    assert f"loss is {saved_N.mean() / 10:+.4f} lower by the refitted" in said[0]
    assert ("one document of it gives no interval" in said[0]) == (len(saved_N) == 1)


def test_both_trials_take_as_many_targets_whatever_their_documents_lengths(small_run, monkeypatch):
    """1,200 tokens each: 100 documents have 1,100 targets, six have 1,194."""
    store = open_store(small_run.workspace)
    stage = Stage(small_run.run, 1, pinned_pool(store, small_run.run), "unused", "fitted")
    tables = {"gate-refitted": [12] * 100, "gate-earlier": [200] * 6}
    given = []

    def train(function, items, *rest, **also):
        given.extend(items)
        raise InterruptedError

    monkeypatch.setattr(gate_refit, "try_choice", lambda store, stage, how, name: name)
    monkeypatch.setattr(gate_refit, "read_trial", lambda store, run, chosen: pa.table({"n_tokens": tables[chosen]}))
    monkeypatch.setattr(gate_refit, "map_tasks", train)
    with pytest.raises(InterruptedError):
        gate_refit._try_both(store, stage, training_run(small_run), stage_selection(small_run, 1), "earlier")
    assert [item[-2:] for item in given] == [("gate-refitted", 1100), ("gate-earlier", 1100)]


def test_both_trials_start_from_the_stages_checkpoint(small_run):
    """Trained on, the reference's own loss moved; both trials lie near it and not at it."""
    store = open_store(small_run.workspace)
    gate = stored(store, stage_key(small_run, 1, "gate.json"))
    model, tokenizer = load_checkpoint(
        open_store(small_run.workspace), stage_key(small_run, 0, "trained/selected-0"), "float32", "cpu"
    )
    reference = stored(store, f"{gate['used']}/manifest.json")["reference"]
    texts = read_table(store, f"{reference}/reference.parquet", ["text"])["text"].to_pylist()
    nats, targets = measurement.measure(model, encode(tokenizer, texts), small_run.model.window_tokens, 512)
    for loss in (gate["refitted_loss"], gate["earlier_loss"]):
        assert loss == pytest.approx(nats / targets, rel=0.2)
        assert loss != pytest.approx(nats / targets, rel=1e-6)


@pytest.mark.slow
def test_without_refits_one_direction_ranks_every_stage(dask_client, corpus, tmp_path):
    from flows.select_data import select_data

    changes = {"training__refit": "never", "training__control": False, "training__frontier": []}
    config = parse_config(small_config(corpus, str(tmp_path), **changes), "never")
    select_data(config)
    store = open_store(str(tmp_path))
    used = {stored(store, stage_key(config, n, "selected.json"))["direction"] for n in range(2)}
    assert len(used) == 1
    assert not store.exists(stage_key(config, 1, "gate.json"))
    tables = [read_table(store, f"{stage_key(config, n, 'selected')}.parquet", ["position"]) for n in range(2)]
    chosen = np.concatenate([table["position"].to_numpy() for table in tables])
    assert len(chosen) == len(set(chosen.tolist()))
