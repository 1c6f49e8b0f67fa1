"""A model that cannot take the run's windows is refused, and a fresh one is not trained on held-out text."""

import json

import pytest
import torch
from small_pool import small_config
from tiny_gguf import write_gguf
from transformers import GPT2Config, GPT2LMHeadModel

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import FieldNames
from quad_tasks.core.lm import training
from quad_tasks.core.lm.model import ModelError
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.core.random_order import order_key
from quad_tasks.runtime.checkpoints import read_checkpoint, read_checkpoint_manifest
from quad_tasks.runtime.contamination import HeldOutText
from quad_tasks.runtime.processes.memory import OutOfDeviceMemory
from quad_tasks.runtime.run import pinned_pool, pinned_reference, starting_checkpoint
from quad_tasks.stages.influence.find_overlap import overlap_positions
from quad_tasks.stages.pool import prepare_model as stage
from quad_tasks.stages.pool.ingest import scan_input, scan_inputs
from quad_tasks.stages.pool.prepare_model import fresh_identity, prepare_model, sample_shard
from quad_tasks.storage.keys import model_folder
from quad_tasks.storage.manifest import DigestMismatch, digest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import open_store


def test_a_source_with_too_few_positions_for_the_window_is_refused(corpus, tmp_path):
    source = tmp_path / "gpt2"
    tokenizer = train_tokenizer(["the ship left the harbour"], 300)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    changes = {"model__source": str(source), "model__window_tokens": 17}
    config = parse_config(small_config(corpus, str(tmp_path / "workspace"), **changes), "short")
    with pytest.raises(ModelError, match=r"model\.window_tokens: expected at most 16, .*gpt2 has learned, found 17"):
        prepare_model.fn(
            open_store(config.workspace), config.model, config.factors.attention, config.pool.fields, 0, "cpu", []
        )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_source_that_changes_is_refused_in_either_precision(corpus, tmp_path, stored):
    source, tokenizer = tmp_path / "gpt2", train_tokenizer(["the ship left the harbour"], 300)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).to(stored)
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = parse_config(small_config(corpus, str(tmp_path / "workspace"), model__source=str(source)), "changed")
    store = open_store(config.workspace)
    key = prepare_model.fn(store, config.model, config.factors.attention, config.pool.fields, 0, "cpu", [])
    for dtype in ("float32", "bfloat16"):
        assert read_checkpoint(store, key, dtype, "cpu")[0].dtype == getattr(torch, dtype)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    model.save_pretrained(source)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(DigestMismatch, match=r"models/.*expected digest"):
            read_checkpoint(store, key, dtype, "cpu")


