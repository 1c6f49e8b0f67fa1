"""Live through a run under random faults, all in this process, and hold what it ends with against a calm run.

A fault strikes between two operations of the store, at moments and of kinds drawn from a seed: the attempt is ended,
the store is unavailable for some tries or slow to answer, the clock jumps, the process is paused past its lease and
another one drives the run meanwhile, or an object that is stored is lost, has a bit flipped or is cut short. An attempt
that stops is begun again. Objects are brought back from a copy only once the product has refused one, or when a run has
ended and its verification was asked: what neither finds must be derived, or made again with the same bytes.
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.select_data import select_data
from quad_tasks.commands import verify
from quad_tasks.commands.verify import DERIVED
from quad_tasks.config.schema import RunConfig
from quad_tasks.runtime.prefect_runs import WITHOUT_PREFECT_VARIABLE
from quad_tasks.storage import errors, lease, store

DAMAGES = ("lost", "flip", "truncate")
KINDS = ("kill", "unavailable", "slow", "clock", "pause", *DAMAGES)
MOST_TRIES = 4
"""Of an operation that the store refuses; the product gives up after seven."""
LONGEST_JUMP_S = 7200.0
LONGEST_ANSWER_S = 1.0
ELSEWHERE = lease.Owner(host="elsewhere", user="nobody", pid=1, started=datetime.fromtimestamp(0, UTC))
"""Who drives a run while its own driver is paused."""
TEMPORARY = ".tmp-"
UNDECIDING = ("/lease/", "/probes/")
"""Objects that are not damaged: who works where, and what a check leaves for a moment."""


class PowerCut(Exception):
    """Ends an attempt."""


@dataclass
class Chaos:
    """Faults that are still to come, and what those before have done.

    Attributes:
        workspace: a local folder.
        random: draws kinds, places and moments.
        left: kinds of the faults to come, the next one last.
        gap: operations between two faults, on average.
        operations: so far.
        struck: faults by kind.
        damaged: by key: what stood there, and what stands there now; None: nothing.
    """

    workspace: Path
    random: random.Random
    left: list[str]
    gap: int
    struck: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)
    offset_s: float = 0.0
    taken_over: int = 0
    until_next: int = 0
    operations: int = 0
    lock: Any = field(default_factory=threading.RLock)

    def strike(self) -> str | None:
        """Count an operation; return the kind of the fault that comes before it, done where it is one to an object."""
        with self.lock:
            self.operations += 1
            self.until_next -= 1
            if not self.left or self.until_next > 0:
                return None
            self.until_next = self.random.randint(1, 2 * self.gap)
            kind = self.left[-1]
            if kind in DAMAGES and not self.damage(kind):
                return None
            self.left.pop()
            if kind == "clock":
                self.offset_s += self.random.uniform(-LONGEST_JUMP_S, LONGEST_JUMP_S)
            if kind == "pause":
                self.pause()
            self.struck[kind] += 1
            return kind

    def now(self) -> float:
        """Return the time by a clock that has jumped."""
        return time.time() + self.offset_s

    def pause(self) -> None:
        """Let a lease's time pass; another process finds it expired, takes the run over and gives it back."""
        self.offset_s += lease.LEASE_TTL_S + 1
        opened = store.open_store(str(self.workspace))
        with suppress(lease.LeaseHeld):  # it has been renewed meanwhile
            for folder in self.workspace.glob("runs/*"):
                key = folder.relative_to(self.workspace).as_posix()
                lease.release_lease(opened, lease.claim_lease(opened, key, ELSEWHERE, now=self.now))
                self.taken_over += 1

    def damage(self, kind: str) -> bool:
        """Damage a random object that is whole; False where there is none."""
        paths = [path for path in sorted(self.workspace.rglob("*")) if path.is_file() and TEMPORARY not in path.name]
        keys = [path.relative_to(self.workspace).as_posix() for path in paths]
        whole = [key for key in keys if key not in self.damaged and not any(part in f"/{key}" for part in UNDECIDING)]
        if not whole:
            return False
        key = self.random.choice(whole)
        path = self.workspace / key
        data = path.read_bytes()
        if not data:
            return False
        left: bytes | None = None
        if kind == "lost":
            path.unlink()
        else:
            place = self.random.randrange(len(data))
            flipped = data[:place] + bytes([data[place] ^ 1 << self.random.randrange(8)]) + data[place + 1 :]
            left = flipped if kind == "flip" else data[:place]
            replacement = path.with_name(f"{TEMPORARY}chaos")  # at once, as a mapped file would change under its reader
            replacement.write_bytes(left)
            replacement.replace(path)
        self.damaged[key] = (data, left)
        return True

    def still_damaged(self) -> list[str]:
        """List the objects that are as a fault left them; what was made again since is whole."""
        return [key for key, (_, left) in self.damaged.items() if self.read(key) == left]

    def read(self, key: str) -> bytes | None:
        path = self.workspace / key
        return path.read_bytes() if path.is_file() else None

    def repair(self) -> None:
        """Bring back from a copy what is damaged."""
        for key in self.still_damaged():
            (self.workspace / key).parent.mkdir(parents=True, exist_ok=True)
            (self.workspace / key).write_bytes(self.damaged[key][0])
        self.damaged.clear()


