"""A run's own records: its configuration, who drives it, and the pool version and reference tables it keeps to.

A run's name belongs to one configuration: a second one of different content is refused with both digests named. A run
keeps the pool version and the reference tables it began with, whatever happens to their inputs meanwhile.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from quad_tasks.config import RunConfig
from quad_tasks.config_file import parse_config
from quad_tasks.progress import notice
from quad_tasks.storage.faults import StoreKeyError
from quad_tasks.storage.lease import check_lease, hold_lease
from quad_tasks.storage.manifest import check_digest, read_manifest, write_manifest
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import Store, check_conditional_create, connect, open_store


def open_run(config: RunConfig) -> None:
    """Record the run's configuration, or check that it is the one recorded.

    Raises:
        ManifestMismatch: the run's name is taken by another configuration.
        UnsupportedStore: the workspace cannot create conditionally, so no commit would be safe.
    """
    store = open_store(config.workspace)
    check_conditional_create(store)
    where = config.model_dump(mode="json", include={"compute", "diagnosis", "workspace"})
    write_manifest(store, f"runs/{config.run}/config.json", {**config.identity(), "volatile": where})


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
    key, store = f"runs/{run}/config.json", open_store(workspace)
    if not store.exists(key):
        there = ", ".join(list_runs(workspace)) or "none"
        raise StoreKeyError(
            f"{key!r} in {store.uri}: expected a run named {run!r}, found none (runs there: {there}; --workspace says "
            "where to look)"
        )
    body = read_manifest(store, key)
    where = body.pop("volatile")
    del body["digest"]
    return parse_config({**body, **where, "workspace": workspace}, key, overrides)


def list_runs(workspace: str) -> list[str]:
    """Name the runs of a workspace; none where there is no such place."""
    files, path = connect(f"{workspace}/runs")
    try:
        found = files.ls(path, detail=False)
    except OSError:
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def driving(config: RunConfig) -> AbstractContextManager[None]:
    """Hold the run's lease, renewed in the background, so that only one process drives it.

    Raises:
        LeaseHeld: another process drives the run.
        LeaseLost: another process took the run over meanwhile.
    """
    return hold_lease(open_store(config.workspace), _folder(config.run))


def check_driver(workspace: str, run: str) -> None:
    """Check that no other process drives the run: one that slept past its lease stops here, before it commits.

    Raises:
        LeaseLost: another process took the run over.
    """
    check_lease(open_store(workspace), _folder(run))


def in_turn(store: Store, folder: str) -> AbstractContextManager[None]:
    """Hold the lease of a folder that several runs share; whoever comes second waits, and finds the work done.

    Raises:
        LeaseLost: another process took the folder over meanwhile.
    """
    return hold_lease(store, folder, lambda owner: notice(f"{folder}: waiting for {owner}, which works on it"))


def _folder(run: str) -> str:
    return f"runs/{run}"


def pin_pool(config: RunConfig, version: str) -> str:
    """Record the pool version the run keeps to."""
    store = open_store(config.workspace)
    body = {"version": version, "digest_of_version": read_manifest(store, version)["digest"]}
    write_manifest(store, f"runs/{config.run}/pool.json", body)
    return version


def pinned_pool(config: RunConfig) -> str | None:
    """Return the pool version the run keeps to, once it has one.

    Raises:
        DigestMismatch: it is no longer the version the run began with.
    """
    store = open_store(config.workspace)
    key = f"runs/{config.run}/pool.json"
    if not store.exists(key):
        return None
    pinned = read_manifest(store, key)
    version: str = pinned["version"]
    found = read_manifest(store, version)["digest"]
    check_digest(store, version, expected=pinned["digest_of_version"], got=found)
    return version


def pin_reference(config: RunConfig, reference: str) -> str:
    """Record the reference tables the run keeps to."""
    store = open_store(config.workspace)
    body = {"reference": reference, "digest_of_tables": read_manifest(store, f"{reference}/manifest.json")["digest"]}
    write_manifest(store, f"runs/{config.run}/reference.json", body)
    return reference


def pinned_reference(config: RunConfig) -> str | None:
    """Return the key of the reference tables the run keeps to, once it has them.

    Raises:
        DigestMismatch: they are no longer those the run began with.
    """
    store = open_store(config.workspace)
    key = f"runs/{config.run}/reference.json"
    if not store.exists(key):
        return None
    pinned = read_manifest(store, key)
    reference: str = pinned["reference"]
    tables = f"{reference}/manifest.json"
    check_digest(store, tables, expected=pinned["digest_of_tables"], got=read_manifest(store, tables)["digest"])
    return reference


def starting_checkpoint(config: RunConfig, version: str) -> str:
    """Return the checkpoint the pool version was tokenized for: the one whose data is chosen."""
    checkpoint: str = read_manifest(open_store(config.workspace), version)["model"]
    return checkpoint


def run_status(config: RunConfig) -> dict[str, Any]:
    """Say how far a run is: its pool version, rounds and tokens of each stage, and whether it is published."""
    store = open_store(config.workspace)
    stages = []
    for number in range(config.training.stages):
        committed = list_rounds(store, config.run, number)
        stages.append(
            {
                "stage": number,
                "rounds": len(committed),
                "scored_documents": sum(r.info["documents"] for r in committed),
                "accepted_tokens": sum(r.info["accepted_tokens"] for r in committed),
                "selected": store.exists(f"runs/{config.run}/stage-{number:02d}/selected.json"),
                "trained": store.exists(f"runs/{config.run}/stage-{number:02d}/trained/selected-0/losses.json"),
            }
        )
    return {
        "run": config.run,
        "pool": pinned_pool(config),
        "stages": stages,
        "published": store.exists(f"runs/{config.run}/selection/manifest.json"),
        "reported": store.exists(f"runs/{config.run}/report/report.json"),
    }
