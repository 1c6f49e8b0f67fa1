"""A training killed at any moment goes on from the state kept last, and ends with the weights of one that was not."""

import os
import signal

import numpy as np
import pytest
import torch

from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.core.lm.training import Schedule, make_optimizer, train
from quad_tasks.manifests.influence import Checkpoint, TokenizerInfo
from quad_tasks.runtime import checkpoints
from quad_tasks.runtime.checkpoints import (
    describe_checkpoint,
    keep_steps,
    optimizer_arrays,
    read_checkpoint,
    restore_optimizer,
    resume_steps,
    save_checkpoint,
)
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.keys import manifest_key, optimizer_key, steps_key
from quad_tasks.storage.manifest import DigestMismatch, ManifestMismatch, write_manifest
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tensors import save_tensors

KEY = "runs/r/stage-00/trained/selected-0"
DOCUMENTS = [[int(t) for t in np.random.default_rng(n).integers(0, 64, 8 + n)] for n in range(16)]
STEP_TOKENS = 20
TICK_S = 1.0
"""A step takes so long, by the clock of these tests."""


def begin():
    model = fresh_llama(LlamaSize(width=16, layers=2, heads=2, key_value_heads=1, mlp_width=24), 64, 32, seed=0)
    return model, make_optimizer(model, 0.01)


def train_from(store, every_s, after=lambda record: None):
    """Train from where the state kept last is; return the model, the record, and the steps taken here."""
    model, optimizer = begin()
    ticks = iter(np.arange(0, 10_000, TICK_S))
    now = [0.0]
    keep = keep_steps(store, KEY, model, optimizer, every_s, lambda: now[0])
    taken = []

    def after_step(record):
        now[0] = next(ticks) + TICK_S
        taken.append(record.steps)
        keep(record)
        after(record)

    resumed = resume_steps(store, KEY, model, optimizer)
    record = train(
        model, optimizer, DOCUMENTS, Schedule(1e-2, 2, 40), 3, 16, STEP_TOKENS, 48, np.random.default_rng(5),
        resumed=resumed, after_step=after_step,
    )  # fmt: skip
    return model, record, taken


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("killed_after", [1, 3, 4, 7, 11])
def test_a_training_killed_after_any_step_ends_with_the_same_weights(tmp_path, killed_after):
    whole, record, steps = train_from(open_store(str(tmp_path / "whole")), every_s=1e9)
    assert len(steps) == record.steps > 11
    store = open_store(str(tmp_path / "killed"))
    child = os.fork()
    if child == 0:
        train_from(
            store, 3.0, lambda record: os.kill(os.getpid(), signal.SIGKILL) if record.steps == killed_after else 0
        )
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    model, resumed, taken = train_from(store, 3.0)
    assert resumed == record
    assert same(model, whole)
    assert taken[0] == killed_after // 3 * 3 + 1  # at most every_s of work is lost
    assert killed_after - taken[0] + 1 < 3


def test_a_training_killed_while_its_state_is_written_goes_on_from_the_one_before(tmp_path, monkeypatch):
    whole, record, _ = train_from(open_store(str(tmp_path / "whole")), every_s=1e9)
    store = open_store(str(tmp_path / "killed"))
    child = os.fork()
    if child == 0:
        written = []

        def die_the_second_time(store, key, *arguments):
            written.append(key)
            if len(written) == 2:
                with store.spool(key) as path:
                    path.write_bytes(b"half of a state")
                    os.kill(os.getpid(), signal.SIGKILL)
            return save_tensors(store, key, *arguments)

        monkeypatch.setattr(checkpoints, "save_tensors", die_the_second_time)
        train_from(store, 3.0)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    model, resumed, taken = train_from(store, 3.0)
    assert (resumed, taken[0]) == (record, 4)
    assert same(model, whole)


def test_nothing_kept_means_from_the_start(tmp_path):
    store = open_store(str(tmp_path))
    assert resume_steps(store, KEY, *begin()) is None
    train_from(store, every_s=1e9)
    assert not store.exists(steps_key(KEY))


