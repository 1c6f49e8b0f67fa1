"""Walk from a run to every manifest it rests on, and to every file these name, each with its digest.

Owns which manifest names what. A run's own manifests are found by their place; those of its pool, models, references
and factors by the manifests that name them. Reads nothing but manifests.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from quad_tasks.manifests.base import Manifest
from quad_tasks.manifests.influence import Checkpoint, DirectionManifest, FactorsManifest, ReferenceManifest
from quad_tasks.manifests.pool import (
    ClusteringManifest,
    EmbedderManifest,
    PoolVersion,
    ShardManifest,
    StatesManifest,
    TokenFeaturesManifest,
)
from quad_tasks.manifests.run import (
    Choice,
    GateTrial,
    Losses,
    OverlapManifest,
    PinnedBatch,
    PinnedPool,
    PinnedReference,
    ReportManifest,
    RunRecord,
    SelectionManifest,
)
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.keys import (
    centroids_key,
    choice_table_key,
    direction_key,
    documents_key,
    embedder_arrays_key,
    factors_key,
    manifest_key,
    mixture_key,
    optimizer_key,
    overlap_table_key,
    pinned_pool_key,
    reference_table_key,
    report_folder,
    run_folder,
    selection_folder,
    selection_part_key,
    set_aside_key,
    shard_manifest_key,
    token_embeddings_key,
)
from quad_tasks.storage.manifest import read_digest, read_manifest
from quad_tasks.storage.rounds import RoundManifest
from quad_tasks.storage.store import Store

THREADS = 8
Links = dict[str, type[Manifest]]
Files = dict[str, str | None]
OF_A_RUN: tuple[tuple[str, type[Manifest]], ...] = (
    (r"config\.json", RunRecord),
    (r"batch\.json", PinnedBatch),
    (r"pool\.json", PinnedPool),
    (r"reference\.json", PinnedReference),
    (r"overlap\.json", OverlapManifest),
    (r"stage-\d+/round-\d+/manifest\.json", RoundManifest),
    (r"stage-\d+/gate\.json", GateTrial),
    (r"stage-\d+/trained/[^/]+/manifest\.json", Checkpoint),
    (r"stage-\d+/trained/[^/]+/losses\.json", Losses),
    (r"stage-\d+/[^/]+\.json", Choice),
    (r"selection/manifest\.json", SelectionManifest),
    (r"report/manifest\.json", ReportManifest),
)
"""What stands where in a run's folder; the first that fits counts."""


