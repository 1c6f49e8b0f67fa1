"""What identifies a finished run beyond its configuration: digests of all it read and made, and what it ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from quad_tasks.config import RunConfig
from quad_tasks.ingest import shard_manifest_key
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import digest, read_manifest
from quad_tasks.storage.store import Store

PACKAGES = ("torch", "transformers", "tokenizers", "faiss-cpu", "numpy", "pyarrow", "prefect", "dask")
SHARDS = 200
"""Inputs listed one by one; the digest is over all of them."""


def trace(store: Store, config: RunConfig, pool_version: str, reference: str) -> dict[str, Any]:
    """Gather digests of inputs and of what was made of them, and the software and machine.

    Returns:
        `selection` (uuid and manifest digest), `pool` (manifest digest), `inputs` (a digest over all of the pool's
        files, and of the first `SHARDS` each one's), `reference_inputs`, `model` (sha256 of its weights), `stages`
        (direction, factors and checkpoint of each), `packages`, `machine`.
    """
    pool = read_manifest(store, pool_version)
    files = [read_manifest(store, shard_manifest_key(config.pool.name, name))["input"] for name in pool["shards"]]
    published = f"runs/{config.run}/selection/manifest.json"
    selection = read_manifest(store, published) if store.exists(published) else {}
    return {
        "selection": {key: selection[key] for key in ("uuid", "digest") if key in selection},
        "pool": {"manifest": pool_version, "digest": pool["digest"]},
        "inputs": {
            "files": len(files),
            "digest": digest([[file["uri"], file["sha256"]] for file in files]),
            "sha256": {file["uri"]: file["sha256"] for file in files[:SHARDS]},
        },
        "reference_inputs": read_manifest(store, f"{reference}/manifest.json")["inputs"],
        "model": {"weights_sha256": read_manifest(store, f"{pool['model']}/manifest.json")["weights_sha256"]},
        "stages": [_stage(store, config, number) for number in range(config.training.stages)],
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def _stage(store: Store, config: RunConfig, number: int) -> dict[str, Any]:
    direction = rounds.read_round(store, config.run, number, 0).info["direction"]
    made = read_manifest(store, f"{direction}/manifest.json")
    return {"stage": number, "checkpoint": made["checkpoint"], "factors": made["factors"], "direction": direction}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
