"""Stage: vectors become arms, and the pool is laid out arm by arm.

An assignment belongs to a shard and a clustering, so a refresh that keeps its clustering assigns only what is new. An
arm's documents stand contiguously in an order drawn from (seed, document id), so that the next m documents of an arm
are one sequential read and a uniform sample of it. The tables are built under a name of their own and become a version
of the pool by one manifest, so that a half-built version is never seen and a running bandit keeps its own.
"""

import functools
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import kmeans
from quad_tasks.core.order import order_key
from quad_tasks.embed import embeddings_key, sample_rows
from quad_tasks.ingest import Duplicates, documents_key, find_duplicates, shard_manifest_key
from quad_tasks.progress import working
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import ManifestMismatch, digest, read_manifest, write_manifest
from quad_tasks.storage.positions import column_vectors, read_table, vector_column
from quad_tasks.storage.store import Store, open_store

PART_ROWS = 8192
ROW_GROUP_ROWS = 64  # a few pulls: a pull reads one or two row groups
SHUFFLE_GROUP_ROWS = 512
GATHERED_PARTS = 8
"""Parts written by one task: of each shard a task reads one range of rows, so that reads stay few and whole."""
ASSIGNMENT_SCHEMA = pa.schema([("arm", pa.int32()), ("order", pa.uint64()), ("squared_distance", pa.float32())])


@step("fit centroids")
def fit_centroids(config: RunConfig, names: list[str], embedder_key: str) -> str:
    """Train the arms' centroids on a sample of embeddings and return the clustering's key."""
    store = open_store(config.workspace)
    settings = config.clustering.model_dump(exclude={"recluster_drift"})
    key = f"pools/{config.pool.name}/clusterings/{digest([names, embedder_key, settings, config.seed])[:12]}"
    if store.exists(f"{key}/manifest.json"):
        return key
    chosen = sample_rows(store, config, names, config.clustering.sample_documents, purpose=2)
    sample = np.concatenate(
        [
            tables.read_array(store, embeddings_key(config.pool.name, embedder_key, name))[rows]
            for name, rows in zip(names, chosen, strict=True)
        ]
    )
    arms = min(config.clustering.arms, len(sample))
    iterations, spherical = config.clustering.iterations, config.clustering.spherical
    with working("train centroids"):
        centroids = kmeans.train_centroids(sample, arms, config.seed, iterations, spherical)
    sha256 = tables.write_array(store, f"{key}/centroids.npy", centroids)
    body = {"embedder": embedder_key, "clustering": settings, "shards": names, "arms": arms, "sha256": sha256}
    write_manifest(store, f"{key}/manifest.json", body)
    return key


@step("assign shards")
def assign_shards(config: RunConfig, names: list[str], clustering: str) -> None:
    """Assign the documents of every shard that is not assigned yet to their nearest centroids."""
    items = [(config.workspace, config.pool.name, name, clustering, config.seed) for name in names]
    spread(assign_shard, items, "assign", "shards")


def assign_shard(workspace: str, pool: str, name: str, clustering: str, seed: int) -> None:
    """Write a shard's assignments, one row a document: arm, order within the arm, squared distance to the centroid."""
    store = open_store(workspace)
    key = assignments_key(clustering, name)
    if store.exists(key):
        return
    embedder = read_manifest(store, f"{clustering}/manifest.json")["embedder"]
    embeddings = tables.read_array(store, embeddings_key(pool, embedder, name))
    arms, distances = kmeans.assign_arms(embeddings, tables.read_array(store, f"{clustering}/centroids.npy"))
    ids = [
        i
        for batch in tables.iter_batches(store, documents_key(pool, name), ["id"], SHUFFLE_GROUP_ROWS)
        for i in batch["id"].to_pylist()
    ]
    order = np.array([order_key(seed, i) for i in ids], dtype=np.uint64)
    table = pa.table([arms, order, distances], schema=ASSIGNMENT_SCHEMA)
    tables.write_table_stream(store, key, ASSIGNMENT_SCHEMA, table.to_batches(), PART_ROWS)