def test_a_gguf_file_becomes_a_checkpoint_of_safetensors_that_says_what_was_dequantised(corpus, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    write_gguf(tmp_path / "tiny.gguf")
    changes = {"model__source": str(tmp_path / "tiny.gguf")}
    config = parse_config(small_config(corpus, str(tmp_path / "workspace"), **changes), "gguf")
    store = open_store(config.workspace)
    key = prepare_model.fn(store, config.model, config.factors.attention, config.pool.fields, 0, "cpu", [])
    manifest = read_checkpoint_manifest(store, key)
    assert manifest.dequantised == {"Q8_0": 6}
    assert "model.safetensors" in manifest.files
    (tmp_path / "tiny.gguf").unlink()  # the workspace holds all that is needed from here on
    model, _ = read_checkpoint(store, key, "bfloat16", "cpu")
    assert model.dtype == torch.bfloat16


def test_a_device_without_room_for_a_fresh_model_s_training_is_one_message(corpus, tmp_path, monkeypatch):
    config = parse_config(small_config(corpus, str(tmp_path / "workspace")), "full")

    def fail(*given, **also):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(stage, "_sample_texts", lambda *given: ["the ship left the harbour"] * 9)
    monkeypatch.setattr(training, "train", fail)
    settings = (config.model, config.factors.attention, config.pool.fields, 0, "cpu", [])
    with pytest.raises(OutOfDeviceMemory, match=r"^pretrain fresh model: .*Tried to allocate.*: lower model\.window_"):
        prepare_model.fn(open_store(config.workspace), *settings)


def held_out_by(run) -> tuple:
    store = open_store(run.workspace)
    return store, HeldOutText(pinned_reference(store, run.run), run.heldout.overlap_words)


def test_a_fresh_model_is_not_trained_on_held_out_text(leaking_run):
    store, held_out = held_out_by(leaking_run)
    aside = overlap_positions(store, leaking_run.run)
    version = pinned_pool(store, leaking_run.run)
    leaked = set(read_positions(store, version, aside, ["text"])["text"].to_pylist())
    shards, fields = scan_inputs.fn(leaking_run.pool.inputs), leaking_run.pool.fields.model_dump()
    everything, kept = (
        {text for shard in shards for text in sample_shard(shard, fields, 0, 10**9, store, one)}
        for one in (None, held_out)
    )
    assert leaked
    assert everything - kept == leaked
    identity = fresh_identity(leaking_run.model, leaking_run.pool.fields, held_out.identity(store))
    contents = [[shard.uri, shard.sha256] for shard in shards]
    expected = model_folder(digest([identity, leaking_run.seed, contents]))
    assert starting_checkpoint(store, version) == expected  # the run's own model is the one of that text


def test_a_sample_is_drawn_from_spans_as_from_their_file(corpus):
    uri, fields = f"{corpus}/pool/weather.jsonl", FieldNames().model_dump()
    drawn = {}
    for span_bytes in (2**20, 4000):
        shards = scan_input(uri, span_bytes)
        for n_bytes in (0, 500, 10**9):
            texts = [text for shard in shards for text in sample_shard(shard, fields, 0, n_bytes, None, None)]
            drawn[len(shards) > 1, n_bytes] = texts
    assert drawn[True, 10**9] == drawn[False, 10**9]
    assert set(drawn[True, 500]) < set(drawn[True, 10**9])
    assert len(drawn[True, 500]) > len(drawn[False, 500]) > 0
    assert drawn[True, 0] == []


def test_a_fresh_model_is_known_by_its_training_method_and_the_field_it_is_trained_on(leaking_run, monkeypatch):
    fields = leaking_run.pool.fields
    before = fresh_identity(leaking_run.model, fields, ())
    assert fresh_identity(leaking_run.model, fields.model_copy(update={"text": "title"}), ()) != before
    monkeypatch.setattr(training, "METHOD", training.METHOD + 1)
    assert fresh_identity(leaking_run.model, fields, ()) != before


def test_what_a_fresh_model_is_trained_on_is_not_what_arms_are_pulled_by(tmp_path):
    """Of 2,000 documents a tenth is drawn; so is about a tenth of the 200 that come first in every arm's order."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": f"document {n:04d} " * 10}) + "\n" for n in range(2000)))
    [shard] = scan_input(str(path), 2**30)
    sample = sample_shard(shard, FieldNames().model_dump(), 3, 200 * 140, None, None)
    drawn = {int(text.split()[1]) for text in sample}
    first = sorted(range(2000), key=lambda n: order_key(3, str(n)))[:200]
    assert len(drawn) == pytest.approx(200, abs=2)
    assert len(drawn & set(first)) == pytest.approx(20, abs=12)  # three standard deviations


class PowerCut(BaseException):
    """Ends an attempt, as nothing that the product catches."""


def pretrain(config, shards, fails_at: int | None = None) -> int:
    """Prepare a fresh model that is kept after every step; return the steps taken here, up to the one that fails."""
    taken, move = 0, training._move_parameters

    def count(*arguments):
        nonlocal taken
        if taken == fails_at:
            raise PowerCut
        taken += 1
        move(*arguments)

    given = (config.model, config.factors.attention, config.pool.fields, config.seed, "cpu", shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_move_parameters", count)
        patch.setattr(stage, "map_tasks", lambda task, items, *_: [task(*item) for item in items])
        try:
            prepare_model.fn(open_store(config.workspace), *given, checkpoint_every_s=0.0)
        except PowerCut:
            assert fails_at is not None
    return taken


def test_an_interrupted_pretraining_takes_only_the_steps_left_and_ends_with_the_same_bytes(corpus, tmp_path):
    calm, cut = (parse_config(small_config(corpus, str(tmp_path / name)), name) for name in ("calm", "cut"))
    shards = scan_inputs.fn(calm.pool.inputs)
    steps = pretrain(calm, shards)
    assert steps >= 4
    assert pretrain(cut, shards, fails_at=2) == 2
    assert pretrain(cut, shards, fails_at=1) == 1
    assert pretrain(cut, shards) == steps - 3
    stores = [open_store(config.workspace) for config in (calm, cut)]
    made = [{key: store.get(key) for key in store.list("models")} for store in stores]
    assert made[0] == made[1]
    assert not [key for key in made[1] if key.endswith("steps.safetensors")]
