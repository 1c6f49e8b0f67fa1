"""The lease on a folder: of several processes one works there; the others stop, told who it is, or wait for their turn.

Owns ``<folder>/lease/<NNNNN>.json``, a numbered sequence of records of which the last one counts. Every change (claim,
renew, release, take over) creates the next number only if absent, so that of several processes that saw the same last
record one succeeds: compare-and-swap on stores that only have create-if-absent. Records are never deleted, or a slow
writer could create an old number again. A lease keeps processes from doing the same work; what keeps results right is
the manifest that commits each of them.
"""

import getpass
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import psutil
from pydantic import BaseModel, ConfigDict

from quad_tasks.storage.faults import StorageError
from quad_tasks.storage.manifest import encode_manifest, read_record
from quad_tasks.storage.store import Store

START_TOLERANCE_S = 60
"""Two readings of one process's start may differ by so much: the kernel counts it from the boot, whose time drifts."""
LEASE_TTL_S = 300.0
"""A lease not renewed for this long is stale; far above the clock skew of machines that keep time."""
RENEWALS_PER_LEASE = 4
WAIT_S = 2.0
"""Between two looks at a lease that is waited for."""


class LeaseHeld(StorageError, RuntimeError):
    """Another process works in the folder."""


class LeaseLost(StorageError, RuntimeError):
    """Another process took the folder over."""


class Owner(BaseModel):
    """A process: its host and user, its number there, and its start in UTC, which tells it from a later namesake."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    user: str
    pid: int
    started: datetime

    def __str__(self) -> str:
        """Name the process for a message."""
        return f"process {self.pid} of {self.user} on {self.host}, started {self.started.isoformat()}"


class LeaseRecord(BaseModel):
    """One record of a lease; ``token`` tells it from an equal one of a process that came second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: Owner
    expires_s: float
    token: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work in a folder until ``expires_s`` (seconds since 1970), held under record ``number``."""

    folder: str
    number: int
    owner: Owner
    expires_s: float


def this_process() -> Owner:
    """Return the running process as an owner."""
    return _process(os.getpid())


def claim_lease(
    store: Store,
    folder: str,
    owner: Owner | None = None,
    ttl_s: float = LEASE_TTL_S,
    now: Callable[[], float] = time.time,
) -> Lease:
    """Take the right to work in a folder, if no living process holds it.

    A lease is free when it was released, when it expired, or when its process ran on this host and is gone.

    Args:
        store: the workspace.
        folder: e.g. ``runs/<run>``.
        owner: the claimant; this process by default.
        ttl_s: seconds until the lease is stale unless renewed.
        now: the clock, in seconds since 1970.

    Raises:
        LeaseHeld: another process holds it; named with user, host, number and start.
    """
    owner = owner or this_process()
    last = _last_record(store, folder)
    if last is not None and _is_held(last[1], now()):
        raise _held(store, folder, last[1].owner)
    lease = Lease(folder, 0 if last is None else last[0] + 1, owner, now() + ttl_s)
    if not _append_record(store, lease):
        raise _held(store, folder, _record(store, folder, lease.number).owner)
    return lease


def renew_lease(store: Store, lease: Lease, ttl_s: float = LEASE_TTL_S, now: Callable[[], float] = time.time) -> Lease:
    """Extend a lease, even an expired one that nobody took; call it well within ``ttl_s`` of the last time.

    Returns:
        The lease that replaces ``lease``.

    Raises:
        LeaseLost: another process took the folder over; stop.
    """
    renewed = Lease(lease.folder, lease.number + 1, lease.owner, now() + ttl_s)
    if not _append_record(store, renewed):
        raise _lost(store, lease.folder, _record(store, lease.folder, renewed.number).owner)
    return renewed


def release_lease(store: Store, lease: Lease) -> None:
    """Give a folder back; a lease already lost to another process stays with that one."""
    _append_record(store, Lease(lease.folder, lease.number + 1, lease.owner, expires_s=0.0))


def check_lease(store: Store, folder: str) -> None:
    """Check that no other process works in the folder; ask before a commit, since one that slept may have lost it.

    Raises:
        LeaseLost: another living process holds the lease.
    """
    last = _last_record(store, folder)
    if last is not None and last[1].owner != this_process() and _is_held(last[1], time.time()):
        raise _lost(store, folder, last[1].owner)


@contextmanager
def hold_lease(store: Store, folder: str, on_wait: Callable[[Owner], None] | None = None) -> Iterator[None]:
    """Hold a folder's lease, renewed in the background.

    Args:
        store: the workspace.
        folder: e.g. ``runs/<run>``.
        on_wait: wait for a lease that is held, and say so once by this; None: do not wait.

    Raises:
        LeaseHeld: another process holds it, and there is no ``on_wait``.
        LeaseLost: another process took the folder over meanwhile.
    """
    lease = claim_lease(store, folder) if on_wait is None else _claim_in_turn(store, folder, on_wait)
    stop = threading.Event()
    lost: list[LeaseLost] = []

    def renew() -> None:
        nonlocal lease
        while not stop.wait(LEASE_TTL_S / RENEWALS_PER_LEASE):
            try:
                lease = renew_lease(store, lease)
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
        release_lease(store, lease)
    if lost:
        raise lost[0]


def _claim_in_turn(store: Store, folder: str, on_wait: Callable[[Owner], None]) -> Lease:
    told = False
    while True:
        try:
            return claim_lease(store, folder)
        except LeaseHeld:
            last = _last_record(store, folder)
            if not told and last is not None:
                on_wait(last[1].owner)
                told = True
            time.sleep(WAIT_S)


def _last_record(store: Store, folder: str) -> tuple[int, LeaseRecord] | None:
    """Return the number and content of the lease's last record; None where the folder was never claimed."""
    keys = store.list(f"{folder}/lease")
    numbers = [int(match[1]) for key in keys if (match := re.search(r"/lease/(\d+)\.json$", key))]
    if not numbers:
        return None
    return max(numbers), _record(store, folder, max(numbers))


def _record(store: Store, folder: str, number: int) -> LeaseRecord:
    return read_record(LeaseRecord, store, _lease_key(folder, number))


def _lease_key(folder: str, number: int) -> str:
    return f"{folder}/lease/{number:05d}.json"


def _append_record(store: Store, lease: Lease) -> bool:
    record = LeaseRecord(owner=lease.owner, expires_s=lease.expires_s, token=uuid4().hex)
    return store.put_if_absent(_lease_key(lease.folder, lease.number), encode_manifest(record.model_dump(mode="json")))


def _is_held(record: LeaseRecord, now_s: float) -> bool:
    return record.expires_s > now_s and not _is_gone(record.owner)


def _held(store: Store, folder: str, holder: Owner) -> LeaseHeld:
    return LeaseHeld(f"{folder!r} in {store.uri}: expected no other driver, got {holder}")


def _lost(store: Store, folder: str, holder: Owner) -> LeaseLost:
    return LeaseLost(f"{folder!r} in {store.uri}: expected to hold its lease, got it taken over by {holder}")


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
    return Owner(host=socket.gethostname(), user=_user(), pid=pid, started=started)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())
