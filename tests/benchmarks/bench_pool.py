"""Seconds per million documents, and peak memory, of assignment, arm layout and 20 rounds over synthetic pools.

    python tests/benchmarks/bench_pool.py [--json] [--documents 1000000 10000000] [--workspace DIRECTORY]

Documents are short texts whose embeddings are given: unit vectors around random centres. The stages are the product's
own, on a local Dask cluster of two workers; only scoring is replaced, by a number that depends on the arm. Peak memory
is the sum of every process's own peak. `growth` is the time per million documents of the largest pool over that of the
smallest: 1 is linear.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flows.cluster import dask_cluster
from quad_tasks.cluster import assign_shards, fit_centroids, lay_out_arms
from quad_tasks.compute import peak_memory_bytes, spread
from quad_tasks.config import RunConfig
from quad_tasks.config_file import parse_config
from quad_tasks.draw import Plan, choose_round
from quad_tasks.embed import embeddings_key
from quad_tasks.ingest import documents_key, shard_manifest_key
from quad_tasks.pull import commit_round
from quad_tasks.records import Stage
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import open_store

SHARD_DOCUMENTS = 100_000
CENTRES = 2000
DIMENSION = 32
ROUNDS = 20
EMBEDDER = "pools/pool/embedders/given"
BLOCK_ROWS = 10_000
SPREAD = 0.1
NOISE = 0.05


def make_config(workspace: str) -> RunConfig:
    """Return a run whose pool is synthetic: nothing is ingested, embedded or trained."""
    body = {
        "run": "scale",
        "workspace": workspace,
        "pool": {"inputs": ["synthetic"]},
        "reference": {"inputs": ["synthetic"]},
        "clustering": {"arms": 1000, "sample_documents": 50_000, "iterations": 10},
        "bandit": {"pilot_documents": 2000, "arms_per_round": 32, "documents_per_pull": 16},
        "selection": {"budget_tokens": 1_000_000},
    }
    return parse_config(body, "bench_pool")


def write_shard(workspace: str, number: int) -> str:
    """Write one shard's documents, manifest and embeddings."""
    store, name = open_store(workspace), f"synthetic-{number:05d}"
    generator = np.random.default_rng([1, number])
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIMENSION))
    vectors = centres[generator.integers(0, CENTRES, SHARD_DOCUMENTS)]
    vectors = vectors + SPREAD * generator.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tables.write_array(store, embeddings_key("pool", EMBEDDER, name), vectors.astype(np.float32))
    blocks = (_documents(number, start) for start in range(0, SHARD_DOCUMENTS, BLOCK_ROWS))
    tables.write_table_stream(store, documents_key("pool", name), tables.DOCUMENT_SCHEMA, blocks, BLOCK_ROWS)
    body = {"documents": SHARD_DOCUMENTS, "tokens": 16 * SHARD_DOCUMENTS, "set_aside": {}}
    write_manifest(store, shard_manifest_key("pool", name), body)
    return name


def _documents(number: int, start: int) -> pa.Table:
    rows = range(start, start + BLOCK_ROWS)
    texts = [f"Document {row} of shard {number}, a line of text of no importance to anyone." for row in rows]
    columns = [
        [f"{number}-{row}" for row in rows],
        texts,
        [f"source-{row % 7}" for row in rows],
        ["{}"] * len(texts),
        [16] * len(texts),
        [len(text) for text in texts],
        [tables.text_hash(text) for text in texts],
        list(rows),
    ]
    return pa.table(columns, schema=tables.DOCUMENT_SCHEMA)


def measure_pool(n_documents: int, workspace: str) -> dict[str, Any]:
    """Run every stage once over a pool of `n_documents`; seconds of each, peak bytes."""
    config, seconds = make_config(workspace), dict[str, float]()
    with dask_cluster(config.compute):
        store = open_store(workspace)
        write_manifest(store, f"{EMBEDDER}/manifest.json", {"embedding": "given"})
        names = spread(write_shard, [(workspace, i) for i in range(n_documents // SHARD_DOCUMENTS)], "write", "shards")
        with _timed(seconds, "cluster"):
            clustering = fit_centroids.fn(config, names, EMBEDDER)
        with _timed(seconds, "assign"):
            assign_shards.fn(config, names, clustering)
        with _timed(seconds, "lay out"):
            version = lay_out_arms.fn(config, names, clustering, "models/none", {})
        stage = Stage(config.run, 0, version, "", "direction")
        with _timed(seconds, "rounds"):
            for number in range(ROUNDS):
                plan = choose_round.fn(config, stage, number)
                commit_round.fn(config, stage, number, plan, _score(config, stage, plan, number))
        peak = peak_memory_bytes()
    per_million = {name: round(1e6 * s / n_documents, 2) for name, s in seconds.items() if name != "cluster"}
    return {
        "documents": n_documents,
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "seconds_per_million": per_million,
        "seconds_per_million_all": round(sum(per_million.values()), 2),
        "peak_memory_bytes": peak,
    }


def _score(config: RunConfig, stage: Stage, plan: Plan, number: int) -> list[pa.Table]:
    """Make up a round's scores: a mean for each arm, and noise."""
    positions = np.concatenate([np.array(chunk, dtype=np.int64) for chunk in plan.chunks])
    rows = read_positions(open_store(config.workspace), stage.version, positions, ["id", "source", "arm", "n_tokens"])
    arm, n_tokens = rows["arm"].to_numpy(), rows["n_tokens"].to_numpy().astype(np.int64)
    influence = np.sin(arm) + NOISE * np.random.default_rng(number).normal(size=len(arm))
    columns = {
        "position": positions,
        "id": rows["id"],
        "source": rows["source"],
        "arm": arm,
        "n_tokens": n_tokens,
        "n_targets": n_tokens - 1,
        "influence": influence,
    }
    return [pa.table(columns)]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"{name}: {seconds[name]:.1f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Measure every size, each in a workspace that is removed, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--workspace", type=Path, help="directory for the pools; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    measured = []
    for n_documents in arguments.documents:
        folder = tempfile.mkdtemp(prefix="quad-pool-", dir=arguments.workspace)
        try:
            measured.append(measure_pool(n_documents, folder))
        finally:
            shutil.rmtree(folder)
    growth = measured[-1]["seconds_per_million_all"] / measured[0]["seconds_per_million_all"]
    result = {"pools": measured, "growth": round(growth, 3)}
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
