"""Stage: EK-FAC factors of the training loss at a checkpoint, then the reference direction (iHVP).

The fit is two passes of sums over a random sample of the pool, cut into chunks that any worker may do; a chunk's sums
are kept until the factors are committed, so that a fit goes on where it stopped. Sums are merged in the chunks' order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import ConfigError, RunConfig
from quad_tasks.core import covariance, ekfac, influence
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.model import Batch, encode, make_batches, pick_device, split_windows
from quad_tasks.run import in_turn
from quad_tasks.storage import pool as tables
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store, open_store

CHUNK_DOCUMENTS = 64
Sums = TypeVar("Sums")


@step("fit factors")
def fit_factors(config: RunConfig, version: str, checkpoint: str) -> str:
    """Fit EK-FAC factors at a checkpoint on a sample of the pool and return their key."""
    store = open_store(config.workspace)
    manifest = read_manifest(store, version)
    weights = read_manifest(store, f"{checkpoint}/manifest.json")["weights_sha256"]
    precision = [config.model.window_tokens, config.model.batch_tokens, config.model.dtype]
    identity = [manifest["tables"], checkpoint, weights, _settings(config), precision, config.seed]
    key = f"factors/{digest(identity)[:12]}"
    if store.exists(f"{key}/manifest.json"):
        return key
    choice = (config.factors.attention, config.factors.fisher)
    with in_turn(store, key):
        if not store.exists(f"{key}/manifest.json"):
            _fit(config, Fit(config.workspace, version, checkpoint, key, *choice, _limits(config)))
    return key


def _fit(config: RunConfig, fit: "Fit") -> None:
    """Sum up, merge and commit the factors."""
    store, key = open_store(config.workspace), fit.key
    manifest = read_manifest(store, fit.version)
    generator = np.random.default_rng([config.seed, 3])
    n = min(config.factors.sample_documents, manifest["documents"])
    sample = np.sort(generator.choice(manifest["documents"], n, replace=False))
    chunks = [sample[start : start + CHUNK_DOCUMENTS] for start in range(0, n, CHUNK_DOCUMENTS)]
    items = [(fit, chunk, index) for index, chunk in enumerate(chunks)]
    parts = spread(covariance_chunk, items, "fit covariances", "chunks", on_gpu=True)
    sums = _merge(store, parts, covariance.covariances_from_tensors, covariance.merge)
    basis = ekfac.decompose(sums)
    _save(store, f"{key}/basis.safetensors", ekfac.basis_to_tensors(basis))
    second = spread(eigenvalue_chunk, items, "fit eigenvalues", "chunks", on_gpu=True)
    eigenvalues = _merge(store, second, ekfac.eigenvalue_sums_from_tensors, ekfac.merge)
    sha256 = _save(store, f"{key}/factors.safetensors", ekfac.factors_to_tensors(ekfac.finish(basis, eigenvalues)))
    body = {
        "checkpoint": fit.checkpoint,
        "pool_tables": manifest["tables"],
        "settings": _settings(config),
        "sample_documents": n,
        "sha256": sha256,
        "blocks": [block.name for block in basis.blocks],
    }
    write_manifest(store, f"{key}/manifest.json", body)
    for part in [*parts, *second, f"{key}/basis.safetensors"]:
        store.delete(part)


@step("fit direction")
def fit_direction(config: RunConfig, factors: str, checkpoint: str, reference: str) -> str:
    """Turn the reference set's mean gradient into the direction v = (F + λI)^-1 g_r and return its key.

    Raises:
        ConfigError: no reference document has two tokens.
    """
    store = open_store(config.workspace)
    manifest = read_manifest(store, f"{reference}/manifest.json")
    identity = [factors, manifest["reference"], config.factors.damping_scale]
    key = f"factors/{digest(identity)[:12]}"
    if store.exists(f"{key}/manifest.json"):
        return key
    with in_turn(store, key):
        if not store.exists(f"{key}/manifest.json"):
            _solve(config, factors, checkpoint, reference, key)
    return key


def _solve(config: RunConfig, factors: str, checkpoint: str, reference: str, key: str) -> None:
    """Sum up the reference gradient, apply the inverse and commit the direction."""
    store = open_store(config.workspace)
    manifest = read_manifest(store, f"{reference}/manifest.json")
    starts = range(0, manifest["reference"]["documents"], CHUNK_DOCUMENTS)
    attention = config.factors.attention
    items = [(config.workspace, reference, checkpoint, key, attention, _limits(config), start) for start in starts]
    parts = spread(gradient_chunk, items, "reference gradient", "chunks", on_gpu=True)
    total = _load(store, parts[0])
    n_targets = int(total.pop("n_targets"))
    for part in parts[1:]:
        more = _load(store, part)
        n_targets += int(more.pop("n_targets"))
        total = {name: total[name] + more[name] for name in total}
    if n_targets == 0:
        raise ConfigError("reference.inputs: expected documents of at least 2 tokens, found none")
    gradient = {name: tensor / n_targets for name, tensor in total.items()}
    fitted = ekfac.factors_from_tensors(_load(store, f"{factors}/factors.safetensors"))
    direction = ekfac.apply_inverse(fitted, gradient, config.factors.damping_scale)
    body = {
        "factors": factors,
        "checkpoint": checkpoint,
        "reference": reference,
        "damping_scale": config.factors.damping_scale,
        "n_targets": n_targets,
        "sha256": _save(store, f"{key}/direction.safetensors", direction),
    }
    write_manifest(store, f"{key}/manifest.json", body)
    for part in parts:
        store.delete(part)


@dataclass(frozen=True)
class Fit:
    """What every chunk of one fit has in common.

    Attributes:
        workspace: URI of the store.
        version: key of the pool version's manifest.
        checkpoint: key of the checkpoint.
        key: where the factors go.
        attention: which attention blocks are tracked.
        fisher: whose labels.
        limits: window and batch sizes, precision, device and seed.
    """

    workspace: str
    version: str
    checkpoint: str
    key: str
    attention: Any
    fisher: Any
    limits: dict[str, Any]


def covariance_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> str:
    """Sum one chunk's activation and gradient covariances; return where they are."""
    store = open_store(fit.workspace)
    part = f"{fit.key}/chunks/covariance-{index:05d}.safetensors"
    if not store.exists(part):
        model, batches = _chunk_batches(fit, positions)
        sums = covariance.accumulate_covariances(model, batches, find_blocks(model, fit.attention), fit.fisher)
        _save(store, part, covariance.covariances_to_tensors(sums))
    return part


