"""Stage: EK-FAC factors of the training loss at a checkpoint, then the reference direction (iHVP).

The fit is two passes of sums over a random sample of the pool, cut into chunks that any worker may do; a chunk's sums
are kept until the factors are committed, so that a fit goes on where it stopped. Sums are merged in the chunks' order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import ConfigError, FactorsConfig, RunConfig
from quad_tasks.core import covariance, ekfac, influence
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.model import Batch, encode, make_batches, pick_device, split_windows
from quad_tasks.factor_sizes import check_memory, describe_cut, machine_memory_bytes
from quad_tasks.progress import notice, working
from quad_tasks.run import in_turn
from quad_tasks.storage import pool as tables
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store, open_store

CHUNK_DOCUMENTS = 64
Positions = npt.NDArray[np.int64]
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
    with in_turn(store, key):
        if not store.exists(f"{key}/manifest.json"):
            _fit(config, Fit(config.workspace, version, checkpoint, key, config.factors, _limits(config)))
    return key


def _fit(config: RunConfig, fit: "Fit") -> None:
    """Sum up, merge and commit the factors."""
    store, key = open_store(config.workspace), fit.key
    manifest = read_manifest(store, fit.version)
    first, second = _samples(config, manifest["documents"])
    parts = spread(covariance_chunk, _chunks(fit, first), "fit covariances", "chunks", on_gpu=True)
    sums = _merge(store, parts, covariance.covariances_from_tensors, covariance.merge)
    with working("decompose"):
        basis = ekfac.decompose(sums)
    _save(store, f"{key}/basis.safetensors", ekfac.basis_to_tensors(basis))
    more = spread(eigenvalue_chunk, _chunks(fit, second), "fit eigenvalues", "chunks", on_gpu=True)
    eigenvalues = _merge(store, more, ekfac.eigenvalue_sums_from_tensors, ekfac.merge)
    sha256 = _save(store, f"{key}/factors.safetensors", ekfac.factors_to_tensors(ekfac.finish(basis, eigenvalues)))
    cut = describe_cut(basis.blocks, config.factors.max_factor_width)
    if cut:
        widest = max(cut, key=lambda name: cut[name]["width"])
        notice(
            f"{len(cut)} covariances kept as diagonal parts (factors.max_factor_width), the widest {widest}: "
            f"{cut[widest]['whole_bytes']:,} bytes whole, {cut[widest]['size_bytes']:,} in {cut[widest]['parts']} parts"
        )
    body = {
        "checkpoint": fit.checkpoint,
        "pool_tables": manifest["tables"],
        "settings": _settings(config),
        "sample_documents": len(first),
        "eigenvalue_documents": len(second),
        "sha256": sha256,
        "blocks": [block.name for block in basis.blocks],
        "diagonal_parts": cut,
    }
    write_manifest(store, f"{key}/manifest.json", body)
    for part in [*parts, *more, f"{key}/basis.safetensors"]:
        store.delete(part)


@step("fit direction")
def fit_direction(config: RunConfig, factors: str, checkpoint: str, reference: str) -> str:
    """Turn each reference set's mean gradient into its direction v = (F + λI)^-1 g_r and return their key.

    The inverse being linear, the direction of all sets is the mean of theirs by weight.

    Raises:
        ConfigError: no document of a reference set has two tokens.
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
    sets = manifest["reference"]["sets"]
    common = (config.workspace, reference, checkpoint, key, config.factors.attention, _limits(config))
    chunks = _set_chunks([one["documents"] for one in sets])
    items = [(*common, start, n) for _, start, n in chunks]
    parts = spread(gradient_chunk, items, "reference gradient", "chunks", on_gpu=True)
    fitted = ekfac.factors_from_tensors(_load(store, f"{factors}/factors.safetensors"))
    directions: dict[str, Tensor] = {}
    described = {}
    total = sum(one["weight"] for one in sets)
    for index, one in enumerate(sets):
        own = [part for part, (owner, _, _) in zip(parts, chunks, strict=True) if owner == index]
        gradient, n_targets = _mean_gradient(store, own)
        if n_targets == 0:
            where = config.reference.set_key(one["name"])
            raise ConfigError(f"{where}: expected documents of at least 2 tokens, found none")
        inverse = ekfac.apply_inverse(fitted, gradient, config.factors.damping_scale)
        directions |= {f"{one['name']}/{block}": inverse[block] for block in inverse}
        described[one["name"]] = {"n_targets": n_targets, "share": one["weight"] / total}
    body = {
        "factors": factors,
        "checkpoint": checkpoint,
        "reference": reference,
        "damping_scale": config.factors.damping_scale,
        "sets": described,
        "sha256": _save(store, f"{key}/direction.safetensors", directions),
    }
    write_manifest(store, f"{key}/manifest.json", body)
    for part in parts:
        store.delete(part)


