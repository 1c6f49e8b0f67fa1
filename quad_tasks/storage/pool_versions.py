"""Versions of a pool: numbered manifests, each of which makes a set of tables the pool's state at one time.

Owns the numbers. One is claimed before its version is committed, by an object that stays: a number never names two
versions, whatever is pruned or deleted by hand. Versions are found by a listing, so that one that is gone hides none.
"""

import re

from quad_tasks.manifests.pool import PoolVersion, VersionNumber
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.keys import pool_folder, version_key, version_number_key
from quad_tasks.storage.manifest import ManifestMismatch, encode_manifest, read_manifest, write_manifest
from quad_tasks.storage.store import Store


def commit_version(store: Store, version: PoolVersion) -> str:
    """Commit a version under a number of its own and return its manifest's key; one of the same tables is kept."""
    while True:
        existing = find_version(store, version.pool, version.tables)
        if existing is not None:
            return existing
        key = version_key(version.pool, _claim_number(store, version.pool, version.tables))
        try:
            write_manifest(store, key, version)
        except ManifestMismatch:  # another refresh took the number first
            continue
        return key


def read_version(store: Store, key: str) -> PoolVersion:
    """Read the manifest of a pool version.

    Raises:
        StoreKeyError: the version was pruned, or never was.
    """
    try:
        return read_manifest(PoolVersion, store, key)
    except StoreKeyError:
        pool, number = key.split("/")[1], version_numbers(key)[-1:]
        if number and read_number(store, pool, number[0]).pruned:
            raise StoreKeyError(f"{key!r} in {store.uri}: expected a pool version, found that it was pruned") from None
        raise


def list_versions(store: Store, pool: str, pruned: bool = False) -> list[tuple[str, PoolVersion]]:
    """Return the pool's versions, oldest first: each one's manifest key and manifest.

    Args:
        store: the workspace.
        pool: the pool's name.
        pruned: those alone whose pruning was begun, in place of those that stand.
    """
    found = []
    for key in store.list(pool_folder(pool)):
        number = version_numbers(key)
        if number and read_number(store, pool, number[0]).pruned == pruned:
            found.append((number[0], key))
    return [(key, read_version(store, key)) for _, key in sorted(found)]


def find_version(store: Store, pool: str, tables: str) -> str | None:
    """Return the manifest key of the version made of `tables`, if there is one."""
    return next((key for key, version in list_versions(store, pool) if version.tables == tables), None)


def version_numbers(key: str) -> list[int]:
    """Return the number that a version manifest's key names, alone in a list; empty for any other key."""
    match = re.fullmatch(r"pools/[^/]+/v(\d+)/manifest\.json", key)
    return [int(match[1])] if match else []


def read_number(store: Store, pool: str, number: int) -> VersionNumber:
    """Read what a number was claimed for; versions of earlier Quad claimed none."""
    key = version_number_key(pool, number)
    return read_manifest(VersionNumber, store, key) if store.exists(key) else VersionNumber(tables="", pruned=False)


def retire_number(store: Store, pool: str, key: str, version: PoolVersion) -> None:
    """Mark a version as pruned, before anything of it is removed: nothing finds it from then on."""
    retired = VersionNumber(tables=version.tables, pruned=True)
    store.put(version_number_key(pool, version_numbers(key)[0]), encode_manifest(retired))


def _claim_number(store: Store, pool: str, tables: str) -> int:
    """Claim the next number; one that an interrupted commit of the same tables claimed is taken up again."""
    keys = store.list(pool_folder(pool))
    folder = re.escape(version_number_key(pool, 0).rpartition("/")[0])
    claimed = sorted(int(match[1]) for key in keys if (match := re.fullmatch(rf"{folder}/(\d+)\.json", key)))
    used = {number for key in keys for number in version_numbers(key)}
    for number in claimed:
        if number not in used and read_number(store, pool, number) == VersionNumber(tables=tables, pruned=False):
            return number
    number = max([0, *claimed, *used]) + 1
    while not store.put_if_absent(
        version_number_key(pool, number), encode_manifest(VersionNumber(tables=tables, pruned=False))
    ):
        number += 1
    return number
