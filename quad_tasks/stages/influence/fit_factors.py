"""Stage: EK-FAC factors of the training loss at a checkpoint.

The fit is two passes of sums over a random sample of the pool, cut into chunks that any worker may do; a chunk's sums
are kept until what is made of them is, so that a fit goes on where it stopped. Sums are merged in the chunks' order.
Covariances are kept, merged and decomposed in groups of blocks, so that no process holds two sets of all of them.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import FactorsConfig
from quad_tasks.core import covariance, ekfac
from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.lm.batching import Batch, make_batches, split_windows
from quad_tasks.core.lm.model import pick_device
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.seeds import Stream, label_seed, make_generator
from quad_tasks.manifests.influence import FactorsManifest
from quad_tasks.records import ModelUse
from quad_tasks.runtime.checkpoints import load_checkpoint, read_checkpoint_manifest
from quad_tasks.runtime.prefect_ui import show_asset
from quad_tasks.runtime.processes.memory import SMALLER_MODEL
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.run import wait_for_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.influence.factor_memory import (
    SMALLER_FACTORS,
    SMALLER_FIT,
    check_memory,
    chunk_documents,
    covariance_bytes,
    describe_cut,
    group_blocks,
    machine_memory_bytes,
)
from quad_tasks.stages.influence.fit_parts import delete_parts, load_named, merge_parts, save_named
from quad_tasks.storage.keys import (
    chunk_key,
    factors_folder,
    factors_key,
    manifest_key,
)
from quad_tasks.storage.lease import check_lease
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import nth_open, read_positions
from quad_tasks.storage.store import Store

Positions = npt.NDArray[np.int64]


@stage_task("fit factors")
def fit_factors(
    store: Store,
    version: str,
    checkpoint: str,
    settings: FactorsConfig,
    use: ModelUse,
    seed: int,
    held_out: Positions,
    memory_limit: int | None = None,
) -> str:
    """Fit EK-FAC factors at a checkpoint on a sample of the pool and return their key.

    Args:
        store: the workspace.
        version: key of the pool version.
        checkpoint: key of the checkpoint.
        settings: which blocks, whose labels, how large a sample, how the sums are kept.
        use: how the model reads documents.
        seed: of the run.
        held_out: positions of documents with held-out text, which are not drawn.
        memory_limit: bytes that the sums may take; None: what the machine has.

    Raises:
        ConfigError: they take more.
    """
    weights = read_checkpoint_manifest(store, checkpoint).weights_sha256
    precision = [use.window_tokens, use.batch_tokens, use.dtype]
    tables_of_version = read_version(store, version).tables
    identity = [tables_of_version, checkpoint, weights, _identity(settings), precision, seed]
    identity += [held_out.tolist()] if len(held_out) else []
    key = factors_folder(digest(identity))
    if store.exists(manifest_key(key)):
        return key
    with wait_for_lease(store, key):
        if not store.exists(manifest_key(key)):
            _fit(Fit(store, version, checkpoint, key, settings, use, seed, tuple(held_out.tolist()), memory_limit))
            show_asset(store, "factors", key, [version], sample_documents=settings.sample_documents)
    return key


def _fit(fit: "Fit") -> None:
    """Sum up, merge and commit the factors."""
    store, key = fit.store, fit.key
    version = read_version(store, fit.version)
    first, second = _samples(fit.settings, version.documents, fit.seed, fit.held_out)
    ((n_groups, size_bytes),) = map_tasks(
        covariance_sizes, [(fit,)], "load model", "models", on_gpu=True, smaller=SMALLER_MODEL
    )
    parts = [chunk_key(key, "basis", group) for group in range(n_groups)]
    if not all(store.exists(part) for part in parts):
        chunks = _chunks(fit, first, size_bytes)
        sums = map_tasks(covariance_chunk, chunks, "fit covariances", "chunks", on_gpu=True, smaller=SMALLER_FIT)
        groups = [(fit, [chunk[group] for chunk in sums], group) for group in range(n_groups)]
        map_tasks(decompose_group, groups, "decompose", "groups of blocks", on_gpu=True, smaller=SMALLER_FACTORS)
        delete_parts(store, [part for chunk in sums for part in chunk])
    chunks = _chunks(fit, second, size_bytes)
    more = map_tasks(eigenvalue_chunk, chunks, "fit eigenvalues", "chunks", on_gpu=True, smaller=SMALLER_FIT)
    joined, labels = (fit, n_groups, more), ("join factors", "fits")
    ((sha256, blocks),) = map_tasks(finish_factors, [joined], *labels, on_gpu=True, smaller=SMALLER_FACTORS)
    cut = describe_cut(blocks, fit.settings.max_factor_width)
    if cut:
        widest = max(cut, key=lambda name: cut[name].width)
        notice(
            f"{len(cut)} covariances kept as diagonal parts (factors.max_factor_width), the widest {widest}: "
            f"{cut[widest].whole_bytes:,} bytes whole, {cut[widest].size_bytes:,} in {cut[widest].parts} parts"
        )
    manifest = FactorsManifest(
        checkpoint=fit.checkpoint,
        pool_tables=version.tables,
        settings=_identity(fit.settings),
        sample_documents=len(first),
        eigenvalue_documents=len(second),
        sha256=sha256,
        blocks=tuple(block.name for block in blocks),
        diagonal_parts=cut,
    )
    check_lease(store, key)
    write_manifest(store, manifest_key(key), manifest)
    delete_parts(store, [*parts, *more])


def read_factors(store: Store, key: str) -> FactorsManifest:
    """Read the manifest of factors."""
    return read_manifest(FactorsManifest, store, manifest_key(key))


def _samples(
    settings: FactorsConfig, documents: int, seed: int, held_out: tuple[int, ...] = ()
) -> tuple[Positions, Positions]:
    """Draw the positions of both passes, sorted; the second's are the first's unless their number is configured."""
    n, shut_C = settings.eigenvalue_documents, np.unique(np.array(held_out, dtype=np.int64))
    first = _draw(settings.sample_documents, documents, shut_C, make_generator(seed, Stream.FACTOR_SAMPLE))
    return first, first if n is None else _draw(n, documents, shut_C, make_generator(seed, Stream.EIGENVALUE_SAMPLE))


def _draw(n: int, documents: int, shut_C: Positions, generator: np.random.Generator) -> Positions:
    n_open = documents - len(shut_C)
    return nth_open(shut_C, np.sort(generator.choice(n_open, min(n, n_open), replace=False)))


def _chunks(fit: "Fit", sample: Positions, size_bytes: int) -> list[tuple[Any, ...]]:
    """Cut a sample into chunks; one's covariances have `size_bytes`."""
    length = chunk_documents(len(sample), size_bytes)
    starts = range(0, len(sample), length)
    return [(fit, sample[start : start + length], index) for index, start in enumerate(starts)]


