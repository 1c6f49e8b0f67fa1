"""A run's own records: its configuration, who drives it, and the pool version and reference tables it keeps to.

A run's name belongs to one configuration: a second one of different content is refused with both digests named. A run
keeps the pool version and the reference tables it began with, whatever happens to their inputs meanwhile.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quad_tasks.config import RunConfig, parse_config
from quad_tasks.storage.faults import StorageError
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.rounds import LEASE_TTL_S, LeaseLost, claim_run, list_rounds, release_run, renew_run
from quad_tasks.storage.store import check_conditional_create, connect, open_store

RENEWALS_PER_LEASE = 4


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


def load_run(workspace: str, run: str) -> RunConfig:
    """Read back a run's configuration from its workspace.

    Raises:
        StoreKeyError: there is no such run.
    """
    key = f"runs/{run}/config.json"
    body = read_manifest(open_store(workspace), key)
    where = body.pop("volatile")
    del body["digest"]
    return parse_config({**body, **where, "workspace": workspace}, key)


def list_runs(workspace: str) -> list[str]:
    """Name the runs of a workspace; none where there is no such place."""
    files, path = connect(f"{workspace}/runs")
    try:
        found = files.ls(path, detail=False)
    except OSError:
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


@contextmanager
def driving(config: RunConfig) -> Iterator[None]:
    """Hold the run's lease, renewed in the background, so that only one process drives it.

    Raises:
        RunInUse: another process drives the run.
        LeaseLost: another process took the run over meanwhile.
    """
    store = open_store(config.workspace)
    lease = claim_run(store, config.run)
    stop = threading.Event()
    lost: list[LeaseLost] = []

    def renew() -> None:
        nonlocal lease
        while not stop.wait(LEASE_TTL_S / RENEWALS_PER_LEASE):
            try:
                lease = renew_run(store, lease)
            except LeaseLost as error:
                lost.append(error)
                return
            except StorageError:
                continue  # the lease outlives a few renewals that the store did not answer

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        release_run(store, lease)
    if lost:
        raise lost[0]


def pin_pool(config: RunConfig, version: str) -> str:
    """Record the pool version the run keeps to."""
    store = open_store(config.workspace)
    body = {"version": version, "digest_of_version": read_manifest(store, version)["digest"]}
    write_manifest(store, f"runs/{config.run}/pool.json", body)
    return version


def pinned_pool(config: RunConfig) -> str | None:
    """Return the pool version the run keeps to, once it has one."""
    store = open_store(config.workspace)
    key = f"runs/{config.run}/pool.json"
    return read_manifest(store, key)["version"] if store.exists(key) else None


def pin_reference(config: RunConfig, reference: str) -> str:
    """Record the reference tables the run keeps to."""
    store = open_store(config.workspace)
    body = {"reference": reference, "digest_of_tables": read_manifest(store, f"{reference}/manifest.json")["digest"]}
    write_manifest(store, f"runs/{config.run}/reference.json", body)
    return reference


def pinned_reference(config: RunConfig) -> str | None:
    """Return the key of the reference tables the run keeps to, once it has them."""
    store = open_store(config.workspace)
    key = f"runs/{config.run}/reference.json"
    return read_manifest(store, key)["reference"] if store.exists(key) else None


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
