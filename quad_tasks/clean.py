"""Remove what interrupted attempts of a run left behind: objects that no manifest names or will name.

Works only while holding the run's lease, so that nothing is being written under it. Refuses to touch what several runs
share unless the manifest that ends its use is committed: an unfinished pool build or fit is what a resume goes on from.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quad_tasks.cluster import list_versions
from quad_tasks.config import RunConfig
from quad_tasks.run import driving
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.rounds import orphaned_tables
from quad_tasks.storage.store import PROBE_FOLDER, Store, open_store
from quad_tasks.storage.unfinished import unfinished_files

SHARED_FOLDERS = ("pools", "models", "references", "factors")
ABANDONED_AFTER_S = 3600.0
"""Shared files untouched for this long belong to no living process: a shard's table is written in minutes."""


def clean_run(config: RunConfig, dry_run: bool = False) -> dict[str, Any]:
    """Remove a run's leftovers, or only count them.

    Returns:
        `dry_run`, `objects` and `size_bytes` over all, and `leftovers`: the same two numbers by kind.

    Raises:
        LeaseHeld: another process drives the run.
    """
    store = open_store(config.workspace)
    with driving(config):
        objects = find_leftovers(store, config)
        files = find_unfinished(store, config)
        sizes = {kind: [store.size(key) for key in keys] for kind, keys in objects.items()}
        sizes["unfinished_files"] = [path.stat().st_size for path in files]
        if not dry_run:
            for key in (key for keys in objects.values() for key in keys):
                store.delete(key)
            for path in files:
                path.unlink(missing_ok=True)
    counts = {kind: {"objects": len(found), "size_bytes": sum(found)} for kind, found in sizes.items()}
    total = {name: sum(count[name] for count in counts.values()) for name in ("objects", "size_bytes")}
    return {"dry_run": dry_run, **total, "leftovers": counts}


def find_leftovers(store: Store, config: RunConfig) -> dict[str, list[str]]:
    """Return the keys that may go, by kind; what a living driver is writing is among them, unless its lease is held."""
    return {
        "round_tables": orphaned_tables(store, config.run),
        "selection_parts": list(_unnamed_parts(store, config.run)),
        "factor_chunks": list(_finished_chunks(store)),
        "build_tables": list(_finished_shuffles(store, config.pool.name)),
        "probes": list(_old_probes(store)),
    }


def find_unfinished(store: Store, config: RunConfig) -> list[Path]:
    """Return the run's own unfinished files, and those of shared folders that no living process can be writing."""
    own = unfinished_files(store, f"runs/{config.run}", min_age_s=0.0)
    return own + [path for folder in SHARED_FOLDERS for path in unfinished_files(store, folder, ABANDONED_AFTER_S)]


def _unnamed_parts(store: Store, run: str) -> Iterator[str]:
    folder = f"runs/{run}/selection"
    if not store.exists(f"{folder}/manifest.json"):
        return
    named = {f"{folder}/{part['name']}" for part in read_manifest(store, f"{folder}/manifest.json")["parts"]}
    yield from (key for key in store.list(folder) if re.search(r"/part-\d+\.parquet$", key) and key not in named)


def _finished_chunks(store: Store) -> Iterator[str]:
    """Yield the sums of chunks, and the eigenbasis between the two passes, of fits that are committed."""
    keys = store.list("factors")
    committed = {key.removesuffix("/manifest.json") for key in keys if key.endswith("/manifest.json")}
    for key in keys:
        match = re.fullmatch(r"(factors/[^/]+)/(chunks/.+|basis\.safetensors)", key)
        if match and match[1] in committed:
            yield key


def _finished_shuffles(store: Store, pool: str) -> Iterator[str]:
    """Yield the shuffled shards and positions of builds that became a version."""
    for build in {version["tables"] for _, version in list_versions(store, pool)}:
        yield from store.list(f"{build}/shuffle")
        yield from store.list(f"{build}/positions")


def _old_probes(store: Store) -> Iterator[str]:
    """Yield probes of conditional creation that a killed process left; a young one may be in use."""
    latest = time.time() - ABANDONED_AFTER_S
    for key in store.list(PROBE_FOLDER):
        if int(key.rpartition("/")[2].split("-")[0]) <= latest:
            yield key
