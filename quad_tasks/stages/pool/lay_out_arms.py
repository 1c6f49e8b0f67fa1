"""Stage: the pool is laid out arm by arm and becomes a version.

An arm's documents stand contiguously in an order drawn from (seed, document id), so that the next m documents of an arm
are one sequential read and a uniform sample of it. The tables are built under a name of their own and become a version
of the pool by one manifest, so that a half-built version is never seen and a running bandit keeps its own.

Where few documents are new since the last version, they alone are laid out (`sort_layout`), beside what stands
(`merge_layers`).
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from quad_tasks.manifests.pool import Drift, PoolVersion
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.stages.pool.find_duplicates import Duplicates, find_duplicates
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.stages.pool.merge_layers import join_layers, sums_are_whole, takes_layer
from quad_tasks.stages.pool.sort_layout import Build, write_layout
from quad_tasks.storage.errors import StoreFault
from quad_tasks.storage.keys import (
    arm_spread_key,
    assignments_key,
    embeddings_key,
    pool_folder,
    shard_token_features_key,
    shuffle_folder,
    tables_folder,
)
from quad_tasks.storage.lease import check_lease
from quad_tasks.storage.manifest import digest, file_sha256
from quad_tasks.storage.pool_versions import commit_version, find_version, list_versions
from quad_tasks.storage.store import Store


@stage_task("lay out arms")
def lay_out_arms(
    store: Store,
    pool: str,
    seed: int,
    names: Sequence[str],
    clustering: str,
    token_features: str,
    model_key: str,
    recipe: str,
    drift: Drift,
    base: PoolVersion | None = None,
) -> str:
    """Write the pool in arm order and commit it as a version; return the version manifest's key.

    A version of the same shards, clustering and checkpoint is found again rather than built twice. Where few documents
    are new beside those of `base`, they alone are written.

    Args:
        store: the workspace.
        pool: the pool's name.
        seed: of the run.
        names: the shards.
        clustering: key of the clustering that the shards are assigned by.
        token_features: key of the shards' token features.
        model_key: key of the checkpoint whose tokenizer counted the tokens.
        recipe: what versions of one history share.
        drift: how far documents lie from where the centroids were trained.
        base: the last version of the same clustering, features and checkpoint, its shards the first of `names`.
    """
    duplicates = find_duplicates(store, pool, names)
    kept = _count_kept(store, pool, names, duplicates) if base else []
    base = base if base and takes_layer(base, names, kept) and sums_are_whole(store, base) else None
    beside = [[layer.tables for layer in base.layers]] if base else []
    tables_key = _find_folder(store, pool, [names, clustering, token_features, model_key, *beside])
    if (existing := find_version(store, pool, tables_key)) is not None:
        return existing
    build = Build(pool, read_clustering(store, clustering).embedder, clustering, token_features, tables_key)
    first_new = len(base.shards) if base else 0
    written = write_layout(store, build, names[first_new:], duplicates[first_new:])
    version = PoolVersion(
        pool=pool,
        tables=tables_key,
        model=model_key,
        embedder=build.embedder,
        clustering=clustering,
        token_features=token_features,
        seed=seed,
        shards=tuple(names),
        set_aside=_count_set_aside(store, pool, names, duplicates),
        fields_dropped=_count_dropped(store, pool, names),
        recipe=recipe,
        drift=drift,
        **join_layers(store, tables_key, clustering, base, written, _digests_beside(store, build, names, base)),
    )
    _check_counts(store, version)
    check_lease(store, pool_folder(pool))
    key = commit_version(store, version)
    for shuffled in store.list(shuffle_folder(tables_key)):
        store.delete(shuffled)
    return key


def _find_folder(store: Store, pool: str, made_from: list[Any]) -> str:
    """Name the folder of a layout's tables: that of the version of it, else one that no version's layers stand in.

    A version may be pruned while a later one keeps its tables as a layer, which nothing may write again.
    """
    versions = [version for _, version in list_versions(store, pool)]
    laid_out = {version.tables for version in versions}
    layers = {layer.tables for version in versions for layer in version.layers}
    digests = (digest([*made_from, number] if number else made_from) for number in itertools.count())
    folders = (tables_folder(pool, one) for one in digests)
    return next(folder for folder in folders if folder in laid_out or folder not in layers)


def _digests_beside(store: Store, build: Build, names: Sequence[str], base: PoolVersion | None) -> dict[str, str]:
    """Digest what a version was made from and no other manifest names; take the digests that `base` has."""
    known = base.files if base else {}
    keys = [embeddings_key(build.pool, build.embedder, name) for name in names]
    keys += [assignments_key(build.clustering, name) for name in names]
    keys += [shard_token_features_key(build.token_features, name) for name in names]
    if store.exists(arm_spread_key(build.clustering)):
        keys.append(arm_spread_key(build.clustering))
    new = [key for key in keys if key not in known]
    digests = dict(zip(new, map_tasks(file_sha256, [(store, key) for key in new], "digest", "files"), strict=True))
    return {key: known.get(key) or digests[key] for key in keys}


def _check_counts(store: Store, version: PoolVersion) -> None:
    """Refuse a layout that lost or gained documents.

    Raises:
        StoreFault: what came in is not what was laid out and set aside.
    """
    came_in = sum(read_shard(store, version.pool, name).documents_in for name in version.shards)
    found = version.documents + sum(version.set_aside.values())
    if came_in != found:
        raise StoreFault(
            f"{version.tables!r} in {store.uri}: expected the {came_in} documents of the pool's shards, laid out or "
            f"set aside, got {found}"
        )


def _count_dropped(store: Store, pool: str, names: Sequence[str]) -> dict[str, int]:
    return dict(sum((Counter(read_shard(store, pool, name).fields_dropped) for name in names), Counter[str]()))


def _count_kept(store: Store, pool: str, names: Sequence[str], duplicates: Sequence[Duplicates]) -> list[int]:
    """Count what each shard adds to the pool."""
    counts = [read_shard(store, pool, name).documents for name in names]
    return [n - len(text) - len(i) for n, (text, i) in zip(counts, duplicates, strict=True)]


def _count_set_aside(store: Store, pool: str, names: Sequence[str], duplicates: list[Duplicates]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, (same_text, same_id) in zip(names, duplicates, strict=True):
        counts.update(read_shard(store, pool, name).set_aside)
        counts.update({"duplicate_text": len(same_text), "duplicate_id": len(same_id)})
    return {reason: n for reason, n in sorted(counts.items()) if n}