@dataclass
class Tree:
    """What a run rests on.

    Attributes:
        manifests: digest of every manifest that was reached, by key.
        files: digest of every file that these name, by key; None where an earlier version recorded none.
        problems: a message for every manifest that is gone or not what its digest says, by key.
    """

    manifests: dict[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def foundation(self, run: str) -> dict[str, str]:
        """Return the digests of the manifests that a run's publication rests on: all but those made after it."""
        later = (f"{selection_folder(run)}/", f"{report_folder(run)}/")
        return {key: digest for key, digest in sorted(self.manifests.items()) if not key.startswith(later)}


def walk_run(store: Store, run: str) -> Tree:
    """Walk every manifest that a run rests on, its own first."""
    tree = Tree()
    wave = run_manifests(store, run)
    while wave:
        with ThreadPoolExecutor(THREADS) as readers:
            read = list(readers.map(lambda item: _read(store, *item), wave.items()))
        found: Links = {}
        for key, digest, manifest, problem in read:
            if manifest is None:
                tree.problems[key] = problem
                continue
            tree.manifests[key] = digest
            links, files = named_by(key, manifest)
            tree.files |= files
            found |= links
        wave = {key: model for key, model in found.items() if key not in tree.manifests and key not in tree.problems}
    return tree


def run_manifests(store: Store, run: str) -> Links:
    """Find a run's own manifests by their place, and those of the hidden states beside its pool version."""
    folder = run_folder(run)
    found: Links = {}
    for key in store.list(folder):
        place = key[len(folder) + 1 :]
        model = next((model for pattern, model in OF_A_RUN if re.fullmatch(pattern, place)), None)
        if model is not None:
            found[key] = model
    return found | dict.fromkeys(_states(store, run), StatesManifest)


def _states(store: Store, run: str) -> Iterator[str]:
    try:
        version = read_manifest(PinnedPool, store, pinned_pool_key(run)).version
    except StorageError:
        return
    for key in store.list(version.rpartition("/")[0]):
        if re.search(r"/states-[^/]+/manifest\.json$", key):
            yield key


def _read(store: Store, key: str, model: type[Manifest]) -> tuple[str, str, Manifest | None, str]:
    try:
        return key, read_digest(store, key), read_manifest(model, store, key), ""
    except StorageError as error:
        return key, "", None, str(error)


def named_by(key: str, manifest: Manifest) -> tuple[Links, Files]:
    """Return what a manifest under `key` names: other manifests, and files with their digests."""
    links, files = _named_of_pool(key, manifest)
    more_links, more_files = _named_of_influence(key, manifest)
    last_links, last_files = _named_of_run(key, manifest)
    return links | more_links | last_links, files | more_files | last_files


def _named_of_pool(key: str, manifest: Manifest) -> tuple[Links, Files]:
    folder = key.rpartition("/")[0]
    match manifest:
        case ShardManifest():
            pool = key.split("/")[1]
            return {}, {
                documents_key(pool, manifest.shard): manifest.documents_sha256,
                set_aside_key(pool, manifest.shard): manifest.set_aside_sha256,
            }
        case EmbedderManifest():
            arrays: Files = {embedder_arrays_key(folder): manifest.sha256} if manifest.sha256 else {}
            return {manifest_key(manifest.model): Checkpoint}, arrays
        case ClusteringManifest():
            return {manifest_key(manifest.embedder): EmbedderManifest}, {centroids_key(folder): manifest.sha256}
        case PoolVersion():
            links: Links = {
                manifest_key(manifest.model): Checkpoint,
                manifest_key(manifest.clustering): ClusteringManifest,
            }
            if manifest.token_features is not None:
                links[manifest_key(manifest.token_features)] = TokenFeaturesManifest
            links |= {shard_manifest_key(manifest.pool, name): ShardManifest for name in manifest.shards}
            laid_out: Files = {one.key: one.sha256 for one in manifest.parts}
            return links, {**laid_out, **{one.key: one.sha256 for one in manifest.merged}, **manifest.files}
        case TokenFeaturesManifest():
            return {manifest_key(manifest.model): Checkpoint}, {token_embeddings_key(folder): manifest.sha256}
        case StatesManifest():
            return {manifest_key(manifest.checkpoint): Checkpoint}, dict(manifest.files)
    return {}, {}


def _named_of_influence(key: str, manifest: Manifest) -> tuple[Links, Files]:
    folder = key.rpartition("/")[0]
    match manifest:
        case Checkpoint():
            files: Files = {f"{folder}/{name}": sha256 for name, sha256 in (manifest.files or {}).items()}
            if manifest.optimizer_sha256:
                files[optimizer_key(folder)] = manifest.optimizer_sha256
            return {}, files
        case ReferenceManifest():
            tables = {"reference": manifest.reference, "measured": manifest.measured, "heldout": manifest.heldout}
            return {}, {reference_table_key(folder, name): table.sha256 for name, table in tables.items()}
        case FactorsManifest():
            return {manifest_key(manifest.checkpoint): Checkpoint}, {factors_key(folder): manifest.sha256}
        case DirectionManifest():
            links: Links = {manifest_key(manifest.reference): ReferenceManifest}
            links |= {manifest_key(copy): Checkpoint for copy in manifest.adapted.values()}
            if manifest.factors is None or manifest.sha256 is None:
                return {**links, manifest_key(manifest.checkpoint): Checkpoint}, {}
            return {**links, manifest_key(manifest.factors): FactorsManifest}, {direction_key(folder): manifest.sha256}
    return {}, {}


def _named_of_run(key: str, manifest: Manifest) -> tuple[Links, Files]:
    folder = key.rpartition("/")[0]
    match manifest:
        case PinnedPool():
            return {manifest.version: PoolVersion}, {}
        case PinnedReference():
            return {manifest_key(manifest.reference): ReferenceManifest}, {}
        case OverlapManifest():
            return {}, {overlap_table_key(key.split("/")[1]): manifest.sha256}
        case RoundManifest():
            files: Files = {entry.key: entry.sha256 for entry in manifest.tables.values()}
            return _direction(manifest.info.direction), files
        case Choice():
            return _direction(manifest.direction), {choice_table_key(key.removesuffix(".json")): manifest.sha256}
        case GateTrial():
            return _direction(manifest.used), {}
        case SelectionManifest():
            parts: Files = {selection_part_key(folder, part.name): part.sha256 for part in manifest.parts}
            return {manifest.pool: PoolVersion}, {**parts, mixture_key(folder): manifest.mixture_sha256}
        case ReportManifest():
            return {}, dict(manifest.files)
    return {}, {}


def _direction(key: Any) -> Links:
    return {manifest_key(key): DirectionManifest} if key else {}
