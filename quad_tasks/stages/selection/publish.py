"""Stage: publish what the stages chose (`select_documents`), and prove that every document is accounted for.

A stage's choice and the published selection each become visible by a manifest written last. Every document that came
in is in exactly one of: set aside (reason), unpulled, rejected (reason), selected.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.pool import ShardManifest
from quad_tasks.manifests.run import DocumentCounts, MixtureEntry, SelectionManifest, SelectionPart
from quad_tasks.runtime.checkpoints import read_checkpoint_manifest
from quad_tasks.runtime.events import record_event
from quad_tasks.runtime.prefect_ui import show_asset
from quad_tasks.runtime.run import check_run_lease, starting_checkpoint
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.ledger import read_choice, read_chosen, read_scores
from quad_tasks.stages.influence.find_overlap import HELD_OUT_OVERLAP, overlap_positions
from quad_tasks.stages.influence.fit_direction import read_direction
from quad_tasks.stages.pool.count_amounts import count_amounts, sum_tokens
from quad_tasks.storage import tables
from quad_tasks.storage.errors import StoreFault
from quad_tasks.storage.keys import (
    choice_key,
    manifest_key,
    mixture_key,
    selection_folder,
    selection_part_key,
    shard_manifest_key,
)
from quad_tasks.storage.manifest import DigestMismatch, digest, read_digest, read_manifest, write_manifest
from quad_tasks.storage.manifest_tree import walk_run
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store

SELECTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),
        ("n_tokens", pa.int64()),
        ("arm", pa.int32()),
        ("stage", pa.int32()),
        ("round", pa.int32()),
        ("influence", pa.float64()),
        ("scored", pa.bool_()),
    ]
)
BLOCK_ROWS, BLOCK_TOKENS = 1024, 2**23
"""Documents, and their tokens, whose texts are joined at once: some 32 MiB of text, where no document is longer."""


@dataclass(frozen=True)
class Published:
    """What publishing needs of the configuration: the run's name, stages and budget, and its configuration's digest.

    Attributes:
        name: of the run.
        config_digest: of what determines its result.
        stages: of the run.
        budget_tokens: to select, all stages together.
        part_bytes: text bytes after which a new part starts.
    """

    name: str
    config_digest: str
    stages: int
    budget_tokens: int
    part_bytes: int


def published(config: RunConfig) -> Published:
    """Read what publishing needs from a run's configuration."""
    selection = config.selection
    identity = digest(config.identity())
    return Published(config.run, identity, config.training.stages, selection.budget_tokens, selection.part_bytes)


@stage_task("publish selection")
def publish_selection(store: Store, run: Published, version: str) -> str:
    """Write the selection's parts, its mixture and, last, its manifest; return the manifest's key."""
    folder = selection_folder(run.name)
    if store.exists(manifest_key(folder)):
        return manifest_key(folder)
    chosen = read_chosen(store, run.name, run.stages)
    parts = []
    for number, part in enumerate(_parts(chosen, store, version, run.part_bytes)):
        name = f"part-{number:05d}.parquet"
        key = selection_part_key(folder, name)
        rows, sha256 = tables.write_table_stream(store, key, SELECTION_SCHEMA, [part], BLOCK_ROWS)
        tokens = int(part["n_tokens"].to_numpy().sum())
        parts.append(SelectionPart(name=name, rows=rows, tokens=tokens, sha256=sha256))
    mixture = _mixture(store, version, chosen)
    counts = count_documents(store, run.name, run.stages, version)
    _check_balance(store, folder, counts)
    mixture_file = _json({source: entry.model_dump() for source, entry in mixture.items()})
    manifest = SelectionManifest(
        **counts.model_dump(),
        run=run.name,
        config=run.config_digest,
        pool=version,
        pool_digest=read_digest(store, version),
        tokenizer=read_checkpoint_manifest(store, starting_checkpoint(store, version)).tokenizer,
        budget_tokens=run.budget_tokens,
        n_tokens=sum(part.tokens for part in parts),
        rows=sum(part.rows for part in parts),
        parts=tuple(parts),
        mixture=mixture,
        mixture_sha256=hashlib.sha256(mixture_file).hexdigest(),
        manifests=_foundation(store, run.name),
        uuid="",
        created=datetime.now(UTC).isoformat(),
    )
    identity = digest(manifest.model_dump(mode="json", exclude={"uuid", "created"}))
    store.put(mixture_key(folder), mixture_file)
    check_run_lease(store, run.name)
    write_manifest(store, manifest_key(folder), manifest.model_copy(update={"uuid": str(UUID(identity[:32]))}))
    made = {"documents": manifest.rows, "tokens": manifest.n_tokens}
    record_event(store, run.name, "selection_published", **made)
    show_asset(store, "selection", folder, [version, *_factors(store, run)], **made)
    return manifest_key(folder)


def _factors(store: Store, run: Published) -> list[str]:
    """Return the keys of the factors that the stages' directions were made with, each once."""
    choices = (read_choice(store, choice_key(run.name, number, "selected")) for number in range(run.stages))
    made = (read_direction(store, chosen.direction).factors for chosen in choices if chosen.direction)
    return sorted({factors for factors in made if factors is not None})