def eigenvalue_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> str:
    """Sum one chunk's squared rotated gradients; return where they are."""
    store = open_store(fit.workspace)
    part = f"{fit.key}/chunks/eigenvalue-{index:05d}.safetensors"
    if not store.exists(part):
        model, batches = _chunk_batches(fit, positions)
        basis = ekfac.basis_from_tensors(_load(store, f"{fit.key}/basis.safetensors"))
        sums = ekfac.accumulate_eigenvalues(model, batches, basis, fit.fisher)
        _save(store, part, ekfac.eigenvalue_sums_to_tensors(sums))
    return part


def gradient_chunk(
    workspace: str, reference: str, checkpoint: str, key: str, attention: Any, limits: dict[str, Any], start: int
) -> str:
    """Sum one chunk's reference gradients; return where they are."""
    store = open_store(workspace)
    part = f"{key}/chunks/gradient-{start:07d}.safetensors"
    if not store.exists(part):
        model, tokenizer = load_checkpoint(workspace, checkpoint, limits["dtype"], limits["device"])
        rows = tables.read_rows(store, f"{reference}/reference.parquet", start, CHUNK_DOCUMENTS, ["text"])
        documents = encode(tokenizer, rows["text"].to_pylist())
        batches, _ = make_batches(documents, limits["window_tokens"], limits["batch_tokens"])
        sums, n_targets = influence.gradient_sums(model, batches, find_blocks(model, attention))
        _save(store, part, {**sums, "n_targets": torch.tensor(n_targets)})
    return part


def _chunk_batches(fit: Fit, positions: np.ndarray[Any, Any]) -> tuple[Any, list[Batch]]:
    """Read a chunk's documents and batch their first windows; sampled labels are seeded by position."""
    limits = fit.limits
    model, tokenizer = load_checkpoint(fit.workspace, fit.checkpoint, limits["dtype"], limits["device"])
    rows = read_positions(open_store(fit.workspace), fit.version, positions, ["text"])
    first = [split_windows(ids, limits["window_tokens"])[0] for ids in encode(tokenizer, rows["text"].to_pylist())]
    seeds = [limits["seed"] * 2**31 + int(position) for position in positions]
    batches, _ = make_batches(first, limits["window_tokens"], limits["batch_tokens"], seeds)
    return model, batches


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what of the configuration the factors depend on: the damping comes in with the direction."""
    return config.factors.model_dump(exclude={"damping_scale"})


def _limits(config: RunConfig) -> dict[str, Any]:
    return {
        "window_tokens": config.model.window_tokens,
        "batch_tokens": config.model.batch_tokens,
        "dtype": config.model.dtype,
        "device": pick_device(config.compute.device),
        "seed": config.seed,
    }


def _merge(
    store: Store, parts: list[str], decode: Callable[[dict[str, Tensor]], Sums], merge: Callable[[Sums, Sums], Sums]
) -> Sums:
    total = decode(_load(store, parts[0]))
    for part in parts[1:]:
        total = merge(total, decode(_load(store, part)))
    return total


def _save(store: Store, key: str, tensors: dict[str, Tensor]) -> str:
    return save_tensors(store, key, {name: t.detach().cpu().numpy() for name, t in tensors.items()}, {})


def _load(store: Store, key: str) -> dict[str, Tensor]:
    arrays, _ = load_tensors(store, key)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
