"""The round ledger: what every round did, committed by one manifest, and the lease that lets one process drive a run.

Owns ``runs/<run>/stage-<NN>/round-<NNNNN>/``. A round's tables are written first, under names that hold their own
digests, then ``manifest.json`` is created only if absent: the round exists from that moment on, whole. Equal work thus
gives equal keys and an equal manifest, and unequal work never meets. Refuses a second commit of a round, a ledger with
a gap, a table whose bytes are not those committed. A killed attempt may leave tables that no manifest names;
`orphaned_tables` lists them.

The lease is ``runs/<run>/lease/<NNNNN>.json``, a numbered sequence of records of which the last one counts. Every
change (claim, renew, release, take over) creates the next number only if absent, so that of several processes that
saw the same last record one succeeds: compare-and-swap on stores that only have create-if-absent. Records are never
deleted, or a slow writer could create an old number again. The lease keeps two drivers from wasting work; what keeps
the ledger right is the manifest of each round.
"""

import functools
import hashlib
import io
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from quad_tasks.storage.faults import InvalidKey, StorageError
from quad_tasks.storage.manifest import (
    DIGEST_FIELD,
    VOLATILE_FIELD,
    InvalidManifest,
    check_digest,
    encode_manifest,
    read_manifest,
)
from quad_tasks.storage.pool import COMPRESSION, COMPRESSION_LEVEL
from quad_tasks.storage.store import Store

ROW_GROUP_ROWS = 65_536
LISTING_THREADS = 8
START_TOLERANCE_S = 60
"""Two readings of one process's start may differ by so much: the kernel counts it from the boot, whose time drifts."""
DIGEST_CHARACTERS = 16
LEASE_TTL_S = 300.0
"""A lease not renewed for this long is stale; far above the clock skew of machines that keep time."""


Model = TypeVar("Model", bound=BaseModel)


class RoundAlreadyCommitted(StorageError, FileExistsError):
    """The round stands in the ledger already."""


class LedgerGap(StorageError, ValueError):
    """A round is missing between committed ones."""


class RunInUse(StorageError, RuntimeError):
    """Another process drives the run."""


class LeaseLost(StorageError, RuntimeError):
    """Another process took the run over."""


class Owner(BaseModel):
    """A process: its host's name, its number there, and its start in UTC, which tells it from a later namesake."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    started: datetime

    def __str__(self) -> str:
        """Name the process for a message."""
        return f"process {self.pid} on {self.host}, started {self.started.isoformat()}"


class TableEntry(BaseModel):
    """One table of a round: its key, number of rows, and the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    rows: int
    sha256: str