def read_selection(store: Store, run: str) -> SelectionManifest:
    """Read the manifest of a run's published selection."""
    return read_manifest(SelectionManifest, store, manifest_key(selection_folder(run)))


def compare_published(store: Store, run: str, stages: int, part_bytes: int, version: str) -> list[str]:
    """Join what was chosen with its texts again; return the keys of published parts that hold other rows."""
    folder, published = selection_folder(run), read_selection(store, run).parts
    keys = [selection_part_key(folder, part.name) for part in published]
    different = []
    for key, part in itertools.zip_longest(keys, _parts(read_chosen(store, run, stages), store, version, part_bytes)):
        if key is None or part is None or not read_table(store, key).equals(part.combine_chunks()):
            different.append(key or folder)
    return different


def _foundation(store: Store, run: str) -> dict[str, str]:
    """Return the digests of all manifests that the publication rests on.

    Raises:
        DigestMismatch: one of them is gone or damaged.
    """
    tree = walk_run(store, run)
    if tree.problems:
        raise DigestMismatch("\n".join(problem for _, problem in sorted(tree.problems.items())))
    return tree.foundation(run)


def _check_balance(store: Store, folder: str, counts: DocumentCounts) -> None:
    """Refuse to publish unless every document that came in is in exactly one place.

    Raises:
        StoreFault: one is missing, or in two.
    """
    if not counts.balanced:
        raise StoreFault(
            f"{folder!r} in {store.uri}: expected {counts.documents_in} documents set aside, unpulled, rejected or "
            f"selected, found {counts.model_dump()}"
        )


def _parts(chosen: pa.Table, store: Store, version: str, part_bytes: int) -> Iterator[pa.Table]:
    """Join what was chosen with its texts, in arm order, cut where a part's texts pass `part_bytes`."""
    chosen = chosen.sort_by("position")
    pieces: list[pa.Table] = []
    size = 0
    for start, end in itertools.pairwise(cut_rows(chosen["n_tokens"].to_numpy(), BLOCK_ROWS, BLOCK_TOKENS)):
        block = chosen.slice(start, end - start)
        columns = ["text", "metadata", "n_bytes"]
        texts = read_positions(store, version, block["position"].to_numpy(), columns)
        joined = block.append_column("text", texts["text"]).append_column("metadata", texts["metadata"])
        pieces.append(joined.select(SELECTION_SCHEMA.names).cast(SELECTION_SCHEMA))
        size += int(texts["n_bytes"].to_numpy().sum())
        if size >= part_bytes:
            yield pa.concat_tables(pieces)
            pieces, size = [], 0
    if pieces:
        yield pa.concat_tables(pieces)


def _mixture(store: Store, version: str, chosen: pa.Table) -> dict[str, MixtureEntry]:
    """Count tokens taken and available for each source; no document is repeated."""
    available = sum_tokens(count_amounts(store, version), "source", "tokens")
    taken = sum_tokens(chosen, "source")
    total = sum(taken.values())
    return {
        source: MixtureEntry(
            weight=taken.get(source, 0) / total if total else 0.0,
            tokens=taken.get(source, 0),
            available_tokens=n,
            repetition=1,
        )
        for source, n in sorted(available.items())
    }


def count_documents(store: Store, run: str, stages: int, version: str) -> DocumentCounts:
    """Count every document that came in, by its shard's manifest, and where each is now.

    Of a document that several stages scored the last verdict counts.
    """
    pool = read_version(store, version)
    scores = read_scores(store, run, stages)
    chosen = read_chosen(store, run, stages)["position"].to_numpy()
    latest_first = scores["position"].to_numpy()[::-1]
    scored, rows = np.unique(latest_first, return_index=True)
    accepted = scores["accepted"].to_numpy(zero_copy_only=False)[::-1][rows]
    left = ~np.isin(scored, chosen)
    alike = np.isin(scored, _near_duplicates(store, run, stages)) & left
    reasons = {
        "below_threshold": left & ~alike & ~accepted,
        "over_budget": left & ~alike & accepted,
        "near_duplicate": alike,
    }
    shards = [read_manifest(ShardManifest, store, shard_manifest_key(pool.pool, name)) for name in pool.shards]
    overlap = len(overlap_positions(store, run))
    touched = np.union1d(scored, chosen)
    return DocumentCounts(
        documents_in=sum(shard.documents_in for shard in shards),
        set_aside={**pool.set_aside, **({HELD_OUT_OVERLAP: overlap} if overlap else {})},
        unpulled=pool.documents - len(touched) - overlap,
        rejected={reason: int(mask.sum()) for reason, mask in reasons.items() if mask.any()},
        selected=len(chosen),
    )


def _near_duplicates(store: Store, run: str, stages: int) -> list[int]:
    choices = [read_choice(store, choice_key(run, stage, "selected")) for stage in range(stages)]
    return [position for choice in choices for position in choice.near_duplicates]


def _json(body: Any) -> bytes:
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()