@dataclass
class Outcome:
    """What became of a run: attempts, those that the product ended by name, and what it took that it should not have.

    Attributes:
        attempts: begun.
        given_up: attempts that ended because another process had taken the run over.
        refused: messages of attempts that ended by a damaged object.
        unexplained: messages of attempts that ended by anything else than a fault of that time.
        accepted: damaged objects that neither the run nor its verification named, though a result rests on them.
    """

    attempts: int = 0
    given_up: int = 0
    refused: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)


def draw_kinds(n: int, generator: random.Random) -> list[str]:
    """Draw the kinds of faults, of each as many as of any other, in a random order."""
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    generator.shuffle(kinds)
    return kinds


def live(config: RunConfig, chaos: Chaos) -> Outcome:
    """Run to the end, whatever strikes; then verify, repair, and run once more over what stands."""
    outcome = Outcome()
    most = len(chaos.left) + 10
    with striking(chaos):
        while outcome.attempts < most:
            outcome.attempts += 1
            try:
                select_data(config)
                break
            except PowerCut:
                continue
            except Exception as error:
                _explain(outcome, chaos, error)
    chaos.left.clear()
    outcome.accepted += _unnoticed(config, chaos)
    chaos.repair()
    select_data(config)
    return outcome


def _explain(outcome: Outcome, chaos: Chaos, error: Exception) -> None:
    """Note why an attempt ended; where it was a damaged object, all are brought back."""
    message = f"{type(error).__name__}: {error}"
    named = [key for key in chaos.damaged if key in message or any(f"'{p}'" in message for p in Path(key).parents)]
    if isinstance(error, lease.LeaseLost) and str(ELSEWHERE) in message:
        outcome.given_up += 1
        return
    (outcome.refused if named else outcome.unexplained).append(message)
    chaos.repair()


def _unnoticed(config: RunConfig, chaos: Chaos) -> list[str]:
    """List damaged objects that a finished run's verification takes for whole."""
    left = [key for key in chaos.still_damaged() if not DERIVED.keys() & set(key.split("/"))]
    shown = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "MOST_SHOWN", sys.maxsize)  # all are named, however many
        try:
            verify.verify_run(config)
        except errors.StorageError as error:
            shown = str(error)
    return [key for key in left if key not in shown and "/times/" not in key]  # times: for people, as they were found


@contextmanager
def striking(chaos: Chaos) -> Iterator[None]:
    """Let faults strike between the operations of every store of this process, whose flows run without Prefect."""
    call = errors.call_with_retries

    def with_faults(operation: Callable[[], Any], place: str) -> Any:
        if "/lease" in place:  # a process that is ended gives no lease back: another one sees that it is gone
            return call(operation, place)
        kind = chaos.strike()
        if kind == "kill":
            raise PowerCut(place)
        if kind == "slow":
            time.sleep(chaos.random.uniform(0, LONGEST_ANSWER_S))
        tries = chaos.random.randint(1, MOST_TRIES) if kind == "unavailable" else 0

        def attempt() -> Any:
            nonlocal tries
            if tries > 0:
                tries -= 1
                raise ConnectionResetError("HTTP 503")
            return operation()

        return call(attempt, place)

    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WITHOUT_PREFECT_VARIABLE, "1")
        patch.setattr(store, "call_with_retries", with_faults)
        patch.setattr(errors, "sleep", lambda _seconds: None)
        clocks = SimpleNamespace(time=chaos.now, sleep=time.sleep, monotonic=time.monotonic)
        patch.setattr(lease, "time", clocks)  # Dask's scheduler, which shares this process, keeps its own
        for function in (lease.claim_lease, lease.renew_lease, lease.lease_holder):
            given = tuple(chaos.now if value is real else value for value in function.__defaults__ or ())
            patch.setattr(function, "__defaults__", given)
        yield