class LeaseRecord(BaseModel):
    """One record of the lease; ``token`` tells it from an equal one of a process that came second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Owner
    expires_s: float
    token: str


class RoundManifest(BaseModel):
    """A committed round: its place, its tables by name (arms, pulls, scores), and what its stage noted in ``info``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stage: int
    round: int
    owner: Owner
    tables: dict[str, TableEntry]
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive a run until ``expires_s`` (seconds since 1970), held under record ``number``."""

    run: str
    number: int
    owner: Owner
    expires_s: float


def this_process() -> Owner:
    """Return the running process as an owner."""
    return _process(os.getpid())


def commit_round(
    store: Store, run: str, stage: int, round: int, tables: Mapping[str, pa.Table], info: Mapping[str, Any]
) -> RoundManifest:
    """Write a round's tables, then commit them by creating its manifest.

    Args:
        store: the workspace.
        run: the run's name, one part of a key.
        stage: number of the stage, from 0.
        round: number of the round in its stage, from 0.
        tables: name -> rows; ``arms``, ``pulls`` and ``scores``.
        info: JSON values worth keeping with the round.

    Returns:
        The manifest as committed.

    Raises:
        RoundAlreadyCommitted: the round stands in the ledger; nothing of it has changed.
    """
    folder = f"{_stage_folder(run, stage)}/round-{round:05d}"
    entries = {name: _write_table(store, folder, name, table) for name, table in tables.items()}
    manifest = RoundManifest(run=run, stage=stage, round=round, owner=this_process(), tables=entries, info=dict(info))
    key = f"{folder}/manifest.json"
    if not store.put_if_absent(key, encode_manifest(_to_body(manifest))):
        owner = _read_round(store, key).owner
        raise RoundAlreadyCommitted(f"{key!r} in {store.uri}: expected no manifest, got one committed by {owner}")
    return manifest


def _write_table(store: Store, folder: str, name: str, table: pa.Table) -> TableEntry:
    file = io.BytesIO()
    pq.write_table(table, file, compression=COMPRESSION, compression_level=COMPRESSION_LEVEL)
    data = file.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{folder}/{name}-{sha256[:DIGEST_CHARACTERS]}.parquet"
    store.put(key, data)
    return TableEntry(key=key, rows=table.num_rows, sha256=sha256)


def list_rounds(store: Store, run: str, stage: int) -> list[RoundManifest]:
    """Return a stage's committed rounds in order, from round 0.

    Raises:
        LedgerGap: a round is missing below a committed one.
        InvalidManifest: a manifest cannot be read as one.
        DigestMismatch: a manifest's content is not what its digest says.
    """
    keys = [_manifest_key(run, stage, number) for number in range(count_rounds(store, run, stage))]
    with ThreadPoolExecutor(LISTING_THREADS) as readers:
        return list(readers.map(functools.partial(_read_round, store), keys))


def count_rounds(store: Store, run: str, stage: int) -> int:
    """Return how many rounds of a stage are committed: the next one's number.

    Raises:
        LedgerGap: a round is missing below a committed one.
    """
    folder = _stage_folder(run, stage)
    found = (re.fullmatch(r"round-(\d+)/manifest\.json", key[len(folder) + 1 :]) for key in store.list(folder))
    numbers = sorted(int(match[1]) for match in found if match)
    for expected, number in enumerate(numbers):
        if expected != number:
            raise LedgerGap(f"{folder!r} in {store.uri}: expected round {expected}, got round {number} next")
    return len(numbers)


def read_round(store: Store, run: str, stage: int, round: int) -> RoundManifest:
    """Return one committed round.

    Raises:
        StoreKeyError: it is not committed.
        InvalidManifest: its manifest cannot be read as one.
        DigestMismatch: its manifest's content is not what its digest says.
    """
    return _read_round(store, _manifest_key(run, stage, round))


def read_round_table(store: Store, manifest: RoundManifest, name: str) -> pa.Table:
    """Read one table of a committed round.

    Raises:
        StoreKeyError: the table is gone.
        DigestMismatch: its bytes are not those committed.
    """
    entry = manifest.tables[name]
    data = store.get(entry.key)
    check_digest(store, entry.key, expected=entry.sha256, got=hashlib.sha256(data).hexdigest())
    return pq.read_table(io.BytesIO(data))


def orphaned_tables(store: Store, run: str) -> list[str]:
    """Return the keys of round tables that no manifest names.

    Those still being written are among them: ask only while holding the run's lease.
    """
    keys = store.list(_run_folder(run))
    committed: set[str] = set()
    for key in keys:
        if re.search(r"/stage-\d+/round-\d+/manifest\.json$", key):
            committed.update(entry.key for entry in _read_round(store, key).tables.values())
    return [key for key in keys if re.search(r"/stage-\d+/round-\d+/.+\.parquet$", key) and key not in committed]


def claim_run(
    store: Store, run: str, owner: Owner | None = None, ttl_s: float = LEASE_TTL_S, now: Callable[[], float] = time.time
) -> Lease:
    """Take the right to drive a run, if no living process holds it.

    A lease is free when it was released, when it expired, or when its process ran on this host and is gone.

    Args:
        store: the workspace.
        run: the run's name.
        owner: the claimant; this process by default.
        ttl_s: seconds until the lease is stale unless renewed.
        now: the clock, in seconds since 1970.

    Raises:
        RunInUse: another process holds the run; named with host, number and start.
    """
    owner = owner or this_process()
    last = _last_record(store, run)
    if last is not None and last[1].expires_s > now() and not _is_gone(last[1].owner):
        raise _in_use(store, run, last[1].owner)
    lease = Lease(run, 0 if last is None else last[0] + 1, owner, now() + ttl_s)
    if not _append_record(store, lease):
        raise _in_use(store, run, _record(store, run, lease.number).owner)
    return lease


def renew_run(store: Store, lease: Lease, ttl_s: float = LEASE_TTL_S, now: Callable[[], float] = time.time) -> Lease:
    """Extend a lease, even an expired one that nobody took; call it well within ``ttl_s`` of the last time.

    Returns:
        The lease that replaces ``lease``.

    Raises:
        LeaseLost: another process took the run over; stop.
    """
    renewed = Lease(lease.run, lease.number + 1, lease.owner, now() + ttl_s)
    if not _append_record(store, renewed):
        holder = _record(store, lease.run, renewed.number).owner
        raise LeaseLost(f"run {lease.run!r} in {store.uri}: expected to hold its lease, got it taken over by {holder}")
    return renewed


def release_run(store: Store, lease: Lease) -> None:
    """Give a run back; a lease already lost to another process stays with that one."""
    _append_record(store, Lease(lease.run, lease.number + 1, lease.owner, expires_s=0.0))


def _run_folder(run: str) -> str:
    if "/" in run:
        raise InvalidKey(f"expected a run's name without '/', got {run!r}")
    return f"runs/{run}"


def _stage_folder(run: str, stage: int) -> str:
    return f"{_run_folder(run)}/stage-{stage:02d}"


def _manifest_key(run: str, stage: int, round: int) -> str:
    return f"{_stage_folder(run, stage)}/round-{round:05d}/manifest.json"


def _to_body(manifest: RoundManifest) -> dict[str, Any]:
    body = manifest.model_dump(mode="json")
    return body | {VOLATILE_FIELD: {"owner": body.pop("owner")}}


def _read_round(store: Store, key: str) -> RoundManifest:
    return _read_as(RoundManifest, store, key)


def _read_as(model: type[Model], store: Store, key: str) -> Model:
    body = read_manifest(store, key)
    del body[DIGEST_FIELD]
    try:
        return model.model_validate({**body.pop(VOLATILE_FIELD, {}), **body})
    except ValidationError as error:
        raise InvalidManifest(f"{key!r} in {store.uri}: expected a {model.__name__}, got {error}") from error


def _last_record(store: Store, run: str) -> tuple[int, LeaseRecord] | None:
    """Return the number and content of the lease's last record; None where the run was never claimed."""
    folder = f"{_run_folder(run)}/lease"
    numbers = [int(match[1]) for key in store.list(folder) if (match := re.search(r"/lease/(\d+)\.json$", key))]
    if not numbers:
        return None
    return max(numbers), _record(store, run, max(numbers))


def _record(store: Store, run: str, number: int) -> LeaseRecord:
    return _read_as(LeaseRecord, store, _lease_key(run, number))


def _lease_key(run: str, number: int) -> str:
    return f"{_run_folder(run)}/lease/{number:05d}.json"


def _in_use(store: Store, run: str, holder: Owner) -> RunInUse:
    return RunInUse(f"run {run!r} in {store.uri}: expected no other driver, got {holder}")


def _append_record(store: Store, lease: Lease) -> bool:
    record = LeaseRecord(owner=lease.owner, expires_s=lease.expires_s, token=uuid4().hex)
    return store.put_if_absent(_lease_key(lease.run, lease.number), encode_manifest(record.model_dump(mode="json")))


def _is_gone(owner: Owner) -> bool:
    if owner.host != socket.gethostname():
        return False
    try:
        started = _process(owner.pid).started
        is_zombie = psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    return is_zombie or abs((started - owner.started).total_seconds()) > START_TOLERANCE_S


def _process(pid: int) -> Owner:
    started = datetime.fromtimestamp(int(psutil.Process(pid).create_time()), UTC)
    return Owner(host=socket.gethostname(), pid=pid, started=started)
