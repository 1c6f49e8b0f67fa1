"""Chosen documents are tokenized block by block; the learning rate follows from the model where none is configured."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pytest
from small_pool import pool_version, small_config, stored

from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer
from quad_tasks.manifests.influence import DirectionManifest, FactorsManifest
from quad_tasks.manifests.pool import Part
from quad_tasks.manifests.run import Losses
from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import load_checkpoint, read_checkpoint_manifest
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_choice, selected_key
from quad_tasks.stages.bandit.score_round import load_on_device
from quad_tasks.stages.selection import train
from quad_tasks.stages.selection.select_documents import stage_selection
from quad_tasks.stages.selection.train import FRESH_RATE, PRETRAINED_RATE, learning_schedule, training_run
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import losses_key, manifest_key, steps_key, trained_key
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tables import write_table_stream

VERSION = "pools/p/v0001/manifest.json"


@pytest.mark.parametrize("block_tokens", [1, 25, 10**6])
def test_tokens_are_those_of_the_texts_in_arm_order_whatever_the_blocks(tmp_path, monkeypatch, block_tokens):
    monkeypatch.setattr(train, "TOKENIZED_TOKENS", block_tokens)
    texts = [f"text number {i} " + "word " * i for i in range(12)]
    tokenizer = train_tokenizer(texts, 300)
    store = open_store(str(tmp_path))
    rows, sha256 = write_table_stream(store, "part", pa.schema([("text", pa.string())]), [pa.table({"text": texts})], 4)
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=rows, sha256=sha256)]))
    blocks = []
    read = train.read_positions
    monkeypatch.setattr(train, "read_positions", lambda *a: blocks.append(len(a[2])) or read(*a))
    wanted = np.array([7, 0, 11, 3])
    expected = encode(tokenizer, [texts[i] for i in sorted(wanted)])
    chosen = pa.table({"position": wanted, "n_tokens": [len(encode(tokenizer, [texts[i]])[0]) for i in wanted]})
    found = train.read_tokens(store, VERSION, chosen, tokenizer)
    assert [ids.tolist() for ids in found] == expected
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    assert max(blocks) == 1 if block_tokens == 1 else sum(blocks) == 4


@pytest.mark.parametrize(
    ("source", "configured", "rate"),
    [
        ("fresh", None, FRESH_RATE),
        ("some/model", None, PRETRAINED_RATE),
        ("some/model", 2e-5, 2e-5),
        ("fresh", 1.0, 1.0),
    ],
)
def test_a_pretrained_checkpoint_is_trained_at_a_lower_rate_unless_one_is_configured(
    tmp_path, source, configured, rate
):
    changes = {"model__source": source, "training__learning_rate": configured}
    run = training_run(parse_config(small_config(tmp_path, str(tmp_path), **changes), "rates"))
    assert run.peak_rate == rate
    assert learning_schedule(run).peak == rate
    assert PRETRAINED_RATE < FRESH_RATE


@pytest.mark.slow
def test_a_training_begins_without_the_models_and_directions_of_scoring(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    fitted = rounds.read_round(store, small_run.run, 0, 0).info.direction
    kept = (load_checkpoint, load_on_device)
    load_checkpoint(store, read_manifest(DirectionManifest, store, manifest_key(fitted)).checkpoint, "float32", "cpu")
    load_on_device(store, fitted, "cpu")
    assert all(cache.cache_info().currsize for cache in kept)
    found = []
    read = train.read_checkpoint
    monkeypatch.setattr(
        train, "read_checkpoint", lambda *given: found.extend(c.cache_info().currsize for c in kept) or read(*given)
    )
    start = read_manifest(DirectionManifest, store, manifest_key(fitted)).checkpoint
    train.begin_training(store, start, training_run(small_run))
    assert found == [0, 0]


@pytest.mark.parametrize("kind", ["before", "in a group"])
def test_a_worker_that_measures_or_leads_a_group_keeps_nothing_of_scoring(small_run, monkeypatch, kind):
    """Others train on its device meanwhile."""
    store = open_store(small_run.workspace)
    fitted = rounds.read_round(store, small_run.run, 0, 0).info.direction
    load_on_device(store, fitted, "cpu")
    found = []
    monkeypatch.setattr(train, "run_in_group", lambda *given: found.append(load_on_device.cache_info().currsize))
    monkeypatch.setattr(train, "_measure", lambda *given: found.append(load_on_device.cache_info().currsize))
    start = read_manifest(DirectionManifest, store, manifest_key(fitted)).checkpoint
    stage = Stage(small_run.run, 0, pinned_pool(store, small_run.run), start, fitted)
    run = dataclasses.replace(training_run(small_run), processes=2)
    chosen = None if kind == "before" else selected_key(stage)
    train.train_and_measure(train.Training(store, stage, "", run, 10, chosen, "another", 0))
    assert found == [0]


@pytest.mark.parametrize("number", [0, 1])
def test_mixtures_are_ranked_as_the_selection_was_and_trained_as_long(small_run, monkeypatch, number):
    """A stage whose own direction a gate did not let pass; its mixture has the fewest targets of all."""
    store, version = open_store(small_run.workspace), pinned_pool(open_store(small_run.workspace), small_run.run)
    stage = Stage(small_run.run, number, version, read_version(store, version).model, "refitted")
    selected, ranked, given = selected_key(stage), [], []

    def mix(store, stage, how, share):
        ranked.append(stage.direction)
        return "mixture"

    counted = train.count_targets
    monkeypatch.setattr(train, "select_mixture", mix)
    monkeypatch.setattr(train, "count_targets", lambda store, key: 7 if key == "mixture" else counted(store, key))
    monkeypatch.setattr(train, "renew_workers", lambda: None)
    monkeypatch.setattr(train, "map_tasks", lambda function, items, *rest, **also: given.extend(items))
    reference = stored(store, f"runs/{small_run.run}/reference.json")["reference"]
    train.train_stage.fn(store, stage, reference, training_run(small_run), stage_selection(small_run, number))
    assert ranked == [read_choice(store, selected).direction] * len(small_run.training.frontier) != []
    assert {one.max_targets for (one,) in given} == {7}


def test_two_processes_measure_what_one_did_and_leave_one_checkpoint(small_run, tmp_path):
    """The first stage's own training, shared: on a copy of the run's files, with what it trained left out."""
    shutil.copytree(small_run.workspace, tmp_path / "copy")
    store = open_store(str(tmp_path / "copy"))
    fitted = rounds.read_round(store, small_run.run, 0, 0).info.direction
    direction = read_manifest(DirectionManifest, store, manifest_key(fitted))
    start = read_manifest(FactorsManifest, store, manifest_key(direction.factors)).checkpoint
    stage = Stage(small_run.run, 0, pinned_pool(store, small_run.run), start, fitted)
    key = trained_key(small_run.run, 0, train.FIRST_SELECTED)
    alone, weights = read_manifest(Losses, store, losses_key(key)), read_checkpoint_manifest(store, key)
    for name in store.list(key):
        store.delete(name)
    run = dataclasses.replace(training_run(small_run), processes=2)
    targets, chosen = alone.training.target_tokens, selected_key(stage)
    one = train.Training(store, stage, direction.reference, run, targets, chosen, train.FIRST_SELECTED, 0)
    train.train_and_measure(one)
    shared = read_manifest(Losses, store, losses_key(key))
    assert shared.training.steps == alone.training.steps
    assert shared.training.target_tokens == alone.training.target_tokens
    assert shared.reference_loss == pytest.approx(alone.reference_loss, abs=1e-4)
    assert shared.domains == pytest.approx(alone.domains, abs=1e-4)
    assert read_checkpoint_manifest(store, key).trained_steps == weights.trained_steps
    assert not store.exists(steps_key(key))
