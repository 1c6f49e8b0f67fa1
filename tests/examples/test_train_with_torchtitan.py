"""The torchtitan example: what it lays out, how it calls torchtitan, and what of torchtitan's it hands back.

A stand-in for the package `torchtitan` keeps its arguments and writes a checkpoint where, and as, torchtitan 0.3.0
does; torchrun is the real one. The flags themselves were parsed once by that release (docs/guides/trainer.md).
"""

import importlib.util
import json
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import read_checkpoint, read_checkpoint_manifest
from quad_tasks.runtime.processes.child_process import ChildFailed
from quad_tasks.runtime.run import pinned_pool, starting_checkpoint
from quad_tasks.stages.bandit.ledger import selected_key
from quad_tasks.stages.selection.train_by_command import train_by_command, write_selection
from quad_tasks.storage.keys import trainer_log_key
from quad_tasks.storage.store import open_store

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_with_torchtitan.py"
FIELDS = " ".join(f"--{name} {{{name}}}" for name in ("selection", "checkpoint", "output", "tokens", "seed"))
STAND_IN = """
import json, os, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
given = {}
words = sys.argv[1:]
while words:
    name = words.pop(0).removeprefix("--")
    given[name] = words.pop(0) if words and not words[0].startswith("--") else True
dataset = sorted(Path(given["dataloader.dataset-path"]).iterdir())
kept = {"given": given, "dataset": [path.name for path in dataset], "checkpoint": os.environ["TITAN_CHECKPOINT"],
        "world": os.environ["WORLD_SIZE"], "module": __import__("importlib").util.find_spec(given["module"]).origin}
import pyarrow.parquet as pq
kept["texts"] = pq.read_table(dataset[0])["text"].to_pylist()
Path(os.environ["STAND_IN_KEEPS"]).write_text(json.dumps(kept))
if os.environ.get("STAND_IN_FAILS"):
    raise SystemExit("no GPU")
weights = load_file(Path(given["checkpoint.initial-load-path"], "model.safetensors"))
saved = Path(given["dump-folder"], given["checkpoint.folder"], f"step-{given['training.steps']}")
(saved / "sharded").mkdir(parents=True)
name = "model-00001-of-00001.safetensors"
save_file({key: value + 0.25 for key, value in weights.items()}, saved / name)
index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
(saved / "model.safetensors.index.json").write_text(json.dumps(index))
print("Training completed")
"""


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("train_with_torchtitan", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a stand-in `torchtitan` on the path; its file of arguments."""
    package = tmp_path / "path" / "torchtitan"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.getenv("PYTHONPATH", "")]))
    monkeypatch.setenv("STAND_IN_KEEPS", str(tmp_path / "kept.json"))
    return tmp_path / "kept.json"


@pytest.fixture
def stage(small_run):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    return store, Stage(small_run.run, 0, version, starting_checkpoint(store, version), "")


def command(options):
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(EXAMPLE))} {FIELDS} {options}"


def test_the_selection_is_one_dataset_whose_order_is_the_seeds(example, tmp_path):
    texts = [f"document {number}" for number in range(50)]
    (tmp_path / "selection").mkdir()
    for part in range(2):
        rows = pa.table({"id": texts[part::2], "text": texts[part::2]})
        pq.write_table(rows, tmp_path / "selection" / f"part-{part:05d}.parquet")
    orders = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        assert example.lay_out(tmp_path / "selection", tmp_path / name, seed) == 50
        (file,) = (tmp_path / name).iterdir()
        orders.append(pq.read_table(file)["text"].to_pylist())
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == sorted(texts) != order for order in orders)


def test_every_training_of_equal_tokens_has_equal_steps_and_the_seed_and_rate_asked_for(example):
    arguments = Namespace(checkpoint=Path("/start"), window=2048, batch_windows=64, local_windows=8, processes=4,
                          learning_rate=2e-4, seed=7)  # fmt: skip
    words = example.titan_command(arguments, Path("/out/torchtitan"), 763)
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    at = words.index("torchtitan.train")
    assert words[at - 1] == "-m"
    assert words[words.index("--nproc-per-node") + 1] == "4"
    line = " ".join(words[at + 1 :])
    for expected in (
        "--module llama_for_torchtitan --config from_checkpoint",
        "--hf-assets-path /start ",
        "--dataloader.dataset selection --dataloader.dataset-path /out/torchtitan/dataset",
        "--training.seq-len 2048 --training.local-batch-size 8 --training.global-batch-size 64 --training.steps 763",
        "--optimizer.param-groups.0.optimizer-kwargs.lr 0.0002",
        "--lr-scheduler.warmup-steps 38 --lr-scheduler.decay-type cosine",
        "--debug.seed 7",
        "--checkpoint.interval 763 --checkpoint.initial-load-path /start ",
        "--checkpoint.enable --checkpoint.initial-load-in-hf --checkpoint.initial-load-model-only",
        "--checkpoint.last-save-model-only --checkpoint.last-save-in-hf",
    ):
        assert expected in line


def test_a_stage_trained_by_it_is_the_checkpoint_torchtitan_saved_last(stage, stand_in, tmp_path):
    store, one = stage
    key, options = "runs/small/titan", "--window 32 --batch-windows 4 --local-windows 2 --compile.enable"
    where = (one.version, one.checkpoint, selected_key(one))
    try:
        assert train_by_command.fn(store, key, command(options), None, *where, 1000, 3) == key
        kept = json.loads(stand_in.read_text())
        (tmp_path / "selection").mkdir()
        write_selection(store, one.version, selected_key(one), tmp_path / "selection")
        assert sorted(kept["texts"]) == sorted(pq.read_table(tmp_path / "selection")["text"].to_pylist())
        assert kept["module"] == str(EXAMPLE.parent / "llama_for_torchtitan.py")
        assert kept["given"]["checkpoint.initial-load-path"] == kept["checkpoint"]
        assert (kept["given"]["training.steps"], kept["given"]["compile.enable"], kept["world"]) == ("8", True, "1")
        before, _ = read_checkpoint(store, one.checkpoint, "float32", "cpu")
        after, _ = read_checkpoint(store, key, "float32", "cpu")
        for name, value in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], value + 0.25), name
        told = read_checkpoint_manifest(store, key).training
        assert (told.steps, told.target_tokens) == (8, 8 * 32 * 4)
        assert "Training completed" in store.get(trainer_log_key(key)).decode()
    finally:
        for part in store.list(key):
            store.delete(part)


def test_a_torchtitan_that_fails_ends_the_stage_with_its_words(stage, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    store, one = stage
    key, where = "runs/small/failed-titan", (one.version, one.checkpoint, selected_key(one))
    try:
        with pytest.raises(ChildFailed, match=r"(?s)training\.command: .*exit code 1"):
            train_by_command.fn(store, key, command("--window 32"), None, *where, 1000, 3)
        assert "no GPU" in store.get(trainer_log_key(key)).decode()
    finally:
        for part in store.list(key):
            store.delete(part)


def test_files_of_the_start_are_handed_back_beside_the_weights_alone(example, tmp_path):
    saved, start, output = (tmp_path / name for name in ("saved", "start", "output"))
    for folder in (saved / "sharded", start, output):
        folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"):
        (start / name).write_text("start")
    with pytest.raises(SystemExit, match=r"expected the last step's weights in .*saved, found none"):
        example.hand_back(saved, start, output)
    trained = saved / "model-00001-of-00001.safetensors"
    trained.write_text("trained")
    example.hand_back(saved, start, output)
    assert {path.name: path.read_text() for path in output.iterdir()} == {
        "config.json": "start", "tokenizer.json": "start", "model-00001-of-00001.safetensors": "trained",
    }  # fmt: skip
