"""Remove old versions of a pool that no run keeps to: their tables, and what no other version was made from.

Works while holding the pool's lease. A version's number is retired before anything of it is removed and is never given
again, so that an interrupted pruning is gone on with and nothing finds half a version.
"""

from typing import Any

from quad_tasks.manifests.base import Manifest
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.manifests.run import PinnedPool
from quad_tasks.runtime.run import list_runs, wait_for_lease
from quad_tasks.storage.errors import StorageError, StoreKeyError
from quad_tasks.storage.keys import pinned_pool_key, pool_folder
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.manifest_tree import named_by
from quad_tasks.storage.pool_versions import list_versions, retire_number
from quad_tasks.storage.store import Store, open_store

Versions = list[tuple[str, PoolVersion]]


def prune_pool(workspace: str, pool: str, keep: int = 1, dry_run: bool = False) -> dict[str, Any]:
    """Remove a pool's versions but the last ones and those that runs keep to.

    Args:
        workspace: path or URI.
        pool: the pool's name.
        keep: how many of the last versions stay, at least 1.
        dry_run: only count.

    Returns:
        `versions`: each one's manifest key, its documents, and why it is kept (`last`, `run <name>`) or `pruned`;
        `objects` and `size_bytes` of what is removed.

    Raises:
        StoreKeyError: there is no such pool.
        StorageError: what a run keeps to cannot be read, or a version's manifests cannot: nothing is removed.
    """
    store = open_store(workspace)
    with wait_for_lease(store, pool_folder(pool)):
        versions = list_versions(store, pool)
        if not versions:
            raise StoreKeyError(f"pool {pool!r} in {store.uri}: expected versions of it, found none")
        why = {key: f"run {run}" for run, key in sorted(_pinned(store, workspace).items())}
        why |= {key: "last" for key, _ in versions[-max(1, keep) :]}
        going = [(key, version) for key, version in versions if key not in why]
        begun = list_versions(store, pool, pruned=True)
        keys = _own_keys(store, [*begun, *going], [(key, version) for key, version in versions if key in why])
        size = sum(store.size(key) for key in keys)
        if not dry_run:
            for key, version in going:
                retire_number(store, pool, key, version)
            for key in keys:
                store.delete(key)
    rows = [
        {"version": key, "documents": version.documents, "kept_for": why.get(key, "pruned")}
        for key, version in versions
    ]
    return {"dry_run": dry_run, "objects": len(keys), "size_bytes": size, "versions": rows}


def _pinned(store: Store, workspace: str) -> dict[str, str]:
    """Return the version that each run of a workspace keeps to."""
    return {
        run: read_manifest(PinnedPool, store, pinned_pool_key(run)).version
        for run in list_runs(workspace)
        if store.exists(pinned_pool_key(run))
    }


def _own_keys(store: Store, going: Versions, staying: Versions) -> list[str]:
    """List what versions that go alone were made from and consist of, each one's manifest last."""
    kept = {key for _, version in staying for key in _all_keys(store, version)}
    own = {key for _, version in going for key in _all_keys(store, version, forgiving=True)} - kept
    own |= {key for version_key, _ in going for key in store.list(version_key.rpartition("/")[0])}
    manifests = [key for key, _ in going]
    return [*sorted(key for key in own - set(manifests) if store.exists(key)), *manifests]


def _all_keys(store: Store, version: PoolVersion, forgiving: bool = False) -> set[str]:
    """List what a version names inside its pool, and what that names in turn.

    Args:
        store: the workspace.
        version: its manifest.
        forgiving: leave out what cannot be read: of a version whose pruning was begun.
    """
    folder = f"{pool_folder(version.pool)}/"
    found: set[str] = set()
    wave: dict[str, Manifest] = {f"{folder}v/manifest.json": version}
    while wave:
        links: dict[str, type[Manifest]] = {}
        for key, manifest in wave.items():
            more, files = named_by(key, manifest)
            found |= {name for name in files if name.startswith(folder)}
            links |= {name: model for name, model in more.items() if name.startswith(folder) and name not in found}
        found |= set(links)
        wave = {}
        for key, model in links.items():
            try:
                wave[key] = read_manifest(model, store, key)
            except StorageError:
                if not forgiving:
                    raise
    return found
