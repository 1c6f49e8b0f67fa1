"""How a stage runs: a Prefect task with one retry policy, its work spread over Dask, results in the items' order.

The unit of work is what an item names (a shard, a pull, a chunk), never a worker's rank, so that any number of workers
gives the same result. The ledger decides what a rerun skips; Prefect caches and persists nothing.
"""

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from distributed import CancelledError, Client, Future, as_completed
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from prefect import Task
from prefect_dask import get_dask_client

from quad_tasks.runtime.prefect_runs import make_task
from quad_tasks.runtime.processes.memory import (
    SMALLER_BATCH,
    explained_out_of_memory,
    release_freed_memory,
)
from quad_tasks.runtime.processes.worker_memory import current_client
from quad_tasks.runtime.progress import notice, progress
from quad_tasks.storage.errors import StoreUnavailable

RETRY_DELAYS_S = [5.0, 30.0]
TRANSIENT = (StoreUnavailable, KilledWorker, CommClosedError, FutureCancelledError, CancelledError)
RECONNECT_TIMEOUT_S = 120
IN_FLIGHT, CALLS_PER_THREAD = 512, 4
"""Calls that the scheduler holds at a time: this many, or that many for each thread of the cluster."""
POLL_S = 0.005
DRIVER_KEPT_BYTES = 2**26
"""Freed memory that the driving process may keep, which computes little itself."""
WORKERS_CHECK_S = 5.0
"""How often a step that gets no result looks whether there is a worker at all."""
IN_PROCESS = "inproc://"
"""Begins the address of a scheduler in this process; its workers are threads of it, which nothing starts again."""
GPU = "GPU"
"""The resource that Dask workers with a GPU declare: `dask worker --resources GPU=1`."""

P = ParamSpec("P")
R = TypeVar("R")


class NoWorkers(RuntimeError):
    """The Dask cluster has lost all its workers, and none will come."""


def stage_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a stage's task: named, never cached, retried for transient faults only."""
    return lambda function: make_task(function, name, RETRY_DELAYS_S, TRANSIENT)


def map_tasks(
    function: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    label: str,
    unit: str,
    on_gpu: bool = False,
    shared: Sequence[Any] = (),
    at_once: int | None = None,
    smaller: str = SMALLER_BATCH,
) -> list[Any]:
    """Call `function(*shared, *item)` on the Dask cluster for every item; return the results in the items' order.

    A result is small: keys, counts, a pull's scores. A failing call raises its own error here. The scheduler holds no
    more than a window of the calls at a time, so that its memory does not grow with their number.

    Args:
        function: importable by workers; idempotent, since the work of a lost worker is done again.
        items: positional arguments of each call, small.
        label: shown as the step's name.
        unit: what an item is, in the plural.
        on_gpu: keep to workers that declare a `GPU`, one item at a time each, where the cluster has any.
        shared: first arguments of every call, sent to each worker once.
        at_once: calls that may run at the same time; None: as many as the cluster has threads.
        smaller: what to change where the memory of a worker's device is too small for a call.

    Raises:
        OutOfDeviceMemory: it is.
        NoWorkers: the cluster is this process's own and has no worker left; for another one's it waits, and says so.
    """
    if not items:
        return []
    with _dask_client() as client, progress(label, len(items), unit) as advance:
        resources = {GPU: 1} if on_gpu and _has_gpu(client) else None
        given = [client.scatter(value, broadcast=True, hash=False) for value in shared]
        numbers, results = iter(range(len(items))), [None] * len(items)
        number_of: dict[Future, int] = {}

        def submit(n: int) -> list[Future]:
            """Submit the next `n` calls."""
            new = {
                client.submit(_call, function, *given, *items[i], key=_new_key(function), resources=resources): i
                for i in itertools.islice(numbers, n)
            }
            number_of.update(new)
            return list(new)

        running = as_completed(submit(at_once or _window(client)))
        for future in _completed(client, running, label):
            with explained_out_of_memory(label, smaller):
                results[number_of.pop(future)] = future.result()
            advance(1)
            for following in submit(1):
                running.add(following)
        release_freed_memory(DRIVER_KEPT_BYTES)
        return results


def _call(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function on a worker, and let go of the memory that it took."""
    try:
        return function(*arguments)
    finally:
        release_freed_memory()


def _new_key(function: Callable[..., Any]) -> str:
    """Name a call by its function, as Dask's dashboard shows it."""
    return f"{function.__name__}-{uuid.uuid4()}"


def _completed(client: Client, running: as_completed, label: str) -> Iterator[Future]:
    """Yield calls as they end, and look from time to time whether there is a worker for those that do not."""
    checked = time.monotonic()
    while not running.is_empty():
        if running.has_ready():
            yield next(running)
        elif time.monotonic() - checked > WORKERS_CHECK_S:
            _check_workers(client, label)
            checked = time.monotonic()
        else:
            time.sleep(POLL_S)


def _check_workers(client: Client, label: str) -> None:
    """Say so where the cluster has no worker.

    Raises:
        NoWorkers: it is this process's own, so that none will come.
    """
    try:
        if _list_workers(client):
            return
    except OSError:  # the scheduler is away; the calls end as cancelled
        return
    address = client.scheduler.address
    if address.startswith(IN_PROCESS):
        events = [event for topic in client.get_events().values() for _, event in topic if isinstance(event, dict)]
        closed = [f"it closed: {event['reason']}" for event in events if event.get("action") == "closing-worker"]
        removed = [f"it was removed: {e.get('stimulus_id')}" for e in events if e.get("action") == "remove-worker"]
        why = (closed or removed or ["there never was one"])[-1]
        raise NoWorkers(f"{label}: expected a worker of the Dask cluster in this process, found none; {why}")
    notice(f"{label}: waiting for a worker, the Dask cluster at {address} has none")


def _dask_client() -> AbstractContextManager[Client]:
    """Give the open client without closing it, else, on a worker, one of Prefect's.

    In place of one whose scheduler went away a new one is opened, and closed after use: a scheduler of the same address
    may have taken the lost one's place.
    """
    existing = current_client()
    if existing is None:
        prefects: AbstractContextManager[Client] = get_dask_client()
        return prefects
    if existing.status != "running":
        replacement: AbstractContextManager[Client] = Client(
            existing.scheduler.address, timeout=RECONNECT_TIMEOUT_S, security=existing.security
        )
        return replacement
    return nullcontext(existing)


def _window(client: Client) -> int:
    """Return how many calls may be in the scheduler at a time: enough for workers that join while it runs."""
    threads: dict[str, int] = client.nthreads()
    return max(IN_FLIGHT, CALLS_PER_THREAD * sum(threads.values()))


def _has_gpu(client: Client) -> bool:
    return any(GPU in worker["resources"] for worker in _list_workers(client).values())


def _list_workers(client: Client) -> dict[str, Any]:
    """Ask the scheduler for its workers; what the client keeps of them is emptied every other second."""
    workers: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return workers
