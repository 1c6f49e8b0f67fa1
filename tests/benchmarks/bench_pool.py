"""Seconds per million documents, and peak memory, of all that grows with a pool, over synthetic pools.

    python tests/benchmarks/bench_pool.py [--json] [--documents 1000000 10000000] [--rounds 20]
        [--workspace DIRECTORY]

Measured are assignment, arm layout, a refresh that adds a hundredth, rounds of the bandit over what it left, the
selection and its random control; `written_bytes` of layout and refresh.

Documents are short texts whose embeddings are given: unit vectors around random centres. The stages are the product's
own, on a local Dask cluster of two workers; only scoring is replaced, by a number that depends on the arm. Peak memory
is the sum of every process's own peak; `driver_peak_bytes` is that of the driving process alone, step by step, and
`driver_bytes_per_document` what each step's peak grew by from the smallest pool to the largest. As many documents are
scored and chosen of each pool, so that this is what a document costs that is neither. `growth` is the time per million
documents of the largest pool over that of the smallest: 1 is linear.
"""

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from flows.dask_cluster import dask_cluster
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.manifests.pool import Drift, EmbedderManifest, InputFile, ShardManifest
from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import describe_checkpoint, save_checkpoint
from quad_tasks.runtime.processes.memory import own_peak_bytes
from quad_tasks.runtime.processes.worker_memory import peak_memory_bytes
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.commit_round import commit_round
from quad_tasks.stages.bandit.plan_round import Plan, plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.pool.cluster import assign_shards, fit_centroids
from quad_tasks.stages.pool.lay_out_arms import lay_out_arms
from quad_tasks.stages.selection.random_control import draw_random_control
from quad_tasks.stages.selection.select_documents import select_documents, stage_selection
from quad_tasks.storage import tables
from quad_tasks.storage.keys import (
    documents_key,
    embeddings_key,
    manifest_key,
    shard_manifest_key,
    shard_token_features_key,
)
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store, open_store

SHARD_DOCUMENTS = 100_000
CENTRES = 2000
DIMENSION = 32
ROUNDS = 20
TOKEN_FEATURES = 67
"""Of a model whose embeddings have the width of these."""
EMBEDDER = "pools/pool/embedders/given"
MODEL = "models/tiny"
"""Costs are counted by its shape; it reads nothing."""
FEATURES = "pools/pool/token_features/given"
BLOCK_ROWS = 10_000
SPREAD = 0.1
NOISE = 0.05
RESET_PEAK = "5"
"""Written to `/proc/self/clear_refs`, it makes the peak the present size (Linux)."""
NO_DRIFT = Drift(new_documents=0, beyond_radius=0.0, occupancy_shift=0.0, drift=0.0)


class Step(NamedTuple):
    """What a step took, and the most memory the driving process held in it."""

    seconds: float
    peak_bytes: int


def make_config(workspace: str) -> RunConfig:
    """Return a run whose pool is synthetic: nothing is ingested, embedded or trained."""
    body = {
        "run": "scale",
        "workspace": workspace,
        "pool": {"inputs": ["synthetic"]},
        "reference": {"inputs": ["synthetic"]},
        "clustering": {"arms": 1000, "sample_documents": 50_000, "iterations": 10},
        "bandit": {"pilot_documents": 2000, "arms_per_round": 32, "documents_per_pull": 16},
        "selection": {  # the texts are all alike
            "budget_tokens": 1_000_000,
            "near_duplicate_cosine": None,
            "near_duplicate_overlap": None,
        },
    }
    return parse_config(body, "bench_pool")


def write_model(store: Store) -> None:
    """Write a tiny untrained model."""
    tokenizer = train_tokenizer(["a line of text of no importance"], 300)
    model = fresh_llama(LlamaSize(16, 1, 2, 1, 32), len(tokenizer), 64, 0)
    save_checkpoint(store, MODEL, model, tokenizer, describe_checkpoint("tiny", "tiny", model, tokenizer))


def write_shard(store: Store, number: int, n: int = SHARD_DOCUMENTS) -> str:
    """Write one shard's documents, manifest, embeddings and token features; `n` is a multiple of `BLOCK_ROWS`."""
    name = f"synthetic-{number:05d}"
    generator = np.random.default_rng([1, number])
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIMENSION))
    vectors = centres[generator.integers(0, CENTRES, n)]
    vectors = vectors + SPREAD * generator.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tables.write_array(store, embeddings_key("pool", EMBEDDER, name), vectors.astype(np.float32))
    features = generator.normal(size=(n, TOKEN_FEATURES)).astype(np.float32)
    tables.write_array(store, shard_token_features_key(FEATURES, name), features)
    blocks = (_documents(number, start) for start in range(0, n, BLOCK_ROWS))
    tables.write_table_stream(store, documents_key("pool", name), tables.DOCUMENT_SCHEMA, blocks, BLOCK_ROWS)
    manifest = ShardManifest(
        shard=name,
        input=InputFile(uri=name, sha256="", size_bytes=0),
        fields={},
        tokenizer_sha256="",
        documents_sha256="",
        set_aside_sha256=None,
        documents=n,
        tokens=16 * n,
        bytes=0,
        set_aside={},
    )
    write_manifest(store, shard_manifest_key("pool", name), manifest)
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


