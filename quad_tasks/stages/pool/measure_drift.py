"""Stage: how far the pool's documents lie from where its centroids were trained; past a threshold it clusters anew.

Workers count and compare shard by shard, and find the radii of a range of arms at a time; the driving process holds
arms. The result equals that of all assignments joined in one process, to the bit.

Shape suffixes: N documents, K arms, A arms present.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quad_tasks.core.clustering import kmeans
from quad_tasks.manifests.pool import Drift
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.stages.pool.find_duplicates import find_duplicates
from quad_tasks.storage.keys import arm_spread_key, assignments_key
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

RADIUS_QUANTILE = 0.9
"""Share of an arm's documents within its radius when its centroid was trained."""
RANGE_DOCUMENTS = 2**22
"""Documents of the arms whose radii one task finds; a range with a larger arm has more."""
RADIUS, DOCUMENTS = "radius", "documents"


@dataclass(frozen=True)
class Shards:
    """The pool's shards by name, and the rows of each that repeat an earlier document."""

    names: tuple[str, ...]
    repeated: tuple[Int64, ...]


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
    shards = Shards(tuple(names), tuple(np.union1d(*rows) for rows in find_duplicates(store, pool, names)))
    each = [(store, clustering, name, rows) for name, rows in zip(shards.names, shards.repeated, strict=True)]
    now_K, new = np.zeros(read_clustering(store, clustering).arms, dtype=np.int64), 0
    for name, (arm_A, documents_A) in zip(names, map_tasks(count_arms, each, "measure drift", "shards"), strict=True):
        now_K[arm_A] += documents_A
        new += 0 if name in trained_on else int(documents_A.sum())
    then_K = _documents_at_training(store, clustering, shards, now_K)
    new_shards = [one for one in each if one[2] not in trained_on]
    beyond = sum(map_tasks(count_beyond, new_shards, "measure drift", "shards"))
    shift = float(np.abs(now_K / now_K.sum() - then_K / then_K.sum()).sum() / 2)
    return Drift(
        new_documents=new,
        beyond_radius=beyond / new if new else 0.0,
        occupancy_shift=shift,
        drift=max(shift, beyond / int(now_K.sum())),
    )


def count_arms(store: Store, clustering: str, name: str, repeated: Int64) -> tuple[npt.NDArray[np.int32], Int64]:
    """Count a shard's documents by arm, its `repeated` rows left out, on a worker; the [A] arms, and [A] of each."""
    arm_N = read_table(store, assignments_key(clustering, name), ["arm"])["arm"].to_numpy()
    arm_A, documents_A = np.unique(np.delete(arm_N, repeated), return_counts=True)
    return arm_A, documents_A


def count_beyond(store: Store, clustering: str, name: str, repeated: Int64) -> int:
    """Count a shard's documents beyond their arm's radius, its `repeated` rows left out, on a worker."""
    arrays, _ = load_tensors(store, arm_spread_key(clustering))
    table = read_table(store, assignments_key(clustering, name), ["arm", "squared_distance"])
    arm_N, distance_N = (np.delete(table[column].to_numpy(), repeated) for column in table.column_names)
    return int(np.count_nonzero(np.sqrt(distance_N) > arrays[RADIUS][arm_N]))


def _documents_at_training(store: Store, clustering: str, shards: Shards, now_K: Int64) -> Int64:
    """Return each arm's documents when the centroids were trained; now, with its radius, if it was never noted."""
    key = arm_spread_key(clustering)
    if not store.exists(key):
        ranges = [(store, clustering, *bounds) for bounds in itertools.pairwise(_cut_arms(now_K))]
        radii = map_tasks(find_radii, ranges, "measure arms", "ranges of arms", shared=[shards])
        save_tensors(store, key, {RADIUS: np.concatenate(radii), DOCUMENTS: now_K}, {})
    arrays, _ = load_tensors(store, key)
    return arrays[DOCUMENTS]


def _cut_arms(documents_K: Int64) -> list[int]:
    """Cut arms into ranges of about `RANGE_DOCUMENTS`: [0, ..., K], the arm that each range ends before."""
    range_K = (np.cumsum(documents_K) - documents_K) // RANGE_DOCUMENTS
    return [0, *(np.flatnonzero(np.diff(range_K)) + 1).tolist(), len(documents_K)]


def find_radii(shards: Shards, store: Store, clustering: str, first: int, end: int) -> Float32:
    """Find the radii of the arms [first, end) on a worker, as `kmeans.arm_radii` does, from all shards."""
    arms, distances = [], []
    for name, repeated in zip(shards.names, shards.repeated, strict=True):
        table = read_table(store, assignments_key(clustering, name), ["arm", "squared_distance"])
        arm_N, distance_N = (np.delete(table[column].to_numpy(), repeated) for column in table.column_names)
        own = (arm_N >= first) & (arm_N < end)
        arms.append(arm_N[own] - first)
        distances.append(distance_N[own])
    radius_K: Float32 = kmeans.arm_radii(np.concatenate(distances), np.concatenate(arms), end - first, RADIUS_QUANTILE)
    return radius_K