def load_directions(store: Store, key: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Load the direction of every reference set, [O, I] by set and block, and each set's share of the weight."""
    sets = read_manifest(store, f"{key}/manifest.json")["sets"]
    directions: dict[str, dict[str, Tensor]] = {name: {} for name in sets}
    for name, tensor in _load(store, f"{key}/direction.safetensors").items():
        owner, _, block = name.partition("/")
        directions[owner][block] = tensor
    return directions, {name: one["share"] for name, one in sets.items()}


def _set_chunks(documents: list[int]) -> list[tuple[int, int, int]]:
    """Cut the sets' documents, which stand set by set, into chunks: (set, first document, documents)."""
    chunks, first = [], 0
    for index, n in enumerate(documents):
        for start in range(first, first + n, CHUNK_DOCUMENTS):
            chunks.append((index, start, min(CHUNK_DOCUMENTS, first + n - start)))
        first += n
    return chunks


def _mean_gradient(store: Store, parts: list[str]) -> tuple[dict[str, Tensor], int]:
    """Add up chunks' gradients and divide by their targets."""
    total = _load(store, parts[0])
    for part in parts[1:]:
        more = _load(store, part)
        total = {name: total[name] + more[name] for name in total}
    n_targets = int(total.pop("n_targets"))
    return {name: tensor / max(1, n_targets) for name, tensor in total.items()}, n_targets


def _samples(config: RunConfig, documents: int) -> tuple[Positions, Positions]:
    """Draw the positions of both passes, sorted; the second's are the first's unless their number is configured."""
    n = config.factors.eigenvalue_documents
    first = _draw(config.factors.sample_documents, documents, np.random.default_rng([config.seed, 3]))
    return first, first if n is None else _draw(n, documents, np.random.default_rng([config.seed, 17]))


def _draw(n: int, documents: int, generator: np.random.Generator) -> Positions:
    return np.sort(generator.choice(documents, min(n, documents), replace=False))


def _chunks(fit: "Fit", sample: Positions) -> list[tuple[Any, ...]]:
    starts = range(0, len(sample), CHUNK_DOCUMENTS)
    return [(fit, sample[start : start + CHUNK_DOCUMENTS], index) for index, start in enumerate(starts)]


@dataclass(frozen=True)
class Fit:
    """What every chunk of one fit has in common.

    Attributes:
        workspace: URI of the store.
        version: key of the pool version's manifest.
        checkpoint: key of the checkpoint.
        key: where the factors go.
        settings: which blocks, whose labels, how the sums are kept.
        limits: window and batch sizes, precision, device and seed.
    """

    workspace: str
    version: str
    checkpoint: str
    key: str
    settings: FactorsConfig
    limits: dict[str, Any]


def covariance_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> str:
    """Sum one chunk's activation and gradient covariances; return where they are."""
    store = open_store(fit.workspace)
    part = f"{fit.key}/chunks/covariance-{index:05d}.safetensors"
    if not store.exists(part):
        model, batches = _chunk_batches(fit, positions)
        chosen = fit.settings
        blocks = find_blocks(model, chosen.attention)
        check_memory(blocks, chosen.max_factor_width, machine_memory_bytes())
        sums = covariance.accumulate_covariances(
            model, batches, blocks, chosen.fisher, max_width=chosen.max_factor_width, rounded=chosen.rounded_products
        )
        _save(store, part, covariance.covariances_to_tensors(sums))
    return part


def eigenvalue_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> str:
    """Sum one chunk's squared rotated gradients; return where they are."""
    store = open_store(fit.workspace)
    part = f"{fit.key}/chunks/eigenvalue-{index:05d}.safetensors"
    if not store.exists(part):
        model, batches = _chunk_batches(fit, positions)
        basis = ekfac.basis_from_tensors(_load(store, f"{fit.key}/basis.safetensors"))
        sums = ekfac.accumulate_eigenvalues(
            model, batches, basis, fit.settings.fisher, rounded=fit.settings.rounded_products
        )
        _save(store, part, ekfac.eigenvalue_sums_to_tensors(sums))
    return part


def gradient_chunk(
    workspace: str,
    reference: str,
    checkpoint: str,
    key: str,
    attention: Any,
    limits: dict[str, Any],
    start: int,
    n: int,
) -> str:
    """Sum one chunk's reference gradients; return where they are."""
    store = open_store(workspace)
    part = f"{key}/chunks/gradient-{start:07d}.safetensors"
    if not store.exists(part):
        model, tokenizer = load_checkpoint(workspace, checkpoint, limits["dtype"], limits["device"])
        rows = tables.read_rows(store, f"{reference}/reference.parquet", start, n, ["text"])
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
