"""Train by a program of the user's (`training.command`): lay out what it reads, run it, check what it leaves.

The program gets folders and numbers, and leaves a checkpoint; nothing is unpickled. What it leaves is trusted only
where it is the model it was given, trained: safetensors weights of the same architecture and shapes, finite, and not
the same, for the same tokens.
"""

import itertools
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.config.command import fill_command
from quad_tasks.core.lm.model import ModelError, load_model
from quad_tasks.core.lm.tokenizer import load_tokenizer, tokenizer_sha256
from quad_tasks.manifests.influence import TrainingInfo
from quad_tasks.runtime.checkpoints import (
    read_checkpoint,
    read_checkpoint_manifest,
    save_checkpoint,
    weights_sha256,
)
from quad_tasks.runtime.processes.child_process import ChildFailed, run_child
from quad_tasks.runtime.progress import notice, working
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.ledger import read_choice_table
from quad_tasks.storage.keys import manifest_key, trainer_log_key
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store

COLUMNS = ("id", "text", "source", "n_tokens")
PART_ROWS, PART_TOKENS = 50_000, 2**26
"""Documents, and their tokens, of a file that a trainer is given: some 256 MiB of text."""
RESULT = "trained.json"
"""A trainer may leave `{"steps": ..., "target_tokens": ...}` beside its checkpoint."""


@stage_task("run trainer")
def train_by_command(
    store: Store,
    key: str,
    template: str,
    timeout_s: float | None,
    version: str,
    checkpoint: str,
    chosen: str,
    tokens: int,
    seed: int,
) -> str:
    """Train a copy of a checkpoint on chosen documents by the user's program, and keep what it leaves.

    Its output goes to the run's log line by line, and to `trainer.log` beside the checkpoint. Of `trained_steps`, which
    are those under the built-in schedule, it takes none.

    Args:
        store: the workspace.
        key: of the trained checkpoint.
        template: `training.command`.
        timeout_s: seconds after which it is killed; None: never.
        version: key of the pool version.
        checkpoint: key of the checkpoint to start from.
        chosen: key of the choice.
        tokens: targets to train on.
        seed: handed to the program.

    Returns:
        `key`.

    Raises:
        ChildFailed: the program failed, or took too long.
        ModelError: what it left is not the model it was given, trained.
    """
    if store.exists(manifest_key(key)):
        return key
    with tempfile.TemporaryDirectory(prefix="quad-trainer-") as place:
        selection, start, output = (Path(place, name) for name in ("selection", "checkpoint", "output"))
        for folder in (selection, start, output):
            folder.mkdir()
        write_selection(store, version, chosen, selection)
        model, tokenizer = read_checkpoint(store, checkpoint, "float32", "cpu")
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
        values = {"selection": selection, "checkpoint": start, "output": output, "tokens": tokens, "seed": seed}
        command = fill_command(template, values)
        with working(f"trainer, {key.rsplit('/', 1)[-1]}"):
            _run(store, key, command, timeout_s)
        trained, told = check_trained(output, model, tokenizer), read_result(output, tokens)
    before = read_checkpoint_manifest(store, checkpoint)
    changed = {
        "training": told,
        "trained_tokens": before.trained_tokens + told.target_tokens,
        "weights_sha256": weights_sha256(trained),
        "source": None,
        "bfloat16_sha256": None,
    }
    save_checkpoint(store, key, trained, tokenizer, before.model_copy(update=changed))
    return key


def write_selection(store: Store, version: str, chosen: str, folder: Path) -> None:
    """Write chosen documents, in the pool's order, as parquet files of `id`, `text`, `source` and `n_tokens`."""
    rows = read_choice_table(store, chosen, ["position", "n_tokens"]).sort_by("position")
    positions, bounds = rows["position"].to_numpy(), cut_rows(rows["n_tokens"].to_numpy(), PART_ROWS, PART_TOKENS)
    for part, (start, end) in enumerate(itertools.pairwise(bounds)):
        table = read_positions(store, version, positions[start:end], COLUMNS)
        pq.write_table(table, folder / f"part-{part:05d}.parquet")


def check_trained(output: Path, before: PreTrainedModel, tokenizer: FastTokenizer) -> PreTrainedModel:
    """Load what a trainer left, in float32.

    Args:
        output: the folder it was to leave a checkpoint in.
        before: the model it was given.
        tokenizer: the tokenizer it was given.

    Raises:
        ModelError: there is no checkpoint, or not that model's, trained: the message says what was expected and found.
    """
    if not (output / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in output.iterdir())[:5]) or "nothing"
        raise ModelError(
            f"training.command: expected a checkpoint in {{output}} (config.json, *.safetensors), found {there}"
        )
    try:
        model = load_model(output)
    except ModelError as error:
        raise ModelError(f"training.command: {{output}}: {str(error).removeprefix(f'{output}: ')}") from None
    if type(model) is not type(before):
        expected, found = type(before).__name__, type(model).__name__
        raise ModelError(f"training.command: expected a checkpoint of {expected} in {{output}}, found {found}")
    old, new = before.state_dict(), model.state_dict()
    for name in sorted(old.keys() | new.keys()):
        shapes = [tuple(one[name].shape) if name in one else None for one in (old, new)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"training.command: expected {name} of shape {shapes[0]} in {{output}}, found {shapes[1]}: the trained "
                "model must have the architecture and the vocabulary of the one it was given"
            )
        if not torch.isfinite(new[name]).all():
            raise ModelError(
                f"training.command: expected finite weights in {{output}}, found NaN or infinity in {name}: the "
                "training diverged; try a lower learning rate"
            )
    if (output / "tokenizer.json").is_file() and tokenizer_sha256(load_tokenizer(output)) != tokenizer_sha256(
        tokenizer
    ):
        raise ModelError("training.command: expected the tokenizer it was given in {output}, found another one")
    if all(torch.equal(old[name], new[name]) for name in old):
        raise ModelError("training.command: expected trained weights in {output}, found those of {checkpoint}")
    return model


def read_result(output: Path, tokens: int) -> TrainingInfo:
    """Read what a trainer says it took: steps 0 and the tokens it was asked for where it says nothing.

    Raises:
        ModelError: its `trained.json` does not hold two counts.
    """
    path = output / RESULT
    if not path.is_file():
        return TrainingInfo(steps=0, target_tokens=tokens, padded_tokens=tokens)
    try:
        body = json.loads(path.read_text())
        steps, targets = int(body["steps"]), int(body["target_tokens"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"training.command: expected {RESULT} in {{output}} to hold the counts steps and target_tokens, found "
            f"{path.read_text()[:80]!r}"
        ) from None
    return TrainingInfo(steps=steps, target_tokens=targets, padded_tokens=targets)


def _run(store: Store, key: str, command: list[str], timeout_s: float | None) -> None:
    """Run the program; keep its log, whatever becomes of it."""
    lines: list[str] = [shlex.join(command)]
    say = _logger()

    def keep(line: str) -> None:
        lines.append(line)
        say(line)

    try:
        run_child(command, timeout_s, keep)
    except ChildFailed as error:
        limit = " (training.command_timeout_s)" if "killed it then" in str(error) else ""
        raise ChildFailed(f"training.command{limit}: {error}") from None
    finally:
        store.put(trainer_log_key(key), "".join(f"{line}\n" for line in lines).encode())


def _logger() -> Callable[[str], object]:
    try:
        return get_run_logger().info
    except MissingContextError:
        return notice
