"""Stage: vectors become arms: centroids are trained on a sample, every document is assigned to its nearest one.

An assignment belongs to a shard and a clustering, so a refresh that keeps its clustering assigns only what is new.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import ClusteringConfig
from quad_tasks.core.clustering import kmeans
from quad_tasks.core.random_order import order_key
from quad_tasks.core.seeds import Stream
from quad_tasks.manifests.pool import ClusteringManifest
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.embed import sample_rows
from quad_tasks.stages.pool.ingest import iter_documents
from quad_tasks.storage import tables
from quad_tasks.storage.keys import (
    assignments_key,
    centroids_key,
    clustering_folder,
    embeddings_key,
    manifest_key,
)
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import PART_ROWS

if TYPE_CHECKING:
    import faiss

ASSIGNMENT_SCHEMA = pa.schema([("arm", pa.int32()), ("order", pa.uint64()), ("squared_distance", pa.float32())])


@stage_task("fit centroids")
def fit_centroids(
    store: Store, pool: str, clustering: ClusteringConfig, seed: int, names: Sequence[str], embedder_key: str
) -> str:
    """Train the arms' centroids on a sample of embeddings and return the clustering's key."""
    settings = clustering.identity()
    key = clustering_folder(pool, digest([names, embedder_key, settings, seed]))
    if store.exists(manifest_key(key)):
        return key
    chosen = sample_rows(store, pool, names, clustering.sample_documents, seed, Stream.CENTROID_SAMPLE)
    items = [
        (store, embeddings_key(pool, embedder_key, name), rows)
        for name, rows in zip(names, chosen, strict=True)
        if len(rows)
    ]
    sample = np.concatenate(map_tasks(read_vectors, items, "sample embeddings", "shards"))
    arms = min(clustering.arms, len(sample))
    with working("train centroids"):
        centroids = kmeans.train_centroids(sample, arms, seed, clustering.iterations, clustering.spherical)
    sha256 = tables.write_array(store, centroids_key(key), centroids)
    manifest = ClusteringManifest(
        embedder=embedder_key, clustering=settings, shards=tuple(names), arms=arms, sha256=sha256
    )
    write_manifest(store, manifest_key(key), manifest)
    return key


def read_vectors(store: Store, key: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Read some rows of a shard's embeddings, [N, D], on a worker."""
    vectors: npt.NDArray[np.float32] = np.array(tables.read_array(store, key)[rows])
    return vectors


def read_clustering(store: Store, key: str) -> ClusteringManifest:
    """Read the manifest of a clustering."""
    return read_manifest(ClusteringManifest, store, manifest_key(key))


@functools.lru_cache(maxsize=1)
def _load_search(store: Store, key: str) -> tuple[npt.NDArray[np.float32], "faiss.Index"]:
    """Read a clustering's centroids and index them, once a process."""
    centroids_KD = read_centroids(store, key)
    return centroids_KD, kmeans.index_centroids(centroids_KD)


def read_centroids(store: Store, key: str) -> npt.NDArray[np.float32]:
    """Read the trained centroids of a clustering, [K, D]."""
    centroids_KD: npt.NDArray[np.float32] = tables.read_array(
        store, centroids_key(key), read_clustering(store, key).sha256
    )
    return centroids_KD


@stage_task("assign shards")
def assign_shards(store: Store, pool: str, seed: int, names: Sequence[str], clustering: str) -> None:
    """Assign the documents of every shard that is not assigned yet to their nearest centroids."""
    items = [(store, pool, name, clustering, seed) for name in names]
    map_tasks(assign_shard, items, "assign", "shards")


def assign_shard(store: Store, pool: str, name: str, clustering: str, seed: int) -> None:
    """Write a shard's assignments, one row a document: arm, order within the arm, squared distance to the centroid."""
    key = assignments_key(clustering, name)
    if store.exists(key):
        return
    embeddings = tables.read_array(store, embeddings_key(pool, read_clustering(store, clustering).embedder, name))
    arms, distances = kmeans.assign_arms(embeddings, *_load_search(store, clustering))
    ids = [i for batch in iter_documents(store, pool, name, ["id"]) for i in batch["id"].to_pylist()]
    order = np.array([order_key(seed, i) for i in ids], dtype=np.uint64)
    table = pa.table([arms, order, distances], schema=ASSIGNMENT_SCHEMA)
    tables.write_table_stream(store, key, ASSIGNMENT_SCHEMA, table.to_batches(), PART_ROWS)
