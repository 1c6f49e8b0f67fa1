"""A run's own records: its configuration, who drives it, and the pool version and reference tables it keeps to.

A run's name belongs to one configuration: a second one of different content is refused with both digests named. A run
keeps the pool version and the reference tables it began with, whatever happens to their inputs meanwhile.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.run import PinnedPool, PinnedReference, RunRecord
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.versions import computing_versions, describe_differences
from quad_tasks.storage.errors import StoreKeyError, call_with_retries, redact
from quad_tasks.storage.keys import manifest_key, pinned_pool_key, pinned_reference_key, run_folder, run_record_key
from quad_tasks.storage.lease import check_lease, delete_as_holder, hold_lease
from quad_tasks.storage.manifest import (
    ManifestMismatch,
    check_digest,
    digest,
    read_digest,
    read_manifest,
    write_manifest,
)
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store, check_conditional_create, connect, open_store


def open_run(store: Store, config: RunConfig) -> None:
    """Record the run's configuration and the versions it computes with, or check that they are those recorded.

    Raises:
        ManifestMismatch: the run's name is taken by another configuration, or the run began with other versions.
        UnsupportedStore: the workspace cannot create conditionally, so no commit would be safe.
    """
    check_conditional_create(store)
    where = config.model_dump(mode="json", include={"compute", "diagnosis", "workspace"})
    record = RunRecord(config=config.identity(), where=where, versions=computing_versions())
    key = run_record_key(config.run)
    if store.exists(key):
        began = read_manifest(RunRecord, store, key)
        if digest(began.config) == digest(record.config):
            _refuse_other_versions(store, key, began, record)
            return
    write_manifest(store, key, record)


def _refuse_other_versions(store: Store, key: str, began: RunRecord, now: RunRecord) -> None:
    differences = describe_differences(began.versions, now.versions)
    if began.versions and differences:  # earlier versions of Quad recorded none
        raise ManifestMismatch(
            f"{key!r} in {store.uri}: expected the versions the run began with, got {differences}: install those to go "
            "on with it, or give the run another name"
        )


def load_run(workspace: str, run: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read back a run's configuration from its workspace.

    Args:
        workspace: path or URI.
        run: the run's name.
        overrides: `a.b=value` assignments; only what is no part of the result's identity may differ in a resume.

    Raises:
        StoreKeyError: there is no such run.
        ConfigError: an override is not what is expected.
    """
    key, store = run_record_key(run), open_store(workspace)
    if not store.exists(key):
        there = ", ".join(list_runs(workspace)) or "none"
        raise StoreKeyError(
            f"{key!r} in {store.uri}: expected a run named {run!r}, found none (runs there: {there}; --workspace says "
            "where to look)"
        )
    record = read_manifest(RunRecord, store, key)
    return parse_config({**record.config, **record.where, "workspace": workspace}, key, overrides)


def list_runs(workspace: str) -> list[str]:
    """Name the runs of a workspace; none where there is no such place.

    Raises:
        StorageError: the workspace does not answer or refuses; what no run seems to need may be removed.
    """
    place = f"{workspace}/runs"
    files, path = connect(place)
    try:
        found: list[str] = call_with_retries(lambda: files.ls(path, detail=False), redact(place))
    except StoreKeyError:
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def hold_run_lease(store: Store, run: str) -> AbstractContextManager[None]:
    """Hold the run's lease, renewed in the background, so that only one process drives it.

    Raises:
        LeaseHeld: another process drives the run.
        LeaseLost: another process took the run over meanwhile.
    """
    return hold_lease(store, run_folder(run))


def check_run_lease(store: Store, run: str) -> None:
    """Check that this process still drives the run: one that slept past its lease stops here, before it commits.

    Raises:
        LeaseLost: another process took the run over, though it may have ended since.
    """
    check_lease(store, run_folder(run))


def delete_as_driver(store: Store, run: str, folder: str) -> None:
    """Delete what lies in a folder that the run's driver alone writes to.

    Raises:
        LeaseLost: another process took the run over, so that the folder's files may be its own; none is deleted.
    """
    delete_as_holder(store, run_folder(run), folder)


def wait_for_lease(store: Store, folder: str) -> AbstractContextManager[None]:
    """Hold the lease of a folder that several runs share; whoever comes second waits, and finds the work done.

    Raises:
        LeaseLost: another process took the folder over meanwhile.
    """
    return hold_lease(store, folder, lambda owner: notice(f"{folder}: waiting for {owner}, which works on it"))


def pin_pool(store: Store, run: str, version: str) -> str:
    """Record the pool version the run keeps to."""
    pinned = PinnedPool(version=version, digest_of_version=read_digest(store, version))
    check_run_lease(store, run)
    write_manifest(store, pinned_pool_key(run), pinned)
    return version


def pinned_pool(store: Store, run: str) -> str | None:
    """Return the pool version the run keeps to, once it has one.

    Raises:
        DigestMismatch: it is no longer the version the run began with.
    """
    key = pinned_pool_key(run)
    if not store.exists(key):
        return None
    pinned = read_manifest(PinnedPool, store, key)
    found = read_digest(store, pinned.version)
    check_digest(store, pinned.version, expected=pinned.digest_of_version, got=found)
    return pinned.version


def pin_reference(store: Store, run: str, reference: str) -> str:
    """Record the reference tables the run keeps to."""
    pinned = PinnedReference(reference=reference, digest_of_tables=read_digest(store, manifest_key(reference)))
    check_run_lease(store, run)
    write_manifest(store, pinned_reference_key(run), pinned)
    return reference


def pinned_reference(store: Store, run: str) -> str | None:
    """Return the key of the reference tables the run keeps to, once it has them.

    Raises:
        DigestMismatch: they are no longer those the run began with.
    """
    key = pinned_reference_key(run)
    if not store.exists(key):
        return None
    pinned = read_manifest(PinnedReference, store, key)
    tables = manifest_key(pinned.reference)
    check_digest(store, tables, expected=pinned.digest_of_tables, got=read_digest(store, tables))
    return pinned.reference


def starting_checkpoint(store: Store, version: str) -> str:
    """Return the checkpoint the pool version was tokenized for: the one whose data is chosen."""
    return read_version(store, version).model