def embedder_of(config: RunConfig, clustering: str) -> str:
    """Return the key of the embedder whose vectors a clustering is of."""
    embedder: str = read_manifest(open_store(config.workspace), f"{clustering}/manifest.json")["embedder"]
    return embedder


def assignments_key(clustering: str, shard: str) -> str:
    """Return the key of a shard's assignments under one clustering."""
    return f"{clustering}/assignments/{shard}.parquet"


@step("lay out arms")
def lay_out_arms(config: RunConfig, names: list[str], clustering: str, model_key: str, history: dict[str, Any]) -> str:
    """Write the pool in arm order and commit it as a version; return the version manifest's key.

    A version of the same shards and clustering is found again rather than built twice.

    Args:
        config: the run's configuration.
        names: the shards.
        clustering: key of the clustering that the shards are assigned by.
        model_key: key of the checkpoint whose tokenizer counted the tokens.
        history: what the version's manifest says of those before it: `recipe` and `drift`.
    """
    store = open_store(config.workspace)
    pool = config.pool.name
    build = f"pools/{pool}/tables/{digest([names, clustering])[:12]}"
    existing = find_version(store, pool, build)
    if existing is not None:
        return existing
    embedder = embedder_of(config, clustering)
    duplicates = find_duplicates(config, names)
    plan = _plan_layout(store, names, clustering, build, duplicates)
    spread(
        shuffle_shard, [(config.workspace, pool, n, embedder, clustering, build) for n in names], "shuffle", "shards"
    )
    groups = [(config.workspace, build, first, pieces) for first, pieces in plan]
    summaries = [s for group in spread(write_parts, groups, "lay out arms", "groups of parts") for s in group]
    index = _arm_index(summaries, tables.read_array(store, f"{clustering}/centroids.npy"))
    tables.write_table_stream(store, f"{build}/arms.parquet", index.schema, index.to_batches(), PART_ROWS)
    body = {
        "pool": pool,
        "tables": build,
        "model": model_key,
        "embedder": embedder,
        "clustering": clustering,
        "seed": config.seed,
        "shards": names,
        "parts": [{"key": s["key"], "rows": s["rows"], "sha256": s["sha256"]} for s in summaries],
        "arms": index.num_rows,
        "documents": sum(s["rows"] for s in summaries),
        "tokens": sum(s["tokens"] for s in summaries),
        "bytes": sum(s["bytes"] for s in summaries),
        "set_aside": _count_set_aside(store, pool, names, duplicates),
        **history,
    }
    version = commit_version(store, pool, body)
    for name in names:
        store.delete(f"{build}/shuffle/{name}.parquet")
        store.delete(f"{build}/positions/{name}.npy")
    return version


def commit_version(store: Store, pool: str, body: dict[str, Any]) -> str:
    """Commit a version under the next free number and return its manifest's key; one of the same tables is kept."""
    while True:
        existing = find_version(store, pool, body["tables"])
        if existing is not None:
            return existing
        key = version_key(pool, len(list_versions(store, pool)) + 1)
        try:
            write_manifest(store, key, body)
        except ManifestMismatch:  # another refresh took the number first
            continue
        return key


def version_key(pool: str, number: int) -> str:
    """Return the key of a pool version's manifest."""
    return f"pools/{pool}/v{number:04d}/manifest.json"


