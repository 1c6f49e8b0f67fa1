"""Remove what interrupted attempts of a run left behind: objects that no manifest names or will name.

Works only while holding the run's lease, so that nobody else may commit to it. A process that slept past its lease may
still be about to: what is younger than an hour stays. Refuses to touch what several runs share unless the manifest that
ends its use is committed: an unfinished pool build or fit is what a resume goes on from.
"""

import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from quad_tasks.config.schema import RunConfig
from quad_tasks.runtime.run import hold_run_lease
from quad_tasks.stages.selection.publish import read_selection
from quad_tasks.storage.atomic_write import TEMPORARY_PREFIX
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.keys import (
    clusterings_folder,
    dealt_distances_folder,
    dealt_hashes_folder,
    manifest_key,
    pool_folder,
    run_folder,
    selection_folder,
    selection_part_key,
    shuffle_folder,
    steps_key,
)
from quad_tasks.storage.lease import lease_holder
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.rounds import orphaned_tables
from quad_tasks.storage.store import PROBE_FOLDER, Store, open_store

SHARED_FOLDERS = ("pools", "models", "references", "factors")
ABANDONED_AFTER_S = 3600.0
"""What is untouched for this long belongs to no living process: a table is written in minutes, a lease ends in five."""


def clean_run(config: RunConfig, dry_run: bool = False) -> dict[str, Any]:
    """Remove a run's leftovers, or only count them.

    Returns:
        `dry_run`, `objects` and `size_bytes` over all, `too_young`: how many objects stay because they were written
        within `ABANDONED_AFTER_S`, and `leftovers`: objects and bytes by kind.

    Raises:
        LeaseHeld: another process drives the run.
    """
    store = open_store(config.workspace)
    with hold_run_lease(store, config.run):
        young = 0
        objects: dict[str, dict[str, int]] = {}
        for kind, keys in find_leftovers(store, config).items():
            objects[kind], more = _old(store, keys)
            young += more
        files = find_unfinished(store, config)
        sizes = {kind: list(found.values()) for kind, found in objects.items()}
        sizes["unfinished_files"] = [path.lstat().st_size for path in files]
        if not dry_run:
            for key in (key for keys in objects.values() for key in keys):
                store.delete(key)
            for path in files:
                path.unlink(missing_ok=True)
    counts = {kind: {"objects": len(found), "size_bytes": sum(found)} for kind, found in sizes.items()}
    total = {name: sum(count[name] for count in counts.values()) for name in ("objects", "size_bytes")}
    return {"dry_run": dry_run, **total, "too_young": young, "leftovers": counts}


def find_leftovers(store: Store, config: RunConfig) -> dict[str, list[str]]:
    """Return the keys that no manifest names, by kind; what a living driver is writing is among them."""
    return {
        "round_tables": orphaned_tables(store, config.run),
        "stage_tables": list(_abandoned_tables(store, config.run)),
        "training_states": list(_finished_states(store, config.run)),
        "selection_parts": list(_unnamed_parts(store, config.run)),
        "factor_chunks": list(_finished_chunks(store)),
        "build_tables": list(_finished_shuffles(store, config.pool.name)),
        "dealt_rows": list(_dealt_rows(store, config.pool.name)),
        "probes": store.list(PROBE_FOLDER),
    }


def _old(store: Store, keys: list[str]) -> tuple[dict[str, int], int]:
    """Return the sizes of keys that have long not been written, and how many are younger.

    Folders that runs share are cleaned by others too, and who makes a probe removes it: a key that is gone meanwhile is
    neither.
    """
    latest = time.time() - ABANDONED_AFTER_S
    sizes, young = {}, 0
    for key in keys:
        with suppress(StoreKeyError):
            if store.modified_s(key) <= latest:
                sizes[key] = store.size(key)
            else:
                young += 1
    return sizes, young


def find_unfinished(store: Store, config: RunConfig) -> list[Path]:
    """Return the unfinished files of the run and of shared folders that no living process can be writing."""
    return [path for folder in (run_folder(config.run), *SHARED_FOLDERS) for path in _unfinished_files(store, folder)]


def _unfinished_files(store: Store, prefix: str) -> list[Path]:
    """Return the unfinished files inside the folder `prefix` that have long not been written; local stores only.

    On a remote store an unfinished object does not exist; unfinished multipart uploads are ended by the bucket's own
    lifecycle rule.
    """
    folder = store.local_path(prefix)
    if folder is None:
        return []
    latest = time.time() - ABANDONED_AFTER_S
    found = []
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):  # its writer ended meanwhile
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) and status.st_mtime <= latest:
                found.append(path)
    return sorted(found)


def _abandoned_tables(store: Store, run: str) -> Iterator[str]:
    """Yield the rankings and predictions of the pool that stages work from; a resume makes its own again."""
    folder = run_folder(run)
    pattern = re.compile(r"/stage-\d+/(rankings|predictions)/.+")
    yield from (key for key in store.list(folder) if pattern.fullmatch(key.removeprefix(folder)))


def _finished_states(store: Store, run: str) -> Iterator[str]:
    """Yield the last states of trainings that are measured: nothing goes on from them."""
    keys = store.list(run_folder(run))
    trained = {key.removesuffix("/losses.json") for key in keys if key.endswith("/losses.json")}
    yield from sorted({steps_key(one) for one in trained} & set(keys))


def _unnamed_parts(store: Store, run: str) -> Iterator[str]:
    folder = selection_folder(run)
    if not store.exists(manifest_key(folder)):
        return
    named = {selection_part_key(folder, part.name) for part in read_selection(store, run).parts}
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
    """Yield the shuffled pieces of builds that became a version."""
    for build in {version.tables for _, version in list_versions(store, pool)}:
        yield from store.list(shuffle_folder(build))


def _dealt_rows(store: Store, pool: str) -> Iterator[str]:
    """Yield hashes and distances that were dealt out for a pool that nobody works at; a resume deals anew."""
    if lease_holder(store, pool_folder(pool)) is not None:
        return
    yield from store.list(dealt_hashes_folder(pool))
    for key in store.list(clusterings_folder(pool)):
        clustering = key[: key.index("/", len(clusterings_folder(pool)) + 1)]
        if key.startswith(f"{dealt_distances_folder(clustering)}/"):
            yield key
