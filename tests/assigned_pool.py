"""Shards as the stages before the layout leave them, and the sort in memory that a layout of them must equal."""

import numpy as np
import pyarrow as pa

from quad_tasks.core.random_order import order_key
from quad_tasks.manifests.pool import ClusteringManifest, Drift, InputFile, ShardManifest
from quad_tasks.stages.pool.cluster import ASSIGNMENT_SCHEMA
from quad_tasks.storage import tables
from quad_tasks.storage.keys import (
    assignments_key,
    centroids_key,
    documents_key,
    embeddings_key,
    manifest_key,
    shard_manifest_key,
    shard_token_features_key,
)
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.store import Store

CLUSTERING, EMBEDDER, FEATURES = "pools/p/clusterings/c", "pools/p/embedders/e", "pools/p/token_features/t"
NO_DRIFT = Drift(new_documents=0, beyond_radius=0.0, occupancy_shift=0.0, drift=0.0)
DIMENSION = 2


def write_pool(store: Store, shards: list[list[dict]], n_arms: int) -> list[str]:
    """Write shards of documents, each with `id`, `text` and `arm`, as the stages before the layout do.

    A document is its `distance`, squared, from its arm's centroid; 0 where it has none.
    """
    names = []
    for number, rows in enumerate(shards):
        name = f"shard{number}"
        texts = [row["text"] for row in rows]
        documents = pa.table(
            {
                "id": [row["id"] for row in rows],
                "text": texts,
                "source": ["s"] * len(rows),
                "metadata": ["{}"] * len(rows),
                "n_tokens": [len(text.split()) for text in texts],
                "n_bytes": [len(text) for text in texts],
                "text_hash": [tables.text_hash(text) for text in texts],
                "line": list(range(1, len(rows) + 1)),
            }
        ).cast(tables.DOCUMENT_SCHEMA)
        tables.write_table_stream(store, documents_key("p", name), tables.DOCUMENT_SCHEMA, [documents], 7)
        arms = np.array([row["arm"] for row in rows], dtype=np.int32)
        order = np.array([order_key(0, row["id"]) for row in rows], dtype=np.uint64)
        distances = np.array([row.get("distance", 0.0) for row in rows], dtype=np.float32)
        assigned = pa.table([arms, order, distances], schema=ASSIGNMENT_SCHEMA)
        tables.write_table_stream(store, assignments_key(CLUSTERING, name), ASSIGNMENT_SCHEMA, [assigned], 5)
        vectors = np.array([[row["arm"], len(row["text"])] for row in rows], np.float32).reshape(-1, DIMENSION)
        tables.write_array(store, embeddings_key("p", EMBEDDER, name), vectors)
        tables.write_array(store, shard_token_features_key(FEATURES, name), -vectors)
        manifest = ShardManifest(
            shard=name, input=InputFile(uri=name, sha256="", size_bytes=0), fields={}, tokenizer_sha256="",
            documents_sha256="", set_aside_sha256=None, documents=len(rows), tokens=0, bytes=0, set_aside={},
        )  # fmt: skip
        write_manifest(store, shard_manifest_key("p", name), manifest)
        names.append(name)
    sha256 = tables.write_array(store, centroids_key(CLUSTERING), np.zeros((n_arms, DIMENSION), np.float32))
    clustering = ClusteringManifest(embedder=EMBEDDER, clustering={}, shards=tuple(names), arms=n_arms, sha256=sha256)
    write_manifest(store, manifest_key(CLUSTERING), clustering)
    return names


def in_arm_order(shards: list[list[dict]]) -> list[dict]:
    """Sort all documents at once, the repeated ones left out."""
    rows, texts, ids = [], set(), set()
    for number, shard in enumerate(shards):
        for i, row in enumerate(shard):
            if row["text"] not in texts and row["id"] not in ids:
                rows.append({**row, "shard": f"shard{number}", "shard_row": i})
            texts.add(row["text"])
            ids.add(row["id"])
    return sorted(rows, key=lambda row: (row["arm"], order_key(0, row["id"])))


class PowerCut(BaseException):
    """Ends an attempt, as nothing that the product catches."""


def in_turn(task, items, *_, shared=()):
    """Call tasks one after another in this process, in place of `map_tasks`."""
    return [task(*shared, *item) for item in items]
