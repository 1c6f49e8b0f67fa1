"""A trainer of the user's: what it is given, what it leaves, and that nothing it leaves is trusted unseen."""

import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from small_pool import small_config
from transformers import LlamaConfig, LlamaForCausalLM

from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.model import LlamaSize, ModelError, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.records import Stage
from quad_tasks.report.report_json import parse_report
from quad_tasks.runtime.checkpoints import read_checkpoint_manifest
from quad_tasks.runtime.processes.child_process import ChildFailed
from quad_tasks.runtime.run import pinned_pool, starting_checkpoint
from quad_tasks.stages.bandit.ledger import selected_key
from quad_tasks.stages.selection.train_by_command import (
    check_trained,
    read_result,
    train_by_command,
    write_selection,
)
from quad_tasks.storage.keys import choice_table_key, losses_key, manifest_key, report_key, trained_key, trainer_log_key
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import open_store

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_with_transformers.py"
SIZE = LlamaSize(16, 1, 2, 1, 32)
TEXTS = ["the ship left the harbour", "rain fell on the deck"] * 4
FIELDS = "{selection} {checkpoint} {output} {tokens} {seed}"


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def model():
    return fresh_llama(SIZE, 300, 64, 0)


def trained_copy(model):
    copy = fresh_llama(SIZE, 300, 64, 1)
    assert not torch.equal(copy.lm_head.weight, model.lm_head.weight)
    return copy


def test_a_trained_checkpoint_is_taken_with_its_weights(tmp_path, model, tokenizer):
    other = trained_copy(model)
    other.save_pretrained(tmp_path)
    found = check_trained(tmp_path, model, tokenizer)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in found.state_dict().items())


def llama(**changes):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 32, "vocab_size": 300, "tie_word_embeddings": True}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))


def leave_nan(folder, model):
    other = trained_copy(model)
    other.model.layers[0].mlp.up_proj.weight.data[3, 2] = float("nan")
    other.save_pretrained(folder)


def leave_pickled(folder, model):
    trained_copy(model).save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def leave_in_a_subfolder(folder, model):
    trained_copy(model).save_pretrained(folder / "checkpoint-10")


BAD = {
    "nothing": (lambda folder, model: None, r"expected a checkpoint in \{output\}.*found nothing"),
    "a subfolder": (leave_in_a_subfolder, r"found checkpoint-10"),
    "pickled weights": (leave_pickled, r"expected a causal language model with safetensors weights"),
    "another depth": (lambda folder, model: llama(num_hidden_layers=2).save_pretrained(folder), r"layers\.1\..*None"),
    "another vocabulary": (lambda folder, model: llama(vocab_size=310).save_pretrained(folder),
                           r"expected lm_head\.weight of shape \(300, 16\).*found \(310, 16\)"),
    "a NaN": (leave_nan, r"expected finite weights.*mlp\.up_proj\.weight"),
    "the start": (lambda folder, model: model.save_pretrained(folder), r"expected trained weights"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_the_given_model_trained_is_refused(tmp_path, model, tokenizer, what):
    leave, message = BAD[what]
    leave(tmp_path, model)
    with pytest.raises(ModelError, match=rf"^training\.command: .*{message}"):
        check_trained(tmp_path, model, tokenizer)


def test_another_architecture_or_tokenizer_is_refused(tmp_path, model, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ModelError, match=r"expected a checkpoint of LlamaForCausalLM in \{output\}, found GPT2LMHeadModel"
    ):
        check_trained(tmp_path / "gpt2", model, tokenizer)
    trained_copy(model).save_pretrained(tmp_path / "other")
    train_tokenizer(["entirely other words"] * 4, 290).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="expected the tokenizer it was given"):
        check_trained(tmp_path / "other", model, tokenizer)


def test_a_trainer_that_tells_its_steps_is_believed_and_one_that_does_not_has_the_tokens_asked_for(tmp_path):
    assert read_result(tmp_path, 700).target_tokens == 700
    assert read_result(tmp_path, 700).steps == 0
    (tmp_path / "trained.json").write_text('{"steps": 7, "target_tokens": 690}')
    assert (read_result(tmp_path, 700).steps, read_result(tmp_path, 700).target_tokens) == (7, 690)
    (tmp_path / "trained.json").write_text('{"steps": "many"}')
    with pytest.raises(ModelError, match=r"expected trained\.json"):
        read_result(tmp_path, 700)


def python(code, fields=FIELDS):
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code.replace('{', '{{').replace('}', '}}'))} {fields}"


