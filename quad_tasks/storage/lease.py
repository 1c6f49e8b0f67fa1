"""The lease on a folder: of several processes one works there; the others stop, told who it is, or wait for their turn.

Owns ``<folder>/lease/<NNNNN>.json``, a numbered sequence of records of which the last one counts. Every change (claim,
renew, release, take over) creates the next number only if absent, so that of several processes that saw the same last
record one succeeds: compare-and-swap on stores that only have create-if-absent. Only the last few records are kept; a
writer so slow that its number was removed meanwhile finds a later one once it looks, and has not claimed anything. A
lease keeps processes from doing the same work; what keeps results right is the manifest that commits each of them,
before which its writer asks whether the lease is still its own.
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
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil
from pydantic import BaseModel, ConfigDict

from quad_tasks.manifests.base import Manifest
from quad_tasks.storage.errors import StorageError, StoreKeyError
from quad_tasks.storage.manifest import DigestMismatch, InvalidManifest, encode_manifest, read_manifest
from quad_tasks.storage.store import Store

START_TOLERANCE_S = 60
"""Two readings of one process's start by the clock may differ by so much: the clock is set and drifts."""
LEASE_TTL_S = 300.0
"""A lease not renewed for this long is stale; far above the clock skew of machines that keep time."""
RENEWALS_PER_LEASE = 4
KEPT_RECORDS = 8
"""Of a lease, for people: older ones go as new ones are made."""
BOOT_ID, PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
"""Where Linux says which boot of which machine this is, and in which processes' numbers this process's own counts."""
PROCESS_STAT, START_FIELD = "/proc/{pid}/stat", 22
"""Where Linux says when a process started, in clock ticks since the boot, and in which field (proc_pid_stat(5))."""
WAIT_S = 2.0
"""Between two looks at a lease that is waited for."""


class LeaseHeld(StorageError, RuntimeError):
    """Another process works in the folder."""


class LeaseLost(StorageError, RuntimeError):
    """Another process took the folder over."""


class Owner(BaseModel):
    """A process: its host and user, its number there, and its start in UTC, which tells it from a later namesake.

    Containers may share a host's name and number their processes alike: `boot` tells machines and their boots apart,
    `pid_namespace` the containers of one. `start_ticks` is the start in clock ticks since the boot, which stays as it
    is when somebody sets the clock. They are empty where the system does not say, and in older records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    user: str
    pid: int
    started: datetime
    boot: str = ""
    pid_namespace: str = ""
    start_ticks: int | None = None

    def __str__(self) -> str:
        """Name the process for a message."""
        return f"process {self.pid} of {self.user} on {self.host}, started {self.started.isoformat()}"


class LeaseRecord(Manifest):
    """One record of a lease; ``token`` tells it from an equal one of a process that came second."""

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
    """Return the running process as an owner, the same one as long as it runs, whatever becomes of the clock."""
    return _process(os.getpid(), _start_ticks(os.getpid()))


def claim_lease(
    store: Store,
    folder: str,
    owner: Owner | None = None,
    ttl_s: float = LEASE_TTL_S,
    now: Callable[[], float] = time.time,
) -> Lease:
    """Take the right to work in a folder, if no living process holds it.

    A lease is free when it was released, when it expired, or when its process was one of this machine's, in this boot
    and this container, and is gone.

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
    number, last = _last_record(store, folder)
    if last is not None and _is_held(last, now()):
        raise _held(store, folder, last.owner)
    lease = Lease(folder, number + 1, owner, now() + ttl_s)
    if not _append_record(store, lease):
        _, first = _last_record(store, folder)
        raise _held(store, folder, first.owner if first else owner)
    return lease


def renew_lease(store: Store, lease: Lease, ttl_s: float = LEASE_TTL_S, now: Callable[[], float] = time.time) -> Lease:
    """Extend a lease, even an expired one that nobody took; call it well within ``ttl_s`` of the last time.

    Returns:
        The lease that replaces ``lease``.

    Raises:
        LeaseLost: another process took the folder over; stop.
    """
    number, last = _last_record(store, lease.folder)
    if last is not None and last.owner == lease.owner:
        renewed = Lease(lease.folder, number + 1, lease.owner, now() + ttl_s)
        if _append_record(store, renewed):
            return renewed
        number, last = _last_record(store, lease.folder)
    if last is None or last.owner != lease.owner:
        raise _lost(store, lease.folder, last.owner if last else None)
    return Lease(lease.folder, number, lease.owner, last.expires_s)  # renewed by another thread of this process


def release_lease(store: Store, lease: Lease) -> None:
    """Give a folder back; a lease already lost to another process stays with that one."""
    number, last = _last_record(store, lease.folder)
    if last is not None and last.owner == lease.owner:
        _append_record(store, Lease(lease.folder, number + 1, lease.owner, expires_s=0.0))


