"""The gate goes by its trials, a stage uses what it let pass, and `never` fits once."""

import numpy as np
import pytest
from small_pool import small_config

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.config_file import parse_config
from quad_tasks.core import training
from quad_tasks.core.model import encode
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import open_store


def stage_key(config, number, name):
    return f"runs/{config.run}/stage-{number:02d}/{name}"


def test_the_stage_uses_the_ranking_whose_trial_left_less_loss(small_run):
    store = open_store(small_run.workspace)
    gate = read_manifest(store, stage_key(small_run, 1, "gate.json"))
    first, second = (read_manifest(store, stage_key(small_run, n, "selected.json"))["direction"] for n in range(2))
    fitted = rounds.read_round(store, small_run.run, 1, 0).info["direction"]
    assert gate["accepted"] == (gate["refitted_loss"] < gate["earlier_loss"])
    assert gate["used"] == second == (fitted if gate["accepted"] else first)
    assert fitted != first
    assert not store.exists(stage_key(small_run, 0, "gate.json"))


def test_both_trials_start_from_the_stages_checkpoint(small_run):
    """Trained on, the reference's own loss moved; both trials lie near it and not at it."""
    store = open_store(small_run.workspace)
    gate = read_manifest(store, stage_key(small_run, 1, "gate.json"))
    model, tokenizer = load_checkpoint(
        small_run.workspace, stage_key(small_run, 0, "trained/selected-0"), "float32", "cpu"
    )
    reference = read_manifest(store, f"{gate['used']}/manifest.json")["reference"]
    texts = read_table(store, f"{reference}/reference.parquet", ["text"])["text"].to_pylist()
    nats, targets = training.measure(model, encode(tokenizer, texts), small_run.model.window_tokens, 512)
    for loss in (gate["refitted_loss"], gate["earlier_loss"]):
        assert loss == pytest.approx(nats / targets, rel=0.2)
        assert loss != pytest.approx(nats / targets, rel=1e-6)


def test_without_refits_one_direction_ranks_every_stage(prefect_server, dask_client, corpus, tmp_path):
    from flows.select_data import select_data

    config = parse_config(small_config(corpus, str(tmp_path), training__refit="never"), "never")
    select_data(config)
    store = open_store(str(tmp_path))
    used = {read_manifest(store, stage_key(config, n, "selected.json"))["direction"] for n in range(2)}
    assert len(used) == 1
    assert not store.exists(stage_key(config, 1, "gate.json"))
    tables = [read_table(store, f"{stage_key(config, n, 'selected')}.parquet", ["position"]) for n in range(2)]
    chosen = np.concatenate([table["position"].to_numpy() for table in tables])
    assert len(chosen) == len(set(chosen.tolist()))
