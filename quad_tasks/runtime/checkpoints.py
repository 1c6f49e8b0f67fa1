"""Checkpoints between core and storage: a model, its tokenizer and its optimizer under one key of the workspace.

A checkpoint's manifest is written last. A model that comes from a Hugging Face id or a local path keeps no copy of
its weights: the manifest names its source and the digest of what was loaded from there. Nothing is unpickled.

A training's state is kept from time to time, so that a killed one goes on from there. It is one object, replaced as a
whole: weights, optimizer and what the training took so far. The steps that follow are those of the training that was
never interrupted: its order of documents depends on its seed alone, so that on a CPU it ends with the same weights, bit
for bit.
"""

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.lm.model import build_architecture, load_model, pick_device
from quad_tasks.core.lm.tokenizer import load_tokenizer, tokenizer_sha256
from quad_tasks.core.lm.training import TrainingRecord
from quad_tasks.manifests.influence import Checkpoint, TokenizerInfo
from quad_tasks.storage.keys import manifest_key, optimizer_key, steps_key
from quad_tasks.storage.manifest import check_digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

CACHED_MODELS = 2
WEIGHTS, OPTIMIZER = "weights/", "optimizer/"
RECORD = "record"


def save_checkpoint(
    store: Store,
    key: str,
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    described: Checkpoint,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write model, tokenizer and optimizer state under `key`, then the manifest that makes them a checkpoint.

    The files of a checkpoint that stands there already are left as they are.

    Raises:
        ManifestMismatch: another checkpoint stands there.
    """
    if store.exists(manifest_key(key)):
        there = read_checkpoint_manifest(store, key)
        known = {"files": there.files, "optimizer_sha256": there.optimizer_sha256}
        write_manifest(store, manifest_key(key), described.model_copy(update=known))
        return
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        files = sorted(path for path in Path(directory).iterdir() if path.is_file())
        digests = {}
        for path in files:
            data = path.read_bytes()
            store.put(f"{key}/{path.name}", data)
            digests[path.name] = hashlib.sha256(data).hexdigest()
    kept = None if optimizer is None else save_tensors(store, optimizer_key(key), optimizer_arrays(optimizer), {})
    written = {"files": digests, "optimizer_sha256": kept}
    write_manifest(store, manifest_key(key), described.model_copy(update=written))


def describe_checkpoint(name: str, tokenizer_name: str, model: PreTrainedModel, tokenizer: FastTokenizer) -> Checkpoint:
    """Describe a model and its tokenizer by their digests and sizes, as a checkpoint no stage has trained yet."""
    return Checkpoint(
        name=name,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        weights_sha256=weights_sha256(model),
        tokenizer=TokenizerInfo(name=tokenizer_name, sha256=tokenizer_sha256(tokenizer), vocabulary=len(tokenizer)),
    )


def read_checkpoint_manifest(store: Store, key: str) -> Checkpoint:
    """Read what a checkpoint is."""
    return read_manifest(Checkpoint, store, manifest_key(key))


def read_checkpoint(store: Store, key: str, dtype: str, device: str) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a checkpoint's model and tokenizer, the caller's own: for whoever changes the parameters.

    Args:
        store: the workspace.
        key: of the checkpoint.
        dtype: of its parameters, `float32` or `bfloat16`.
        device: `cpu`, `cuda`, or `auto`: a GPU where this process has one.

    Raises:
        DigestMismatch: a file is not the one that was written, or the source gives other weights than it did.
    """
    manifest, device = read_checkpoint_manifest(store, key), pick_device(device)
    if manifest.files is None:
        model = load_model(str(manifest.source), getattr(torch, dtype), device)
        rounded = dtype == "bfloat16"
        expected = manifest.bfloat16_sha256 if rounded else manifest.weights_sha256
        if expected is not None:
            check_digest(store, key, expected=expected, got=weights_sha256(model, torch.bfloat16 if rounded else None))
        return model, _source_tokenizer(store, key, manifest)
    with tempfile.TemporaryDirectory() as directory:
        for name, sha256 in manifest.files.items():
            _fetch(store, f"{key}/{name}", sha256, Path(directory, name))
        return load_model(directory, getattr(torch, dtype), device), load_tokenizer(directory)


@functools.lru_cache(maxsize=CACHED_MODELS)
def load_checkpoint(store: Store, key: str, dtype: str, device: str) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a checkpoint to read with it: a process keeps the last few, so that nobody may change the parameters.

    Raises:
        DigestMismatch: as `read_checkpoint`.
    """
    return read_checkpoint(store, key, dtype, device)


@functools.lru_cache(maxsize=CACHED_MODELS)
def load_checkpoint_tokenizer(store: Store, key: str) -> FastTokenizer:
    """Load a checkpoint's tokenizer alone."""
    manifest = read_checkpoint_manifest(store, key)
    if manifest.files is None:
        return _source_tokenizer(store, key, manifest)
    with tempfile.TemporaryDirectory() as directory:
        for name, sha256 in manifest.files.items():
            if not name.endswith(".safetensors"):
                _fetch(store, f"{key}/{name}", sha256, Path(directory, name))
        return load_tokenizer(directory)


def load_architecture(store: Store, key: str) -> PreTrainedModel:
    """Build a checkpoint's model without weights, to ask for its shape."""
    manifest = read_checkpoint_manifest(store, key)
    if manifest.files is None:
        return build_architecture(str(manifest.source))
    with tempfile.TemporaryDirectory() as directory:
        _fetch(store, f"{key}/config.json", manifest.files["config.json"], Path(directory, "config.json"))
        return build_architecture(directory)


def _fetch(store: Store, key: str, sha256: str, path: Path) -> None:
    """Copy one of a checkpoint's files to a path, its digest checked."""
    data = store.get(key)
    check_digest(store, key, expected=sha256, got=hashlib.sha256(data).hexdigest())
    path.write_bytes(data)


def _source_tokenizer(store: Store, key: str, manifest: Checkpoint) -> FastTokenizer:
    tokenizer = load_tokenizer(str(manifest.source))
    check_digest(store, key, expected=manifest.tokenizer.sha256, got=tokenizer_sha256(tokenizer))
    return tokenizer


def weights_sha256(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    """Return the sha256 over all parameters and buffers, by name; real numbers in `dtype`, None: in their own."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray[Any, Any]]:
    """Flatten an optimizer's state to arrays named `<parameter>.<entry>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{entry}": value.detach().cpu().numpy()
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def restore_optimizer(store: Store, key: str, optimizer: torch.optim.Optimizer) -> bool:
    """Put a checkpoint's optimizer state into `optimizer`; False when no stage has trained it, so that it has none.

    Raises:
        StoreKeyError: the state that a stage left is gone: going on without it would train otherwise.
        DigestMismatch: it is not the state that was written.
    """
    checkpoint = read_checkpoint_manifest(store, key)
    if not checkpoint.trained_steps:
        return False
    arrays, _ = load_tensors(store, optimizer_key(key), checkpoint.optimizer_sha256)
    load_optimizer_arrays(optimizer, arrays)
    return True


def load_optimizer_arrays(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Put a state that `optimizer_arrays` gave into an optimizer of the same parameters."""
    body = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({"state": state, "param_groups": body["param_groups"]})


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
