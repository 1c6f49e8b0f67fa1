"""Stage: what a refresh keeps of the pool's last version, and when it starts over.

Versions of one recipe (model, embedder, clustering, seed) make a history. A refresh keeps the last one's fresh model,
embedder and centroids, so that only new shards are read, embedded and assigned; it clusters anew once too many
documents lie where the centroids were not made for. The same history of inputs gives the same versions, byte for byte.

Shapes: N documents, K arms.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.cluster import assignments_key, list_versions
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.core import kmeans
from quad_tasks.ingest import find_duplicates
from quad_tasks.model import FRESH
from quad_tasks.run import in_turn
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store, check_conditional_create, open_store

RADIUS_QUANTILE = 0.9
"""Share of an arm's documents within its radius when its centroid was trained."""


def refreshing(config: RunConfig) -> AbstractContextManager[None]:
    """Hold the pool: of several refreshes at once, by a schedule and by runs, each waits for the one before it.

    Raises:
        UnsupportedStore: the workspace cannot create conditionally, so no commit would be safe.
    """
    store = open_store(config.workspace)
    check_conditional_create(store)
    return in_turn(store, f"pools/{config.pool.name}")


def recipe(config: RunConfig, model_key: str) -> str:
    """Return the digest of what versions of one history share; a fresh model counts by its settings."""
    fresh = config.model.source == FRESH
    model: Any = [config.model.fresh.model_dump(), config.model.window_tokens] if fresh else model_key
    clustering = config.clustering.model_dump(exclude={"recluster_drift"})
    return digest([model, config.embedding.model_dump(), clustering, config.seed])


def last_version(config: RunConfig, model_key: str) -> tuple[str, dict[str, Any]] | None:
    """Return the manifest's key and the manifest of the last version of the recipe."""
    ours = recipe(config, model_key)
    versions = list_versions(open_store(config.workspace), config.pool.name)
    return next(((key, body) for key, body in reversed(versions) if body.get("recipe") == ours), None)


def kept_model(config: RunConfig) -> str | None:
    """Return the fresh model the pool is tokenized for; None where there is none yet, or the model has a source."""
    if config.model.source != FRESH:
        return None
    last = last_version(config, FRESH)
    return None if last is None else str(last[1]["model"])


@step("measure drift")
def measure_drift(config: RunConfig, names: list[str], clustering: str) -> dict[str, Any]:
    """Compare where documents lie now with where they lay when the centroids were trained.

    Returns:
        `new_documents`: kept documents of shards the centroids were not trained on. `beyond_radius`: the share of them
        beyond the radius that held `RADIUS_QUANTILE` of their arm's documents; without drift about one less that.
        `occupancy_shift`: total variation distance between the arms' shares of documents then and now. `drift`: the
        larger of that and of the share of all documents that are new and beyond a radius.
    """
    store = open_store(config.workspace)
    trained_on = set(read_manifest(store, f"{clustering}/manifest.json")["shards"])
    arm_N, distance_N, shard_N = _kept_assignments(store, config, names, clustering)
    radius_K, then_K = _spread_at_training(store, clustering, arm_N, distance_N)
    new_N = ~np.isin(shard_N, [i for i, name in enumerate(names) if name in trained_on])
    beyond = int((new_N & (np.sqrt(distance_N) > radius_K[arm_N])).sum())
    now_K = np.bincount(arm_N, minlength=len(then_K))
    shift = float(np.abs(now_K / now_K.sum() - then_K / then_K.sum()).sum() / 2)
    new = int(new_N.sum())
    return {
        "new_documents": new,
        "beyond_radius": beyond / new if new else 0.0,
        "occupancy_shift": shift,
        "drift": max(shift, beyond / len(arm_N)),
    }


def _kept_assignments(
    store: Store, config: RunConfig, names: list[str], clustering: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read arm, squared distance to its centroid and number of the shard of every document that is no duplicate."""
    arms, distances, shards = [], [], []
    for number, (name, repeated) in enumerate(zip(names, find_duplicates(config, names), strict=True)):
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
    key = f"{clustering}/spread.safetensors"
    if not store.exists(key):
        k = read_manifest(store, f"{clustering}/manifest.json")["arms"]
        radius_K = kmeans.arm_radii(distance_N, arm_N, k, RADIUS_QUANTILE)
        save_tensors(store, key, {"radius": radius_K, "documents": np.bincount(arm_N, minlength=k)}, {})
    arrays, _ = load_tensors(store, key)
    return arrays["radius"], arrays["documents"]
