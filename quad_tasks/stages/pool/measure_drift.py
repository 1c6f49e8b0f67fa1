"""Stage: how far the pool's documents lie from where its centroids were trained; past a threshold it clusters anew.

Workers count and compare shard by shard, and find the radii of a range of arms at a time, dealt out to them by bundles
of shards; the driving process holds arms. The result equals that of all assignments joined in one process, to the bit.

Shape suffixes: N documents, K arms, A arms present.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.core.clustering import kmeans
from quad_tasks.core.group_sums import group_sums
from quad_tasks.manifests.pool import Drift
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.stages.pool.find_duplicates import find_duplicates
from quad_tasks.stages.pool.shuffle import Dealt, Stored, iter_range, list_stored, write_ranges
from quad_tasks.storage.keys import (
    arm_spread_key,
    assignments_key,
    dealt_distances_folder,
    dealt_distances_key,
    pool_folder,
)
from quad_tasks.storage.lease import check_lease, delete_as_holder
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

RADIUS_QUANTILE = 0.9
"""Share of an arm's documents within its radius when its centroid was trained."""
RANGE_DOCUMENTS = 2**22
"""Documents of the arms whose radii one task finds, and of a bundle of shards; a larger arm or shard has more."""
RADIUS, DOCUMENTS = "radius", "documents"
TASKS = 256
"""That count the pool's documents, each one shard or more: what they tell of arms does not grow with the pool."""
DISTANCE = np.dtype([("arm", "<i4"), ("squared_distance", "<f4")])
"""A document as it is dealt out to its arm's range."""


class Bundle(NamedTuple):
    """Some of the pool's shards by name, and the rows of each that repeat an earlier document."""

    names: tuple[str, ...]
    repeated: tuple[Int64, ...]

    def cut(self, first: int, end: int) -> "Bundle":
        """Return the shards [first, end)."""
        return Bundle(self.names[first:end], self.repeated[first:end])


class Counted(NamedTuple):
    """What a bundle holds: the [A] arms present, the documents of each [A], and those of each shard."""

    arm_A: npt.NDArray[np.int32]
    documents_A: Int64
    documents: list[int]


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
    shards = Bundle(tuple(names), tuple(np.union1d(*rows) for rows in find_duplicates(store, pool, names)))
    step = math.ceil(len(names) / TASKS)
    bundles = [shards.cut(first, first + step) for first in range(0, len(names), step)]
    items = [(store, clustering, bundle) for bundle in bundles]
    counted: list[Counted] = map_tasks(count_arms, items, "measure drift", "bundles of shards")
    now_K = np.zeros(read_clustering(store, clustering).arms, dtype=np.int64)
    for each in counted:
        now_K[each.arm_A] += each.documents_A
    documents = [n for each in counted for n in each.documents]
    new = sum(n for name, n in zip(names, documents, strict=True) if name not in trained_on)
    then_K = _documents_at_training(store, pool, clustering, shards, documents, now_K)
    new_shards = [(store, clustering, *shard) for shard in zip(*shards, strict=True) if shard[0] not in trained_on]
    beyond = sum(map_tasks(count_beyond, new_shards, "measure drift", "shards"))
    shift = float(np.abs(now_K / now_K.sum() - then_K / then_K.sum()).sum() / 2)
    return Drift(
        new_documents=new,
        beyond_radius=beyond / new if new else 0.0,
        occupancy_shift=shift,
        drift=max(shift, beyond / int(now_K.sum())),
    )


