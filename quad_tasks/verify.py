"""Check a run against its own records: digests of what was published, and the sum of all documents."""

import hashlib
from typing import Any

from quad_tasks.clean import find_leftovers, find_unfinished
from quad_tasks.config import RunConfig
from quad_tasks.publish import count_documents, read_scores
from quad_tasks.run import pinned_pool
from quad_tasks.storage.manifest import DigestMismatch, read_manifest
from quad_tasks.storage.store import Store, StoreKeyError, open_store


def verify_run(config: RunConfig) -> dict[str, Any]:
    """Recompute a finished run's digests and counts.

    Returns:
        `documents_in` and its parts, `balanced`, parts and rows checked, and `orphans`: what `quad clean` would remove.

    Raises:
        DigestMismatch: published bytes are not those committed, or a document was scored twice.
        StoreKeyError: the run published nothing yet.
    """
    store = open_store(config.workspace)
    version = pinned_pool(config)
    selection = f"runs/{config.run}/selection"
    if version is None or not store.exists(f"{selection}/manifest.json"):
        raise StoreKeyError(
            f"run {config.run!r} in {store.uri}: expected a published selection, found none yet: "
            f"`quad resume {config.run}` goes on with it"
        )
    manifest = read_manifest(store, f"{selection}/manifest.json")
    for part in manifest["parts"]:
        _check(store, f"{selection}/{part['name']}", part["sha256"])
    for part in read_manifest(store, version)["parts"]:
        _check(store, part["key"], part["sha256"])
    scores = read_scores(store, config.run, config.training.stages)
    counts = count_documents(store, config, version)
    parts = [
        sum(counts["set_aside"].values()),
        counts["unpulled"],
        sum(counts["rejected"].values()),
        counts["selected"],
    ]
    return {
        **counts,
        "balanced": counts["documents_in"] == sum(parts),
        "scored_once": len(set(scores["position"].to_pylist())) == scores.num_rows,
        "within_budget": manifest["n_tokens"] <= manifest["budget_tokens"],
        "tokens": manifest["n_tokens"],
        "parts": len(manifest["parts"]),
        "orphans": _orphans(store, config),
    }


def _orphans(store: Store, config: RunConfig) -> list[str]:
    """List what interrupted attempts left behind: keys that no manifest names, and unfinished local files."""
    keys = [key for found in find_leftovers(store, config).values() for key in found]
    return keys + [str(path) for path in find_unfinished(store, config)]


def _check(store: Store, key: str, sha256: str) -> None:
    found = hashlib.sha256(store.get(key)).hexdigest()
    if found != sha256:
        raise DigestMismatch(f"{key!r} in {store.uri}: expected digest {sha256}, got {found}")