def list_versions(store: Store, pool: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the pool's versions, oldest first: each one's manifest key and manifest."""
    versions: list[tuple[str, dict[str, Any]]] = []
    while store.exists(key := version_key(pool, len(versions) + 1)):
        versions.append((key, read_manifest(store, key)))
    return versions


def find_version(store: Store, pool: str, build: str) -> str | None:
    """Return the manifest key of the version made of the tables `build`, if there is one."""
    return next((key for key, body in list_versions(store, pool) if body["tables"] == build), None)


def _plan_layout(
    store: Store, names: list[str], clustering: str, build: str, duplicates: list[Duplicates]
) -> list[tuple[int, list[tuple[str, int, int]]]]:
    """Give every kept document its position in arm order.

    Returns:
        For each `GATHERED_PARTS` parts the first one's number and their (shard, first row, rows) pieces.

    A shard's kept rows and their positions, ascending, go to `positions/<shard>.npy`, [2, rows kept].
    """
    kept_arms, kept_orders, kept_rows = [], [], []
    for name, (same_text, same_id) in zip(names, duplicates, strict=True):
        table = read_table(store, assignments_key(clustering, name), ["arm", "order"])
        rows = np.setdiff1d(np.arange(table.num_rows), np.concatenate([same_text, same_id]))
        kept_rows.append(rows)
        kept_arms.append(table["arm"].to_numpy()[rows])
        kept_orders.append(table["order"].to_numpy()[rows])
    n = sum(map(len, kept_rows))
    position = np.empty(n, dtype=np.int64)
    position[np.lexsort((np.concatenate(kept_orders), np.concatenate(kept_arms)))] = np.arange(n)
    rows_each = PART_ROWS * GATHERED_PARTS
    pieces: list[list[tuple[str, int, int]]] = [[] for _ in range(0, n, rows_each)]
    starts = np.cumsum([0, *map(len, kept_rows)])
    for name, rows, start, end in zip(names, kept_rows, starts[:-1], starts[1:], strict=True):
        order = np.argsort(position[start:end])
        own = position[start:end][order]
        tables.write_array(store, f"{build}/positions/{name}.npy", np.stack([rows[order], own]))
        bounds = np.searchsorted(own, np.arange(len(pieces) + 1) * rows_each)
        for group in np.flatnonzero(np.diff(bounds)):
            pieces[group].append((name, int(bounds[group]), int(bounds[group + 1] - bounds[group])))
    return [(group * GATHERED_PARTS, own) for group, own in enumerate(pieces)]


def shuffle_shard(workspace: str, pool: str, name: str, embedder: str, clustering: str, build: str) -> None:
    """Write a shard's kept documents with their embeddings, in arm order."""
    store = open_store(workspace)
    rows, position = tables.read_array(store, f"{build}/positions/{name}.npy")
    arms = read_table(store, assignments_key(clustering, name), ["arm"])["arm"].to_numpy()[rows]
    embeddings = tables.read_array(store, embeddings_key(pool, embedder, name))[rows]
    columns = ["id", "source", "text", "metadata", "n_tokens", "n_bytes"]
    documents = read_table(store, documents_key(pool, name), columns).take(rows)
    schema = tables.arm_row_schema(embeddings.shape[1])
    table = (
        pa.table(
            {
                **{column: documents[column] for column in columns},
                "arm": arms,
                "shard": pa.array([name] * len(rows), pa.string()),
                "shard_row": rows,
                "embedding": vector_column(embeddings),
            }
        )
        .select(schema.names)
        .cast(schema)
    )
    table = table.append_column("position", pa.array(position))
    tables.write_table_stream(
        store, f"{build}/shuffle/{name}.parquet", table.schema, table.to_batches(), SHUFFLE_GROUP_ROWS
    )


def write_parts(workspace: str, build: str, first: int, pieces: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """Gather parts from the shuffled shards, from number `first` on; return each one's counts and arms' moments."""
    store = open_store(workspace)
    table = (
        pa.concat_tables(
            [tables.read_rows(store, f"{build}/shuffle/{name}.parquet", start, n, None) for name, start, n in pieces]
        )
        .sort_by("position")
        .drop_columns(["position"])
    )
    starts = range(0, table.num_rows, PART_ROWS)
    return [_write_part(store, build, first + i, table.slice(start, PART_ROWS)) for i, start in enumerate(starts)]


def _write_part(store: Store, build: str, part: int, table: pa.Table) -> dict[str, Any]:
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


def _count_set_aside(store: Store, pool: str, names: list[str], duplicates: list[Duplicates]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, (same_text, same_id) in zip(names, duplicates, strict=True):
        counts.update(read_manifest(store, shard_manifest_key(pool, name))["set_aside"])
        counts.update({"duplicate_text": len(same_text), "duplicate_id": len(same_id)})
    return {reason: n for reason, n in sorted(counts.items()) if n}