def count_arms(store: Store, clustering: str, bundle: Bundle) -> Counted:
    """Count the documents of some shards by arm and by shard, repeated rows left out, on a worker."""
    documents, arms, counts = list[int](), [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for name, repeated in zip(*bundle, strict=True):
        arm_N = np.delete(read_table(store, assignments_key(clustering, name), ["arm"])["arm"].to_numpy(), repeated)
        arm_A, documents_A = np.unique(arm_N, return_counts=True)
        documents.append(len(arm_N))
        arms.append(arm_A)
        counts.append(documents_A)
    arm_A, where = np.unique(np.concatenate(arms), return_inverse=True)
    documents_A = group_sums(np.concatenate(counts), where, len(arm_A)).astype(np.int64)
    return Counted(arm_A, documents_A, documents)


def count_beyond(store: Store, clustering: str, name: str, repeated: Int64) -> int:
    """Count a shard's documents beyond their arm's radius, its `repeated` rows left out, on a worker."""
    arrays, _ = load_tensors(store, arm_spread_key(clustering))
    arm_N, distance_N = _read_distances(store, clustering, name, repeated)
    return int(np.count_nonzero(np.sqrt(distance_N) > arrays[RADIUS][arm_N]))


def _read_distances(store: Store, clustering: str, name: str, repeated: Int64) -> tuple[npt.NDArray[np.int32], Float32]:
    """Read the arms of a shard's documents and their squared distances to its centroid, `repeated` rows left out."""
    table = read_table(store, assignments_key(clustering, name), ["arm", "squared_distance"])
    arm_N, distance_N = (np.delete(table[column].to_numpy(), repeated) for column in table.column_names)
    return arm_N, distance_N


def _documents_at_training(
    store: Store, pool: str, clustering: str, shards: Bundle, documents: Sequence[int], now_K: Int64
) -> Int64:
    """Return each arm's documents when the centroids were trained; now, with its radius, if it was never noted.

    Args:
        store: the workspace.
        pool: the pool's name.
        clustering: key of the clustering.
        shards: of the pool.
        documents: of each shard.
        now_K: [K] of each arm.
    """
    key = arm_spread_key(clustering)
    if not store.exists(key):
        arms, bounds = _cut_arms(now_K), cut_rows(np.array(documents), len(documents), RANGE_DOCUMENTS)
        made_from = digest([list(shards.names), bounds, arms])
        keys = [dealt_distances_key(clustering, made_from, number) for number in range(len(bounds) - 1)]
        bundles = [shards.cut(first, end) for first, end in itertools.pairwise(bounds)]
        items = [(store, clustering, bundle, arms, own) for bundle, own in zip(bundles, keys, strict=True)]
        dealt = map_tasks(deal_distances, items, "deal distances", "bundles of shards")
        stored = list_stored(keys, dealt)
        ranges = [(store, own, *of_range) for own, of_range in zip(stored, itertools.pairwise(arms), strict=True)]
        radii = map_tasks(find_radii, ranges, "measure arms", "ranges of arms")
        check_lease(store, pool_folder(pool))
        save_tensors(store, key, {RADIUS: np.concatenate(radii), DOCUMENTS: now_K}, {})
    delete_as_holder(store, pool_folder(pool), dealt_distances_folder(clustering))
    arrays, _ = load_tensors(store, key)
    return arrays[DOCUMENTS]


def _cut_arms(documents_K: Int64) -> list[int]:
    """Cut arms into ranges of about `RANGE_DOCUMENTS`: [0, ..., K], the arm that each range ends before."""
    range_K = (np.cumsum(documents_K) - documents_K) // RANGE_DOCUMENTS
    return [0, *(np.flatnonzero(np.diff(range_K)) + 1).tolist(), len(documents_K)]


def deal_distances(store: Store, clustering: str, bundle: Bundle, arms: Sequence[int], key: str) -> Dealt:
    """Deal the documents of some shards out over ranges of arms, on a worker; `arms`: [0, ..., K], where each ends."""
    rows = [np.empty(0, DISTANCE)]
    for name, repeated in zip(*bundle, strict=True):
        arm_N, distance_N = _read_distances(store, clustering, name, repeated)
        own_N = np.empty(len(arm_N), DISTANCE)
        own_N["arm"], own_N["squared_distance"] = arm_N, distance_N
        rows.append(own_N)
    row_N = np.concatenate(rows)
    range_N = np.searchsorted(np.array(arms[1:]), row_N["arm"], side="right")
    own = (row_N[range_N == n] for n in range(len(arms) - 1))
    return write_ranges(store, key, ([each.tobytes()] for each in own))


def find_radii(store: Store, stored: Sequence[Stored], first: int, end: int) -> Float32:
    """Find the radii of the arms [first, end) on a worker, as `kmeans.arm_radii` does, from what bundles have of it."""
    frames = [np.frombuffer(frame, DISTANCE) for one in stored for frame in iter_range(store, *one)]
    row_N = np.concatenate([np.empty(0, DISTANCE), *frames])
    distance_N, arm_N = row_N["squared_distance"].copy(), row_N["arm"] - np.int32(first)
    radius_K: Float32 = kmeans.arm_radii(distance_N, arm_N, end - first, RADIUS_QUANTILE)
    return radius_K
