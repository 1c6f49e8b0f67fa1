"""What happened in a run and when: its events, and the wall time of its steps, kept beside its ledger.

Object storage cannot append, so an event is a small object of its own under `runs/<run>/events/`; its key begins with
its time, and listing the keys gives the order. Whoever ends driving a run joins them into `events.jsonl`. Nothing is
read back from events: what cannot be recorded is left, and ends no run.
"""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import uuid4

from quad_tasks.manifests.run import RoundInfo
from quad_tasks.runtime.processes.worker_memory import peak_gpu_memory_bytes, peak_memory_bytes
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.versions import computing_versions
from quad_tasks.storage.errors import StorageError, redact
from quad_tasks.storage.keys import event_log_key, events_folder, times_folder
from quad_tasks.storage.lease import this_process
from quad_tasks.storage.store import Store

KEY_TIME = "%Y%m%dT%H%M%S.%fZ"
READERS = 8
LONGEST_MESSAGE = 500
"""Characters of an error that an event keeps."""


def record_event(store: Store, run: str, event: str, **fields: Any) -> None:
    """Record that something happened in a run, now and by this process.

    Args:
        store: the workspace.
        run: the run's name.
        event: what happened, in the past tense: `round_committed`.
        fields: what belongs to it; JSON values. A number that is not finite becomes null.
    """
    now, owner = datetime.now(UTC), this_process()
    body = {"time": now.isoformat(), "event": event, "run": run, "host": owner.host, "pid": owner.pid, **fields}
    key = f"{events_folder(run)}/{now.strftime(KEY_TIME)}-{uuid4().hex[:8]}.json"
    with _left_undone(f"the event {event!r} of run {run} is not recorded"):
        store.put(key, json.dumps(_finite(body), default=str).encode())


def record_round(store: Store, run: str, stage: int, number: int, info: RoundInfo) -> None:
    """Record that a round was committed: what it cost and found."""
    counted = ("kind", "arms", "documents", "tokens", "accepted_documents", "accepted_tokens", "threshold")
    record_event(
        store,
        run,
        "round_committed",
        stage=stage,
        round=number,
        **info.model_dump(include={*counted, "mean_reward", "effective_arms"}),
        cost_share=info.cost.share if info.cost else None,
        gain_left=info.remaining.left if info.remaining else None,
        findings=[finding.signature for finding in info.findings],
    )


@contextmanager
def recorded_run(store: Store, run: str) -> Iterator[None]:
    """Record that this process begins to drive a run and how it ends, then join the run's events into one file."""
    record_event(store, run, "run_started", versions=computing_versions())
    ended: dict[str, Any] = {"outcome": "interrupted"}
    try:
        yield
        ended = {"outcome": "done"}
    except Exception as error:
        ended = {"outcome": "failed", "error": type(error).__name__, "message": redact(str(error))[:LONGEST_MESSAGE]}
        raise
    finally:
        record_event(store, run, "run_ended", **ended)
        _join_events(store, run)


@contextmanager
def timed(store: Store, run: str, step: str) -> Iterator[None]:
    """Record how long the body took, in seconds, under the step's name, also when it fails, and peaks of memory."""
    started, outcome, interrupted = time.perf_counter(), "failed", True
    try:
        yield
        outcome, interrupted = "done", False
    except Exception:
        interrupted = False
        raise
    finally:
        body: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - started}
        if not interrupted:  # workers may be ending too then, and would be waited for
            body |= {"peak_bytes": peak_memory_bytes(), "peak_gpu_bytes": peak_gpu_memory_bytes()}
        with _left_undone(f"the time of the step {step!r} of run {run} is not recorded"):
            store.put(f"{times_folder(run)}/{uuid4().hex}.json", json.dumps(body).encode())
        record_event(store, run, "step_ended", **body, outcome=outcome)


def read_times(store: Store, run: str) -> dict[str, float]:
    """Return seconds spent in each step of a run, all attempts together; a record that is damaged is left out."""
    total: dict[str, float] = {}
    for body in _timed_steps(store, run):
        step, seconds = body.get("step"), body.get("seconds")
        if isinstance(step, str) and isinstance(seconds, float):
            total[step] = total.get(step, 0.0) + seconds
    return total


def read_peaks(store: Store, run: str) -> tuple[int, int | None]:
    """Return the most memory of all processes at the end of any step, bytes, and the most on a worker's GPU."""
    sizes: dict[str, list[int]] = {"peak_bytes": [], "peak_gpu_bytes": []}
    for body in _timed_steps(store, run):
        for name, found in sizes.items():
            if isinstance(size := body.get(name), int):
                found.append(size)
    return max(sizes["peak_bytes"], default=0), max(sizes["peak_gpu_bytes"], default=None)


def _timed_steps(store: Store, run: str) -> list[dict[str, Any]]:
    """Read what `timed` recorded of a run; a record that is damaged is empty."""
    return [_parse(store.get(key)) or {} for key in store.list(times_folder(run))]


def read_events(store: Store, run: str) -> list[dict[str, Any]]:
    """Read a run's events in the order of their times; one that is damaged is left out."""
    with ThreadPoolExecutor(READERS) as readers:
        bodies = readers.map(store.get, store.list(events_folder(run)))
        return [event for body in bodies if (event := _parse(body)) is not None]


def last_event_s(store: Store, run: str) -> float | None:
    """Return when a run's last event happened, in seconds since 1970; None before the first."""
    keys = store.list(events_folder(run))
    if not keys:
        return None
    written = keys[-1].rpartition("/")[2].partition("-")[0]
    return datetime.strptime(written, KEY_TIME).replace(tzinfo=UTC).timestamp()


def _join_events(store: Store, run: str) -> None:
    """Write a run's events so far as JSON lines."""
    with _left_undone(f"{event_log_key(run)} is not written"):
        lines = [json.dumps(event) + "\n" for event in read_events(store, run)]
        store.put(event_log_key(run), "".join(lines).encode())


@contextmanager
def _left_undone(what: str) -> Iterator[None]:
    """Say what is left undone where the store fails, and why, instead of ending the run or hiding what ended it."""
    try:
        yield
    except (StorageError, OSError) as error:
        _say_once(f"{what}: {type(error).__name__}: {redact(str(error))}")


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(body)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _finite(value: Any) -> Any:
    """Make numbers that JSON does not know null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


@cache
def _say_once(message: str) -> None:
    notice(message)