def measure_pool(n_documents: int, workspace: str, rounds: int) -> dict[str, Any]:
    """Run every stage once over a pool of `n_documents`; seconds of each, peak bytes."""
    config, measured = make_config(workspace), dict[str, Step]()
    with dask_cluster(config.compute):
        store = open_store(workspace)
        write_manifest(store, manifest_key(EMBEDDER), EmbedderManifest(embedding={}, model=MODEL))
        write_model(store)
        shards = range(n_documents // SHARD_DOCUMENTS)
        names = map_tasks(write_shard, [(store, number) for number in shards], "write", "shards")
        with _measured(measured, "cluster"):
            clustering = fit_centroids.fn(store, "pool", config.clustering, config.seed, names, EMBEDDER)
        with _measured(measured, "assign"):
            assign_shards.fn(store, "pool", config.seed, names, clustering)
        with _measured(measured, "lay out"):
            version = lay_out_arms.fn(store, "pool", config.seed, names, clustering, FEATURES, MODEL, "", NO_DRIFT)
        written = {"lay out": _bytes_of_tables(store)}
        names.append(write_shard(store, len(names), max(BLOCK_ROWS, n_documents // 100)))
        base = read_version(store, version)
        with _measured(measured, "refresh"):
            assign_shards.fn(store, "pool", config.seed, names, clustering)
            version = lay_out_arms.fn(
                store, "pool", config.seed, names, clustering, FEATURES, MODEL, "", NO_DRIFT, base
            )
        written["refresh"] = _bytes_of_tables(store) - written["lay out"]
        stage, settings = Stage(config.run, 0, version, "", "direction"), round_settings(config, 0)
        with _measured(measured, "rounds"):
            for number in range(rounds):
                plan = plan_round.fn(store, stage, number, settings)
                commit_round.fn(store, stage, number, settings, plan, _score(store, stage, plan, number))
        how = stage_selection(config, 0)
        with _measured(measured, "select"):
            select_documents.fn(store, stage, how)
        with _measured(measured, "control"):
            draw_random_control.fn(store, stage, how, 0)
        peak = peak_memory_bytes()
    seconds = {name: step.seconds for name, step in measured.items()}
    per_million = {name: round(1e6 * s / n_documents, 2) for name, s in seconds.items() if name != "cluster"}
    return {
        "documents": n_documents,
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "seconds_per_million": per_million,
        "seconds_per_million_all": round(sum(per_million.values()), 2),
        "written_bytes": written,
        "peak_memory_bytes": peak,
        "driver_peak_bytes": {name: step.peak_bytes for name, step in measured.items()},
    }


def _bytes_of_tables(store: Store) -> int:
    return sum(store.size(key) for key in store.list("pools/pool/tables"))


def _score(store: Store, stage: Stage, plan: Plan, number: int) -> list[pa.Table]:
    """Make up a round's scores: a mean for each arm, and noise."""
    positions = np.concatenate([np.array(chunk, dtype=np.int64) for chunk in plan.chunks])
    rows = read_positions(store, stage.version, positions, ["id", "source", "arm", "n_tokens"])
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
def _measured(measured: dict[str, Step], name: str) -> Iterator[None]:
    """Measure a step's time, and the driving process's peak memory in it, counted anew from its beginning."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    start = time.perf_counter()
    yield
    step = measured[name] = Step(time.perf_counter() - start, own_peak_bytes())
    print(f"{name}: {step.seconds:.1f} s, driver {step.peak_bytes / 2**20:.0f} MiB", file=sys.stderr, flush=True)


def measure_apart(n_documents: int, directory: Path | None, rounds: int) -> dict[str, Any]:
    """Measure a pool in a process of its own, whose peak no other pool has raised."""
    command = [sys.executable, __file__, "--json", "--documents", str(n_documents), "--rounds", str(rounds)]
    command += ["--workspace", str(directory)] if directory else []
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    pool: dict[str, Any] = json.loads(printed)["pools"][0]
    return pool


def main() -> None:
    """Measure every size, each in a workspace that is removed, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--workspace", type=Path, help="directory for the pools; a temporary one by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the bandit, its pilot among them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if len(arguments.documents) > 1:
        pools = [measure_apart(n, arguments.workspace, arguments.rounds) for n in arguments.documents]
    else:
        folder = tempfile.mkdtemp(prefix="quad-pool-", dir=arguments.workspace)
        try:
            pools = [measure_pool(arguments.documents[0], folder, arguments.rounds)]
        finally:
            shutil.rmtree(folder)
    result: dict[str, Any] = {"pools": pools}
    if len(pools) > 1:
        small, large = pools[0], pools[-1]
        more = large["documents"] - small["documents"]
        result["growth"] = round(large["seconds_per_million_all"] / small["seconds_per_million_all"], 3)
        peaks = ((name, large["driver_peak_bytes"][name] - peak) for name, peak in small["driver_peak_bytes"].items())
        result["driver_bytes_per_document"] = {name: round(grown / more, 1) for name, grown in peaks}
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