@dataclass(frozen=True)
class Fit:
    """What every chunk of one fit has in common.

    Attributes:
        store: the workspace.
        version: key of the pool version's manifest.
        checkpoint: key of the checkpoint.
        key: where the factors go.
        settings: which blocks, whose labels, how the sums are kept.
        use: how the model reads documents.
        seed: of the run.
        held_out: positions that are not drawn.
        memory_limit: bytes that the sums may take; None: what the machine has.
    """

    store: Store
    version: str
    checkpoint: str
    key: str
    settings: FactorsConfig
    use: ModelUse
    seed: int
    held_out: tuple[int, ...] = ()
    memory_limit: int | None = None


def covariance_sizes(fit: Fit) -> tuple[int, int]:
    """Count the groups of blocks whose covariances are kept together, and the bytes of all covariances.

    Raises:
        ConfigError: they do not fit the memory.
    """
    blocks, width = _blocks(fit), fit.settings.max_factor_width
    check_memory(blocks, width, min(machine_memory_bytes(), fit.memory_limit or sys.maxsize))
    return len(group_blocks(blocks, width)), covariance_bytes(blocks, width)


def covariance_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> list[str]:
    """Sum one chunk's activation and gradient covariances; return where they are, by group of blocks."""
    store, chosen, blocks = fit.store, fit.settings, _blocks(fit)
    groups = group_blocks(blocks, chosen.max_factor_width)
    parts = [chunk_key(fit.key, "covariance", index * len(groups) + group) for group in range(len(groups))]
    if not all(store.exists(part) for part in parts):
        model, batches = _chunk_batches(fit, positions)
        rounded = chosen.rounds_products(fit.use.dtype)
        sums = covariance.accumulate_covariances(
            model, batches, blocks, chosen.fisher, max_width=chosen.max_factor_width, rounded=rounded
        )
        for part, group in zip(parts, groups, strict=True):
            save_named(store, part, covariance.covariances_to_tensors(covariance.select_blocks(sums, group)))
    return parts


