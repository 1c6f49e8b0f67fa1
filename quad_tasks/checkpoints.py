"""Checkpoints between core and storage: a model, its tokenizer and its optimizer under one key of the workspace.

A checkpoint's manifest is written last. A model that comes from a Hugging Face id or a local path keeps no copy of
its weights: the manifest names its source and the digest of what was loaded from there. Nothing is unpickled.
"""

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.model import load_model, load_tokenizer, tokenizer_sha256
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import check_digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store, open_store

CACHED_MODELS = 2


def save_checkpoint(
    store: Store,
    key: str,
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    info: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write model, tokenizer and optimizer state under `key`, then the manifest that makes them a checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        files = sorted(path for path in Path(directory).iterdir() if path.is_file())
        digests = {}
        for path in files:
            data = path.read_bytes()
            store.put(f"{key}/{path.name}", data)
            digests[path.name] = hashlib.sha256(data).hexdigest()
    if optimizer is not None:
        save_tensors(store, f"{key}/optimizer.safetensors", optimizer_arrays(optimizer), {})
    write_manifest(store, f"{key}/manifest.json", {**info, "files": digests})


def save_source(store: Store, key: str, source: str, info: dict[str, Any]) -> None:
    """Write a checkpoint that points at a Hugging Face id or a local path."""
    write_manifest(store, f"{key}/manifest.json", {**info, "source": source})


@functools.lru_cache(maxsize=CACHED_MODELS)
def load_checkpoint(workspace: str, key: str, dtype: str, device: str) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a checkpoint's model and tokenizer; a process keeps the last few it loaded.

    Whoever changes the model's parameters calls `load_checkpoint.__wrapped__`, which gives a model of its own.

    Raises:
        DigestMismatch: a file is not the one that was written, or the source gives other weights than it did.
    """
    store = open_store(workspace)
    manifest = read_manifest(store, f"{key}/manifest.json")
    if "files" not in manifest:
        model = load_model(manifest["source"], getattr(torch, dtype), device)
        if model.dtype == torch.float32:  # as it was when it was digested
            check_digest(store, key, expected=manifest["weights_sha256"], got=weights_sha256(model))
        return model, _source_tokenizer(store, key, manifest)
    with tempfile.TemporaryDirectory() as directory:
        for name in manifest["files"]:
            _fetch(store, key, manifest, name, directory)
        return load_model(directory, getattr(torch, dtype), device), load_tokenizer(directory)


@functools.lru_cache(maxsize=CACHED_MODELS)
def load_checkpoint_tokenizer(workspace: str, key: str) -> FastTokenizer:
    """Load a checkpoint's tokenizer alone."""
    store = open_store(workspace)
    manifest = read_manifest(store, f"{key}/manifest.json")
    if "files" not in manifest:
        return _source_tokenizer(store, key, manifest)
    with tempfile.TemporaryDirectory() as directory:
        for name in manifest["files"]:
            if not name.endswith(".safetensors"):
                _fetch(store, key, manifest, name, directory)
        return load_tokenizer(directory)


def _fetch(store: Store, key: str, manifest: dict[str, Any], name: str, directory: str) -> None:
    """Copy one of a checkpoint's files into a folder, its digest checked."""
    data = store.get(f"{key}/{name}")
    check_digest(store, f"{key}/{name}", expected=manifest["files"][name], got=hashlib.sha256(data).hexdigest())
    (Path(directory) / name).write_bytes(data)


def _source_tokenizer(store: Store, key: str, manifest: dict[str, Any]) -> FastTokenizer:
    tokenizer = load_tokenizer(manifest["source"])
    check_digest(store, key, expected=manifest["tokenizer"]["sha256"], got=tokenizer_sha256(tokenizer))
    return tokenizer


def weights_sha256(model: PreTrainedModel) -> str:
    """Return the sha256 over all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
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
    """Put a checkpoint's optimizer state into `optimizer`; False when the checkpoint has none."""
    if not store.exists(f"{key}/optimizer.safetensors"):
        return False
    arrays, _ = load_tensors(store, f"{key}/optimizer.safetensors")
    body = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({"state": state, "param_groups": body["param_groups"]})
    return True
