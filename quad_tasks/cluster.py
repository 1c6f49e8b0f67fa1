"""Stage: vectors become arms, and the pool is laid out arm by arm.

An arm's documents stand contiguously in an order drawn from (seed, document id), so that the next m documents of an
arm are one sequential read and a uniform sample of it. The tables are built under a name of their own and become a
version of the pool by one manifest, so that a half-built version is never seen and a running bandit keeps its own.
"""

import functools
import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import kmeans
from quad_tasks.embed import embeddings_key, sample_rows
from quad_tasks.ingest import documents_key, find_duplicates, shard_manifest_key
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import ManifestMismatch, digest, read_manifest, write_manifest
from quad_tasks.storage.positions import column_vectors, read_table, vector_column
from quad_tasks.storage.store import Store, open_store

PART_ROWS = 8192
ROW_GROUP_ROWS = 64  # a few pulls: a pull reads one or two row groups
SHUFFLE_GROUP_ROWS = 512
ASSIGNMENT_SCHEMA = pa.schema(
    [("row", pa.int64()), ("arm", pa.int32()), ("order", pa.uint64()), ("distance", pa.float32())]
)


@step("fit centroids")
def fit_centroids(config: RunConfig, names: list[str], embedder_key: str) -> str:
    """Train the arms' centroids on a sample of embeddings and return the key of the tables to build."""
    store = open_store(config.workspace)
    settings = config.clustering
    identity = [names, embedder_key, settings.model_dump(), config.seed]
    build = f"pools/{config.pool.name}/tables/{digest(identity)[:12]}"
    if store.exists(f"{build}/centroids.npy"):
        return build
    chosen = sample_rows(store, config, names, settings.sample_documents, purpose=2)
    sample = np.concatenate(
        [
            tables.read_array(store, embeddings_key(config.pool.name, embedder_key, name))[rows]
            for name, rows in zip(names, chosen, strict=True)
        ]
    )
    arms = min(settings.arms, len(sample))
    centroids = kmeans.train_centroids(sample, arms, config.seed, settings.iterations, settings.spherical)
    tables.write_array(store, f"{build}/centroids.npy", centroids)
    return build


@step("assign shards")
def assign_shards(config: RunConfig, names: list[str], embedder_key: str, build: str) -> None:
    """Assign every kept document to its nearest centroid, shard by shard; duplicates are left out here."""
    duplicates = find_duplicates(config, names)
    items = [
        (config.workspace, config.pool.name, name, embedder_key, build, config.seed, same_text, same_id)
        for name, (same_text, same_id) in zip(names, duplicates, strict=True)
    ]
    spread(assign_shard, items, "assign", "shards")


def assign_shard(
    workspace: str,
    pool: str,
    name: str,
    embedder_key: str,
    build: str,
    seed: int,
    same_text: np.ndarray[Any, Any],
    same_id: np.ndarray[Any, Any],
) -> None:
    """Write a shard's assignments: row, arm, order within the arm, squared distance to the centroid."""
    store = open_store(workspace)
    key = f"{build}/assignments/{name}.parquet"
    if store.exists(key):
        return
    embeddings = tables.read_array(store, embeddings_key(pool, embedder_key, name))
    arms, distances = kmeans.assign_arms(embeddings, tables.read_array(store, f"{build}/centroids.npy"))
    ids = [
        i
        for batch in tables.iter_batches(store, documents_key(pool, name), ["id"], SHUFFLE_GROUP_ROWS)
        for i in batch["id"].to_pylist()
    ]
    order = np.array([_order_key(seed, i) for i in ids], dtype=np.uint64)
    kept = np.setdiff1d(np.arange(len(arms)), np.concatenate([same_text, same_id]))
    table = pa.table([kept, arms[kept], order[kept], distances[kept]], schema=ASSIGNMENT_SCHEMA)
    tables.write_array(store, f"{build}/duplicates/{name}.text.npy", same_text)
    tables.write_array(store, f"{build}/duplicates/{name}.id.npy", same_id)
    tables.write_table_stream(store, key, ASSIGNMENT_SCHEMA, table.to_batches(), PART_ROWS)


