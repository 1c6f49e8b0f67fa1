"""Keep a training's state in the workspace from time to time, so that a killed one goes on from there.

A state is one object, replaced as a whole: weights, optimizer and what the training took so far. The steps that follow
are those of the training that was never interrupted: its order of documents depends on its seed alone, so that on a CPU
it ends with the same weights, bit for bit.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from quad_tasks.core.lm.training import TrainingRecord
from quad_tasks.runtime.checkpoints import load_optimizer_arrays, optimizer_arrays
from quad_tasks.storage.keys import steps_key
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

WEIGHTS, OPTIMIZER = "weights/", "optimizer/"
RECORD = "record"


def keep_steps(
    store: Store,
    key: str,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    every_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[TrainingRecord], None]:
    """Return what to call after each step: it keeps the state once `every_s` have passed since it last did.

    Args:
        store: the workspace.
        key: of the trained checkpoint.
        model: in training, weights in float32.
        optimizer: its own.
        every_s: seconds.
        clock: seconds since some moment.
    """
    last = clock()

    def after_step(record: TrainingRecord) -> None:
        nonlocal last
        if clock() - last >= every_s:
            save_steps(store, key, model, optimizer, record)
            last = clock()

    return after_step


def save_steps(
    store: Store, key: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer, record: TrainingRecord
) -> None:
    """Keep a training's state after a step, in place of the one kept before."""
    weights = {f"{WEIGHTS}{name}": p.detach().cpu().numpy() for name, p in model.named_parameters()}
    state = {f"{OPTIMIZER}{name}": array for name, array in optimizer_arrays(optimizer).items()}
    save_tensors(store, steps_key(key), {**weights, **state}, {RECORD: json.dumps(asdict(record))})


def resume_steps(
    store: Store, key: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> TrainingRecord | None:
    """Put the state that was kept last into model and optimizer; None where none was.

    Returns:
        What the training took until then.

    Raises:
        DigestMismatch: the state is not as it was written.
    """
    if not store.exists(steps_key(key)):
        return None
    arrays, metadata = load_tensors(store, steps_key(key))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"{WEIGHTS}{name}"]))
    state = {name.removeprefix(OPTIMIZER): array for name, array in arrays.items() if name.startswith(OPTIMIZER)}
    load_optimizer_arrays(optimizer, state)
    return TrainingRecord(**json.loads(metadata[RECORD]))