def test_a_checkpoint_that_is_committed_stays_whole_where_another_is_saved_over_it(tmp_path):
    store, tokenizer = open_store(str(tmp_path)), train_tokenizer(["a tide, a rope, a deck"] * 9, 300)
    size = LlamaSize(width=16, layers=2, heads=2, key_value_heads=1, mlp_width=24)
    first, other = (fresh_llama(size, len(tokenizer), 32, seed=seed) for seed in (0, 1))
    for _ in range(2):  # the same one again is no error
        save_checkpoint(store, KEY, first, tokenizer, describe_checkpoint("m", "t", first, tokenizer))
    with pytest.raises(ManifestMismatch, match="other content is committed"):
        save_checkpoint(store, KEY, other, tokenizer, describe_checkpoint("m", "t", other, tokenizer))
    loaded, _ = read_checkpoint(store, KEY, "float32", "cpu")
    assert same(first, loaded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_source_with_a_buffer_in_its_own_precision_is_the_one_that_was_described(tmp_path, monkeypatch, dtype):
    store, tokenizer = open_store(str(tmp_path)), train_tokenizer(["a tide, a rope, a deck"] * 9, 300)
    model, _ = begin()
    model.register_buffer("angles", torch.tensor([1 / 3], dtype=torch.float64))
    rounded = {"bfloat16_sha256": checkpoints.weights_sha256(model, torch.bfloat16), "source": "a/model"}
    described = describe_checkpoint("m", "t", model, tokenizer).model_copy(update=rounded)
    write_manifest(store, manifest_key(KEY), described)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))  # as transformers loads it
    monkeypatch.setattr(checkpoints, "load_model", lambda *given: model)
    monkeypatch.setattr(checkpoints, "load_tokenizer", lambda source: tokenizer)
    assert read_checkpoint(store, KEY, dtype, "cpu")[0] is model


def write_trained(store, steps):
    """Write what a training of so many steps leaves of its optimizer, and the checkpoint's manifest; return it."""
    model, optimizer = begin()
    sha256 = None
    for _ in range(steps):
        model(torch.tensor([DOCUMENTS[0]]), labels=torch.tensor([DOCUMENTS[0]])).loss.backward()
        optimizer.step()
    if steps:
        sha256 = save_tensors(store, optimizer_key(KEY), optimizer_arrays(optimizer), {})
    described = Checkpoint(
        name="c", architecture="LlamaForCausalLM", parameters=1, weights_sha256="", trained_steps=steps,
        tokenizer=TokenizerInfo(name="t", sha256="", vocabulary=64), optimizer_sha256=sha256,
    )  # fmt: skip
    write_manifest(store, manifest_key(KEY), described)
    return optimizer_arrays(optimizer)


def test_a_training_goes_on_with_the_optimizer_state_of_its_checkpoint(tmp_path):
    store = open_store(str(tmp_path))
    left = write_trained(store, 2)
    _, optimizer = begin()
    assert restore_optimizer(store, KEY, optimizer)
    restored = optimizer_arrays(optimizer)
    assert restored.keys() == left.keys() != set()
    assert all(np.array_equal(restored[name], left[name]) for name in left)


def test_an_optimizer_state_that_is_gone_or_damaged_is_refused_and_not_begun_anew(tmp_path):
    store = open_store(str(tmp_path))
    write_trained(store, 2)
    key = optimizer_key(KEY)
    state = store.get(key)
    store.put(key, state[:-1] + bytes([state[-1] ^ 1]))
    with pytest.raises(DigestMismatch, match="expected digest"):
        restore_optimizer(store, KEY, begin()[1])
    store.delete(key)
    with pytest.raises(StoreKeyError, match=r"optimizer\.safetensors"):
        restore_optimizer(store, KEY, begin()[1])


def test_a_checkpoint_that_no_stage_trained_has_no_optimizer_state(tmp_path):
    store = open_store(str(tmp_path))
    write_trained(store, 0)
    assert not restore_optimizer(store, KEY, begin()[1])