def _order_key(seed: int, document_id: str) -> int:
    body = f"{seed}:{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


@step("lay out arms")
def lay_out_arms(config: RunConfig, names: list[str], embedder_key: str, build: str, model_key: str) -> str:
    """Write the pool in arm order and commit it as a version; return the version manifest's key.

    A version with the same shards, embedder, clustering and seed is found again rather than built twice.
    """
    store = open_store(config.workspace)
    existing, free = find_version(store, config.pool.name, build)
    if existing is not None:
        return existing
    plan = _plan_layout(store, names, build)
    items = [(config.workspace, config.pool.name, name, embedder_key, build) for name in names]
    spread(shuffle_shard, items, "shuffle", "shards")
    parts = [(config.workspace, build, part, pieces) for part, pieces in enumerate(plan)]
    summaries = spread(write_part, parts, "lay out arms", "parts")
    index = _arm_index(summaries, tables.read_array(store, f"{build}/centroids.npy"))
    tables.write_table_stream(store, f"{build}/arms.parquet", index.schema, index.to_batches(), PART_ROWS)
    for name in names:
        store.delete(f"{build}/shuffle/{name}.parquet")
    body = {
        "pool": config.pool.name,
        "tables": build,
        "model": model_key,
        "embedder": embedder_key,
        "seed": config.seed,
        "shards": names,
        "parts": [{"key": s["key"], "rows": s["rows"], "sha256": s["sha256"]} for s in summaries],
        "arms": index.num_rows,
        "documents": sum(s["rows"] for s in summaries),
        "tokens": sum(s["tokens"] for s in summaries),
        "bytes": sum(s["bytes"] for s in summaries),
        "set_aside": _count_set_aside(store, config.pool.name, names, build),
    }
    while not write_version(store, config.pool.name, free, body):
        free += 1
    return version_key(config.pool.name, free)


def write_version(store: Store, pool: str, number: int, body: dict[str, Any]) -> bool:
    """Commit a version under a number; False when another version took the number first."""
    try:
        write_manifest(store, version_key(pool, number), body)
    except ManifestMismatch:
        return False
    return True


def version_key(pool: str, number: int) -> str:
    """Return the key of a pool version's manifest."""
    return f"pools/{pool}/v{number:04d}/manifest.json"


def find_version(store: Store, pool: str, build: str) -> tuple[str | None, int]:
    """Return the manifest key of the version made of `build`, if any, and the next free number."""
    number = 1
    while store.exists(version_key(pool, number)):
        if read_manifest(store, version_key(pool, number))["tables"] == build:
            return version_key(pool, number), number
        number += 1
    return None, number


def _plan_layout(store: Store, names: list[str], build: str) -> list[list[tuple[str, int, int]]]:
    """Give every kept document its position in arm order; return for each part its (shard, first row, rows) pieces."""
    assignments = [read_table(store, f"{build}/assignments/{name}.parquet", ["arm", "order"]) for name in names]
    arm = np.concatenate([table["arm"].to_numpy() for table in assignments])
    order = np.concatenate([table["order"].to_numpy() for table in assignments])
    position = np.empty(len(arm), dtype=np.int64)
    position[np.lexsort((order, arm))] = np.arange(len(arm))
    pieces: list[list[tuple[str, int, int]]] = [[] for _ in range(0, len(arm), PART_ROWS)]
    start = 0
    for name, table in zip(names, assignments, strict=True):
        own = position[start : start + table.num_rows]
        start += table.num_rows
        tables.write_array(store, f"{build}/positions/{name}.npy", own)
        bounds = np.searchsorted(np.sort(own), np.arange(len(pieces) + 1) * PART_ROWS)
        for part in np.flatnonzero(np.diff(bounds)):
            pieces[part].append((name, int(bounds[part]), int(bounds[part + 1] - bounds[part])))
    return pieces


