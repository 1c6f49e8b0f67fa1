"""Stage: what a refresh keeps of the pool's last version, and when it starts over.

Versions of one recipe (model, embedder, clustering, seed) make a history. A refresh keeps the last one's fresh model,
embedder and centroids, so that only new shards are read, embedded and assigned; it clusters anew once too many
documents lie where the centroids were not made for. The same history of inputs gives the same versions, byte for byte.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from quad_tasks.config.model import ModelConfig
from quad_tasks.config.schema import ClusteringConfig, EmbeddingConfig, FieldNames
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.runtime.run import wait_for_lease
from quad_tasks.stages.pool.prepare_model import FRESH, fresh_identity
from quad_tasks.storage.keys import pool_folder
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.store import Store, check_conditional_create


def hold_pool_lease(store: Store, pool: str) -> AbstractContextManager[None]:
    """Hold the pool: of several refreshes at once, by a schedule and by runs, each waits for the one before it.

    Raises:
        UnsupportedStore: the workspace cannot create conditionally, so no commit would be safe.
    """
    check_conditional_create(store)
    return wait_for_lease(store, pool_folder(pool))


def recipe_of(
    model: ModelConfig,
    fields: FieldNames,
    embedding: EmbeddingConfig,
    clustering: ClusteringConfig,
    seed: int,
    model_key: str,
    held_out: tuple[str, ...] = (),
) -> str:
    """Return the digest of what versions of one history share.

    A fresh model counts by its settings, by how and on which field it is trained, and by the held-out text that it is
    not trained on.
    """
    fresh = model.source == FRESH
    identity: Any = fresh_identity(model, fields, held_out) if fresh else model_key
    return digest([identity, embedding.model_dump(), clustering.identity(), seed])


def last_version(store: Store, pool: str, recipe: str) -> tuple[str, PoolVersion] | None:
    """Return the manifest's key and the manifest of the last version of the recipe."""
    versions = list_versions(store, pool)
    return next(((key, version) for key, version in reversed(versions) if version.recipe == recipe), None)


def known_first(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Order shards: those that the last version has, in its order, then the new ones, in that of the inputs.

    Of two documents with one text, that of the earlier shard stays: what the pool holds, no new file takes its place.
    """
    present, held = set(names), set(known)
    return [*(name for name in known if name in present), *(name for name in names if name not in held)]
