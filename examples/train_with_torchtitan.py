"""A trainer for `training.command`: torchtitan 0.3.0 on the documents of a selection, on all GPUs of one machine.

    training:
      command: >-
        python examples/train_with_torchtitan.py --selection {selection} --checkpoint {checkpoint} --output {output}
        --tokens {tokens} --seed {seed} --processes 8 --window 2048 --batch-windows 64

It writes the selection as one Hugging Face dataset in the seed's order, starts torchtitan's own trainer under torchrun
from the weights in `--checkpoint`, and leaves what that saves last as a Hugging Face checkpoint. `python` is that of
an environment with torchtitan (`pip install torchtitan==0.3.0 'torch>=2.14'`); nothing of Quad is needed in it. An
option that this file does not know goes to torchtitan as it stands, such as `--compile.enable`.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODULE = "llama_for_torchtitan"
"""The file beside this one that gives torchtitan the shape of the checkpoint and the dataset's reader."""


def main() -> int:
    """Train, and leave the model, the tokenizer and what it took."""
    parser = argparse.ArgumentParser(description="Train a Llama checkpoint on a selection with torchtitan.")
    parser.add_argument("--selection", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--window", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--batch-windows", type=int, default=64, help="sequences of an optimizer step, over all GPUs")
    parser.add_argument("--local-windows", type=int, default=8, help="sequences a GPU takes at a time")
    parser.add_argument("--processes", type=int, default=1, help="GPUs")
    arguments, further = parser.parse_known_args()
    work = arguments.output / "torchtitan"
    documents = lay_out(arguments.selection, work / "dataset", arguments.seed)
    if documents < arguments.processes:
        sys.exit(f"expected a document for each of {arguments.processes} processes in --selection, found {documents}")
    steps = math.ceil(arguments.tokens / (arguments.window * arguments.batch_windows))
    command = titan_command(arguments, work, steps) + further
    print(" ".join(command), flush=True)
    code = subprocess.run(command, env=titan_environment(arguments.checkpoint, work), check=False).returncode
    if code:
        return code
    hand_back(work / "checkpoint" / f"step-{steps}", arguments.checkpoint, arguments.output)
    shutil.rmtree(work)
    told = {"steps": steps, "target_tokens": steps * arguments.window * arguments.batch_windows}
    (arguments.output / "trained.json").write_text(json.dumps(told))
    return 0


def lay_out(selection: Path, folder: Path, seed: int) -> int:
    """Write the documents in an order drawn by the seed, and count them.

    torchtitan reads a dataset in its order the first time, and shuffles it for each further pass.
    """
    folder.mkdir(parents=True)
    table = pq.read_table(selection, columns=["text"]).cast(pa.schema([("text", pa.large_string())]))
    order = np.random.default_rng(seed).permutation(len(table))
    pq.write_table(table.take(order), folder / "documents.parquet", row_group_size=10_000)
    return len(table)


def titan_command(arguments: argparse.Namespace, work: Path, steps: int) -> list[str]:
    """Say how torchtitan is called: every flag is one of its release 0.3.0."""
    flags = {
        "module": MODULE,
        "config": "from_checkpoint",
        "dump-folder": work,
        "hf-assets-path": arguments.checkpoint,
        "dataloader.dataset": "selection",
        "dataloader.dataset-path": work / "dataset",
        "training.seq-len": arguments.window,
        "training.local-batch-size": arguments.local_windows,
        "training.global-batch-size": arguments.batch_windows,
        "training.steps": steps,
        "optimizer.param-groups.0.optimizer-kwargs.lr": arguments.learning_rate,
        "lr-scheduler.warmup-steps": max(1, steps // 20),
        "lr-scheduler.decay-type": "cosine",
        "metrics.log-freq": max(1, steps // 10),
        "debug.seed": arguments.seed,
        "checkpoint.folder": "checkpoint",
        "checkpoint.interval": steps,
        "checkpoint.initial-load-path": arguments.checkpoint.resolve(),
    }
    switches = ["checkpoint.enable", "checkpoint.initial-load-in-hf", "checkpoint.initial-load-model-only",
                "checkpoint.last-save-model-only", "checkpoint.last-save-in-hf",
                "metrics.disable-color-printing"]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                str(arguments.processes), "--local-ranks-filter", "0", "--role", "rank", "--tee", "3"]  # fmt: skip
    valued = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [*launcher, "-m", "torchtitan.train", *valued, *(f"--{name}" for name in switches)]


def titan_environment(checkpoint: Path, work: Path) -> dict[str, str]:
    """Let torchtitan find the module beside this file, and keep its caches out of the home folder and off the Hub."""
    path = os.pathsep.join(part for part in (str(Path(__file__).resolve().parent), os.getenv("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path, "TITAN_CHECKPOINT": str(checkpoint.resolve()),
            "HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}  # fmt: skip


def hand_back(saved: Path, checkpoint: Path, output: Path) -> None:
    """Move the trained weights out; all else of a checkpoint is that of the one begun with."""
    weights = sorted(saved.glob("*.safetensors*"))
    if not weights:
        sys.exit(f"expected the last step's weights in {saved}, found none: did --training.steps reach torchtitan?")
    for path in weights:
        shutil.move(path, output / path.name)
    for path in checkpoint.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copy(path, output / path.name)


if __name__ == "__main__":
    sys.exit(main())