@pytest.fixture
def finished(small_run):
    """The store, and how the first stage of a finished run was trained."""
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, starting_checkpoint(store, version), "")
    return store, stage


@pytest.mark.parametrize("tokens", [2**26, 30])
def test_the_selection_is_handed_over_with_every_text_in_files_bounded_by_tokens(
    finished, tmp_path, monkeypatch, tokens
):
    store, stage = finished
    monkeypatch.setattr("quad_tasks.stages.selection.train_by_command.PART_TOKENS", tokens)
    write_selection(store, stage.version, selected_key(stage), tmp_path)
    for path in tmp_path.iterdir():
        n_tokens = pq.read_table(path)["n_tokens"].to_pylist()
        assert sum(n_tokens) <= tokens or len(n_tokens) == 1
    found = pq.read_table(tmp_path)
    rows = read_table(store, choice_table_key(selected_key(stage)), ["position"])["position"].to_numpy()
    expected = read_positions(store, stage.version, rows, ["id", "text"])
    assert dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True)) == dict(
        zip(expected["id"].to_pylist(), expected["text"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize(
    ("code", "timeout_s", "error", "message"),
    [
        (
            "print('out of memory'); raise SystemExit(5)",
            None,
            ChildFailed,
            r"training\.command: .*exit code 5.*out of memory",
        ),
        (
            "import time; time.sleep(600)",
            2,
            ChildFailed,
            r"training\.command \(training\.command_timeout_s\): .*within 2 s",
        ),
        ("print('done')", None, ModelError, r"training\.command: expected a checkpoint in {output}.*found nothing"),
    ],
)
def test_a_trainer_that_fails_hangs_or_leaves_nothing_ends_the_stage_with_its_log_kept(
    finished, code, timeout_s, error, message
):
    store, stage = finished
    key = "runs/small/failed-trainer"
    where = (stage.version, stage.checkpoint, selected_key(stage))
    try:
        with pytest.raises(error, match=f"(?s){message}"):
            train_by_command.fn(store, key, python(code), timeout_s, *where, 500, 0)
        assert not store.exists(manifest_key(key))
        log = store.get(trainer_log_key(key)).decode().splitlines()
        assert "500" in log[0]
        assert log[1:] == (["out of memory"] if "memory" in code else ["done"] if "done" in code else [])
    finally:
        for part in store.list(key):
            store.delete(part)


@pytest.mark.slow
def test_a_run_with_the_transformers_example_chooses_alike_and_lowers_the_reference_loss(
    dask_client, corpus, small_run, tmp_path
):
    pytest.importorskip("accelerate")
    from flows.select_data import select_data

    options = "--learning-rate 1e-2 --window 32 --batch-windows 4"
    named = " ".join(f"--{name} {{{name}}}" for name in ("selection", "checkpoint", "output", "tokens", "seed"))
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(EXAMPLE))} {named} {options}"
    changes = {"training__command": command, "training__stages": 1, "training__frontier": [], "run": "commanded"}
    config = parse_config(small_config(corpus, str(tmp_path), **changes), "commanded")
    select_data(config)
    store = open_store(config.workspace)
    report = parse_report(store.get(report_key(config.run)))
    last = report.stages[-1]
    assert last.selected.reference_loss < last.before.reference_loss
    assert last.selected.steps == last.random.steps > 1
    key = trained_key(config.run, 0, "selected-0")
    manifest = read_checkpoint_manifest(store, key)
    assert manifest.training.target_tokens >= last.selected.target_tokens > 0
    assert store.exists(losses_key(trained_key(config.run, 0, "random-0")))
    assert not store.exists(manifest_key(trained_key(config.run, 0, "random-0")))  # of the next stage's start alone
    log = store.get(trainer_log_key(key)).decode()
    assert str(EXAMPLE) in log
    assert any("loss" in line for line in log.splitlines()[1:])
    builtin = parse_config({**config.model_dump(mode="json"), "run": "builtin", "training": {"stages": 1}}, "builtin")
    select_data(builtin, until="bandit")
    keys = [choice_table_key(selected_key(Stage(run, 0, "", "", ""))) for run in ("commanded", "builtin")]
    chosen = [read_table(store, key, ["position"])["position"].to_pylist() for key in keys]
    assert chosen[0] == chosen[1]
