"""Stage: the reference direction (iHVP), from factors and the gradient of the reference set's loss.

The gradient is summed in chunks that any worker may do; the inverse is applied on a worker as well, so that the driving
process holds no factors.
"""

from typing import Any

import torch
from torch import Tensor

from quad_tasks.config.schema import ConfigError, FactorsConfig
from quad_tasks.core import ekfac, influence
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.manifests.influence import DirectionManifest, DirectionSet
from quad_tasks.records import ModelUse
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.reference_tables import read_reference, read_reference_table
from quad_tasks.runtime.run import wait_for_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.influence.factor_memory import CHUNK_DOCUMENTS, SMALLER_FACTORS
from quad_tasks.stages.influence.fit_factors import read_factors
from quad_tasks.stages.influence.fit_parts import delete_parts, load_named, merge_parts, save_named
from quad_tasks.storage.keys import chunk_key, direction_key, factors_folder, factors_key, manifest_key
from quad_tasks.storage.lease import check_lease
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store


@stage_task("fit direction")
def fit_direction(
    store: Store, factors: str, checkpoint: str, reference: str, settings: FactorsConfig, use: ModelUse
) -> str:
    """Turn each reference set's mean gradient into its direction v = (F + λI)^-1 g_r and return their key.

    The inverse being linear, the direction of all sets is the mean of theirs by weight.

    Args:
        store: the workspace.
        factors: key of the factors.
        checkpoint: key of the checkpoint they were fitted at.
        reference: key of the reference tables.
        settings: which blocks, and the damping.
        use: how the model reads documents.

    Raises:
        ConfigError: no document of a reference set has two tokens.
    """
    table = read_reference(store, reference).reference
    key = factors_folder(digest([factors, table.model_dump(mode="json"), settings.damping_scale]))
    if store.exists(manifest_key(key)):
        return key
    with wait_for_lease(store, key):
        if not store.exists(manifest_key(key)):
            _solve(store, factors, checkpoint, reference, settings, use, key)
    return key


def _solve(
    store: Store, factors: str, checkpoint: str, reference: str, settings: FactorsConfig, use: ModelUse, key: str
) -> None:
    """Sum up the reference gradient, apply the inverse and commit the direction."""
    sets = read_reference(store, reference).reference.sets
    sha256 = read_factors(store, factors).sha256
    common = (store, reference, checkpoint, key, settings.attention, use)
    chunks = _set_chunks([one.documents for one in sets])
    items = [(*common, start, n) for _, start, n in chunks]
    parts = map_tasks(gradient_chunk, items, "reference gradient", "chunks", on_gpu=True)
    own = [[part for part, (owner, _, _) in zip(parts, chunks, strict=True) if owner == n] for n in range(len(sets))]
    solved = (store, factors, sha256, {one.name: mine for one, mine in zip(sets, own, strict=True)}, key, settings)
    labels = ("apply the inverse", "directions")
    ((direction_sha256, n_targets),) = map_tasks(solve_sets, [solved], *labels, on_gpu=True, smaller=SMALLER_FACTORS)
    total = sum(one.weight for one in sets)
    manifest = DirectionManifest(
        factors=factors,
        checkpoint=checkpoint,
        reference=reference,
        damping_scale=settings.damping_scale,
        sets={one.name: DirectionSet(n_targets=n_targets[one.name], share=one.weight / total) for one in sets},
        sha256=direction_sha256,
    )
    check_lease(store, key)
    write_manifest(store, manifest_key(key), manifest)
    delete_parts(store, parts)


def solve_sets(
    store: Store, factors: str, sha256: str, parts: dict[str, list[str]], key: str, settings: FactorsConfig
) -> tuple[str, dict[str, int]]:
    """Apply the inverse to every reference set's mean gradient, on a worker: the driver holds no factors.

    Returns:
        The digest of the directions' file, and each set's targets.

    Raises:
        ConfigError: no document of a reference set has two tokens.
    """
    fitted = ekfac.factors_from_tensors(load_named(store, factors_key(factors), sha256))
    directions: dict[str, Tensor] = {}
    found: dict[str, int] = {}
    for name, own in parts.items():
        gradient, found[name] = _mean_gradient(store, own)
        if found[name] == 0:
            raise ConfigError(f"reference set {name!r}: expected documents of at least 2 tokens, found none")
        inverse = ekfac.apply_inverse(fitted, gradient, settings.damping_scale)
        directions |= {f"{name}/{block}": inverse[block] for block in inverse}
    return save_named(store, direction_key(key), directions), found


def load_directions(store: Store, key: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Load the direction of every reference set, [O, I] by set and block, and each set's share of the weight."""
    made = read_direction(store, key)
    sets = made.sets
    directions: dict[str, dict[str, Tensor]] = {name: {} for name in sets}
    for name, tensor in load_named(store, direction_key(key), made.sha256).items():
        owner, _, block = name.partition("/")
        directions[owner][block] = tensor
    return directions, {name: one.share for name, one in sets.items()}


def read_direction(store: Store, key: str) -> DirectionManifest:
    """Read the manifest of a direction."""
    return read_manifest(DirectionManifest, store, manifest_key(key))


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
    total = merge_parts(store, parts)
    n_targets = int(total.pop("n_targets"))
    return {name: tensor.div_(max(1, n_targets)) for name, tensor in total.items()}, n_targets


def gradient_chunk(
    store: Store, reference: str, checkpoint: str, key: str, attention: Any, use: ModelUse, start: int, n: int
) -> str:
    """Sum one chunk's reference gradients; return where they are."""
    part = chunk_key(key, "gradient", start)
    if not store.exists(part):
        model, tokenizer = load_checkpoint(store, checkpoint, use.dtype, use.device)
        rows = read_reference_table(store, reference, "reference", ["text"]).slice(start, n)
        documents = encode(tokenizer, rows["text"].to_pylist())
        batches, _ = make_batches(documents, use.window_tokens, use.batch_tokens)
        sums, n_targets = influence.gradient_sums(model, batches, find_blocks(model, attention))
        save_named(store, part, {**sums, "n_targets": torch.tensor(n_targets)})
    return part