def decompose_group(fit: Fit, parts: list[str], group: int) -> str:
    """Merge the chunks' covariances of a group of blocks, in the chunks' order, and keep their eigenbasis."""
    store, key = fit.store, chunk_key(fit.key, "basis", group)
    if not store.exists(key):
        sums = covariance.covariances_from_tensors(merge_parts(store, parts))
        basis = ekfac.decompose(sums, pick_device(fit.use.device))
        save_named(store, key, ekfac.basis_to_tensors(basis))
    return key


def eigenvalue_chunk(fit: Fit, positions: np.ndarray[Any, Any], index: int) -> str:
    """Sum one chunk's squared rotated gradients; return where they are."""
    store, part = fit.store, chunk_key(fit.key, "eigenvalue", index)
    if not store.exists(part):
        model, batches = _chunk_batches(fit, positions)
        n_groups = len(group_blocks(_blocks(fit), fit.settings.max_factor_width))
        rounded = fit.settings.rounds_products(fit.use.dtype)
        basis = ekfac.join_bases(
            ekfac.place_basis(group, model, rounded) for group in _basis_parts(store, fit.key, n_groups)
        )
        sums = ekfac.accumulate_eigenvalues(model, batches, basis, fit.settings.fisher, rounded=rounded)
        save_named(store, part, ekfac.eigenvalue_sums_to_tensors(sums))
    return part


def finish_factors(fit: Fit, n_groups: int, parts: list[str]) -> tuple[str, tuple[Block, ...]]:
    """Join the eigenbasis and the chunks' eigenvalues, on a worker; return the digest of their file, and the blocks."""
    eigenvalues = ekfac.eigenvalue_sums_from_tensors(merge_parts(fit.store, parts))
    basis = ekfac.join_bases(_basis_parts(fit.store, fit.key, n_groups))
    joined = ekfac.factors_to_tensors(ekfac.finish(basis, eigenvalues))
    return save_named(fit.store, factors_key(fit.key), joined), basis.blocks


def _chunk_batches(fit: Fit, positions: np.ndarray[Any, Any]) -> tuple[Any, list[Batch]]:
    """Read a chunk's documents and batch their first windows; sampled labels are seeded by position."""
    use = fit.use
    model, tokenizer = load_checkpoint(fit.store, fit.checkpoint, use.dtype, use.device)
    rows = read_positions(fit.store, fit.version, positions, ["text"])
    first = [split_windows(ids, use.window_tokens)[0] for ids in encode(tokenizer, rows["text"].to_pylist())]
    seeds = [label_seed(fit.seed, int(position)) for position in positions]
    batches, _ = make_batches(first, use.window_tokens, use.batch_tokens, seeds)
    return model, batches


def _blocks(fit: Fit) -> list[Block]:
    model, _ = load_checkpoint(fit.store, fit.checkpoint, fit.use.dtype, fit.use.device)
    return find_blocks(model, fit.settings.attention)


def _basis_parts(store: Store, key: str, n_groups: int) -> Iterator[ekfac.Eigenbasis]:
    """Load the eigenbasis between the two passes, a group of blocks at a time."""
    return (ekfac.basis_from_tensors(load_named(store, chunk_key(key, "basis", group))) for group in range(n_groups))


def _identity(settings: FactorsConfig) -> dict[str, Any]:
    """Return what of the settings the factors depend on: the damping comes in with the direction."""
    return settings.model_dump(exclude={"damping_scale"})
