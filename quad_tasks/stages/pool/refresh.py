"""Stage: what a refresh keeps of the pool's last version, and when it starts over.

Versions of one recipe (model, embedder, clustering, seed) make a history. A refresh keeps the last one's fresh model,
embedder and centroids, so that only new shards are read, embedded and assigned; it clusters anew once too many
documents lie where the centroids were not made for. The same history of inputs gives the same versions, byte for byte.

Shapes: N documents, K arms.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import ClusteringConfig, EmbeddingConfig, ModelConfig
from quad_tasks.core.clustering import kmeans
from quad_tasks.manifests.pool import Drift, PoolVersion
from quad_tasks.runtime.run import wait_for_lease
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.stages.pool.ingest import find_duplicates
from quad_tasks.stages.pool.prepare_model import FRESH, fresh_identity
from quad_tasks.storage.keys import arm_spread_key, assignments_key, pool_folder
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store, check_conditional_create
from quad_tasks.storage.tensors import load_tensors, save_tensors

RADIUS_QUANTILE = 0.9
"""Share of an arm's documents within its radius when its centroid was trained."""


def hold_pool_lease(store: Store, pool: str) -> AbstractContextManager[None]:
    """Hold the pool: of several refreshes at once, by a schedule and by runs, each waits for the one before it.

    Raises:
        UnsupportedStore: the workspace cannot create conditionally, so no commit would be safe.
    """
    check_conditional_create(store)
    return wait_for_lease(store, pool_folder(pool))


def recipe_of(
    model: ModelConfig,
    embedding: EmbeddingConfig,
    clustering: ClusteringConfig,
    seed: int,
    model_key: str,
    held_out: tuple[str, ...] = (),
) -> str:
    """Return the digest of what versions of one history share.

    A fresh model counts by its settings, by how it is trained, and by the held-out text it is not trained on.
    """
    fresh = model.source == FRESH
    identity: Any = fresh_identity(model, held_out) if fresh else model_key
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


@stage_task("measure drift")
def measure_drift(store: Store, pool: str, names: Sequence[str], clustering: str) -> Drift:
    """Compare where documents lie now with where they lay when the centroids were trained.

    Returns:
        `new_documents`: kept documents of shards the centroids were not trained on. `beyond_radius`: the share of them
        beyond the radius that held `RADIUS_QUANTILE` of their arm's documents; without drift about one less that.
        `occupancy_shift`: total variation distance between the arms' shares of documents then and now. `drift`: the
        larger of that and of the share of all documents that are new and beyond a radius.
    """
    trained_on = set(read_clustering(store, clustering).shards)
    arm_N, distance_N, shard_N = _kept_assignments(store, pool, names, clustering)
    radius_K, then_K = _spread_at_training(store, clustering, arm_N, distance_N)
    new_N = ~np.isin(shard_N, [i for i, name in enumerate(names) if name in trained_on])
    beyond = int((new_N & (np.sqrt(distance_N) > radius_K[arm_N])).sum())
    now_K = np.bincount(arm_N, minlength=len(then_K))
    shift = float(np.abs(now_K / now_K.sum() - then_K / then_K.sum()).sum() / 2)
    new = int(new_N.sum())
    return Drift(
        new_documents=new,
        beyond_radius=beyond / new if new else 0.0,
        occupancy_shift=shift,
        drift=max(shift, beyond / len(arm_N)),
    )


def _kept_assignments(
    store: Store, pool: str, names: Sequence[str], clustering: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read arm, squared distance to its centroid and number of the shard of every document that is no duplicate."""
    arms, distances, shards = [], [], []
    for number, (name, repeated) in enumerate(zip(names, find_duplicates(store, pool, names), strict=True)):
        table = read_table(store, assignments_key(clustering, name), ["arm", "squared_distance"])
        rows = np.setdiff1d(np.arange(table.num_rows), np.concatenate(repeated))
        arms.append(table["arm"].to_numpy()[rows])
        distances.append(table["squared_distance"].to_numpy()[rows])
        shards.append(np.full(len(rows), number))
    return np.concatenate(arms), np.concatenate(distances), np.concatenate(shards)


def _spread_at_training(
    store: Store, clustering: str, arm_N: npt.NDArray[np.int32], distance_N: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return each arm's radius and number of documents when the centroids were trained: now, if it was never noted."""
    key = arm_spread_key(clustering)
    if not store.exists(key):
        k = read_clustering(store, clustering).arms
        radius_K = kmeans.arm_radii(distance_N, arm_N, k, RADIUS_QUANTILE)
        save_tensors(store, key, {"radius": radius_K, "documents": np.bincount(arm_N, minlength=k)}, {})
    arrays, _ = load_tensors(store, key)
    return arrays["radius"], arrays["documents"]