def shuffle_shard(workspace: str, pool: str, name: str, embedder_key: str, build: str) -> None:
    """Write a shard's kept documents with their embeddings, in arm order."""
    store = open_store(workspace)
    assignment = read_table(store, f"{build}/assignments/{name}.parquet", ["row", "arm"])
    position = tables.read_array(store, f"{build}/positions/{name}.npy")
    order = np.argsort(position)
    rows = assignment["row"].to_numpy()[order]
    embeddings = tables.read_array(store, embeddings_key(pool, embedder_key, name))[rows]
    columns = ["id", "source", "text", "metadata", "n_tokens", "n_bytes"]
    documents = read_table(store, documents_key(pool, name), columns).take(rows)
    schema = tables.arm_row_schema(embeddings.shape[1])
    table = (
        pa.table(
            {
                **{column: documents[column] for column in columns},
                "arm": assignment["arm"].to_numpy()[order],
                "shard": pa.array([name] * len(rows), pa.string()),
                "shard_row": rows,
                "embedding": vector_column(embeddings),
            }
        )
        .select(schema.names)
        .cast(schema)
    )
    table = table.append_column("position", pa.array(position[order]))
    tables.write_table_stream(
        store, f"{build}/shuffle/{name}.parquet", table.schema, table.to_batches(), SHUFFLE_GROUP_ROWS
    )


def write_part(workspace: str, build: str, part: int, pieces: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Gather one part from the shuffled shards and return its counts and its arms' moments."""
    store = open_store(workspace)
    table = (
        pa.concat_tables(
            [tables.read_rows(store, f"{build}/shuffle/{name}.parquet", start, n, None) for name, start, n in pieces]
        )
        .sort_by("position")
        .drop_columns(["position"])
    )
    key = f"{build}/arms/part-{part:05d}.parquet"
    rows, sha256 = tables.write_table_stream(store, key, table.schema, table.to_batches(), ROW_GROUP_ROWS)
    arm = table["arm"].to_numpy()
    present, first = np.unique(arm, return_index=True)
    tokens = table["n_tokens"].to_numpy().astype(np.int64)
    return {
        "key": key,
        "rows": rows,
        "sha256": sha256,
        "tokens": int(tokens.sum()),
        "bytes": int(table["n_bytes"].to_numpy().sum()),
        "part": part,
        "arm": present,
        "first": first,
        "arm_tokens": np.add.reduceat(tokens, first),
        "moments": kmeans.arm_moments(column_vectors(table["embedding"]), arm),
    }


def _arm_index(summaries: list[dict[str, Any]], centroids: np.ndarray[Any, Any]) -> pa.Table:
    """Merge the parts' moments into one row per arm; an arm no document fell into keeps its trained centroid."""
    k, dimension = centroids.shape
    n_documents, n_tokens = np.zeros(k, np.int64), np.zeros(k, np.int64)
    part, row = np.zeros(k, np.int32), np.zeros(k, np.int64)
    for s in reversed(summaries):  # an arm's first part is written last and stays
        part[s["arm"]], row[s["arm"]] = s["part"], s["first"]
        n_tokens[s["arm"]] += s["arm_tokens"]
    moments = functools.reduce(kmeans.merge_moments, [s["moments"] for s in summaries])
    n_documents[moments.arm_A] = moments.count_A
    mean, variance = kmeans.arm_gaussians(moments, centroids)
    return pa.table(
        {
            "arm": np.arange(k, dtype=np.int32),
            "n_documents": n_documents,
            "n_tokens": n_tokens,
            "part": part,
            "row": row,
            "centroid": vector_column(mean.astype(np.float32)),
            "variance": vector_column(variance.astype(np.float32)),
        }
    ).cast(tables.arm_index_schema(dimension))


def _count_set_aside(store: Store, pool: str, names: list[str], build: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(read_manifest(store, shard_manifest_key(pool, name))["set_aside"])
        for reason, kind in (("duplicate_text", "text"), ("duplicate_id", "id")):
            counts[reason] += len(tables.read_array(store, f"{build}/duplicates/{name}.{kind}.npy"))
    return {reason: n for reason, n in sorted(counts.items()) if n}