def lease_holder(store: Store, folder: str, now: Callable[[], float] = time.time) -> Owner | None:
    """Return the process that holds the lease of a folder, as far as can be told from here; None: nobody does.

    Args:
        store: the workspace.
        folder: e.g. ``runs/<run>``.
        now: the clock, in seconds since 1970.
    """
    _, last = _last_record(store, folder)
    return last.owner if last and _is_held(last, now()) else None


def check_lease(store: Store, folder: str) -> None:
    """Check that the folder's lease is this process's own; ask right before a commit.

    One that slept past its lease may have lost it to another that has ended since. An expired lease that nobody took is
    renewed. A folder that nobody claimed, or that this process gave back, is nobody's to lose.

    Raises:
        LeaseLost: another process has held the lease since.
    """
    number, last = _last_record(store, folder)
    if last is None:
        return
    if last.owner != this_process():
        raise _lost(store, folder, last.owner)
    if 0 < last.expires_s <= time.time():
        renew_lease(store, Lease(folder, number, last.owner, last.expires_s))


def delete_as_holder(store: Store, folder: str, inside: str) -> None:
    """Delete the objects under `inside`, which only whoever holds the folder's lease writes.

    Raises:
        LeaseLost: another process has held the lease since, so that they may be its own; none is deleted.
    """
    check_lease(store, folder)
    for key in store.list(inside):
        store.delete(key)


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
            _, last = _last_record(store, folder)
            if not told and last is not None:
                on_wait(last.owner)
                told = True
            time.sleep(WAIT_S)


def _last_record(store: Store, folder: str) -> tuple[int, LeaseRecord | None]:
    """Return the last record's number, -1 where there is none, and the newest record that can be read.

    A damaged record says nothing; what comes after it has the next number all the same.
    """
    numbers = _numbers(store, folder)
    for number in reversed(numbers):
        try:
            return numbers[-1], read_manifest(LeaseRecord, store, _lease_key(folder, number))
        except (InvalidManifest, DigestMismatch, StoreKeyError):
            continue
    return (numbers[-1] if numbers else -1), None


def _numbers(store: Store, folder: str) -> list[int]:
    """List the numbers of a lease's records, ascending."""
    keys = store.list(f"{folder}/lease")
    return sorted(int(match[1]) for key in keys if (match := re.search(r"/lease/(\d+)\.json$", key)))


def _lease_key(folder: str, number: int) -> str:
    return f"{folder}/lease/{number:05d}.json"


def _append_record(store: Store, lease: Lease) -> bool:
    """Create a lease's next record and remove old ones; say whether it was created and is the last one."""
    record = LeaseRecord(owner=lease.owner, expires_s=lease.expires_s, token=uuid4().hex)
    if not store.put_if_absent(_lease_key(lease.folder, lease.number), encode_manifest(record)):
        return False
    numbers = _numbers(store, lease.folder)
    for number in (n for n in numbers if n <= numbers[-1] - KEPT_RECORDS):
        store.delete(_lease_key(lease.folder, number))
    return numbers[-1] == lease.number


def _is_held(record: LeaseRecord, now_s: float) -> bool:
    return record.expires_s > now_s and not _is_gone(record.owner)


def _held(store: Store, folder: str, holder: Owner) -> LeaseHeld:
    return LeaseHeld(f"{folder!r} in {store.uri}: expected no other driver, got {holder}")


def _lost(store: Store, folder: str, holder: Owner | None) -> LeaseLost:
    by = holder or "another process, whose records are gone"
    return LeaseLost(f"{folder!r} in {store.uri}: expected to hold its lease, got it taken over by {by}")


def _is_gone(owner: Owner) -> bool:
    """Say whether a process has surely ended: only of this boot and this container is that known."""
    here = this_process()
    if (owner.host, owner.boot, owner.pid_namespace) != (here.host, here.boot, here.pid_namespace):
        return False
    try:
        process = psutil.Process(owner.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        ticks = _start_ticks(owner.pid)
        if owner.start_ticks is not None and ticks is not None:
            return ticks != owner.start_ticks
        started_s: float = process.create_time()
        return abs(started_s - owner.started.timestamp()) > START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return True


@cache
def _process(pid: int, start_ticks: int | None) -> Owner:
    """Describe a process, once: a second look could give its start otherwise."""
    return Owner(
        host=socket.gethostname(),
        user=_user(),
        pid=pid,
        started=datetime.fromtimestamp(int(psutil.Process(pid).create_time()), UTC),
        boot=_boot(),
        pid_namespace=_pid_namespace(),
        start_ticks=start_ticks,
    )


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None where the system does not say."""
    try:
        stat = Path(PROCESS_STAT.format(pid=pid)).read_bytes()
        after_name = stat.rpartition(b")")[2].split()  # the second field, a name in brackets, may hold any character
        return int(after_name[START_FIELD - 3])
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink(PID_NAMESPACE)
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())
