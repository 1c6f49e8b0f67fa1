"""How a stage runs: a Prefect task with one retry policy, its work spread over Dask, results in the items' order.

The unit of work is what an item names (a shard, a pull, a chunk), never a worker's rank, so that any number of workers
gives the same result. The ledger decides what a rerun skips; Prefect caches and persists nothing.
"""

import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from distributed import CancelledError, Client, as_completed, default_client
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect_dask import get_dask_client

from quad_tasks.progress import progress
from quad_tasks.storage.faults import StoreUnavailable

RETRIES = 2
RETRY_DELAYS_S = [5.0, 30.0]
TRANSIENT = (StoreUnavailable, KilledWorker, CommClosedError, FutureCancelledError, CancelledError)
RECONNECT_TIMEOUT_S = 120
GPU = "GPU"
"""The resource that Dask workers with a GPU declare: `dask worker --resources GPU=1`."""

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a stage's task: named, never cached, retried for transient faults only."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=_is_transient,
    )


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TRANSIENT)


def spread(
    function: Callable[..., Any], items: Sequence[tuple[Any, ...]], label: str, unit: str, on_gpu: bool = False
) -> list[Any]:
    """Call `function(*item)` on the Dask cluster for every item and return the results in the items' order.

    A result is small: keys, counts, a pull's scores. A failing call raises its own error here.

    Args:
        function: importable by workers; idempotent, since the work of a lost worker is done again.
        items: positional arguments of each call.
        label: shown as the step's name.
        unit: what an item is, in the plural.
        on_gpu: keep to workers that declare a `GPU`, one item at a time each, where the cluster has any.
    """
    if not items:
        return []
    with _dask_client() as client, progress(label, len(items), unit) as advance:
        resources = {GPU: 1} if on_gpu and _has_gpu(client) else None
        futures = [client.submit(function, *item, pure=False, resources=resources) for item in items]
        for _ in as_completed(futures, raise_errors=True):
            advance(1)
        return list(client.gather(futures))


def current_client() -> Client | None:
    """Return the Dask client that is open in this process, if there is one."""
    try:
        return default_client()
    except ValueError:  # distributed's way to say there is none
        return None


def _dask_client() -> AbstractContextManager[Client]:
    """Give the open client without closing it, else, on a worker, one of Prefect's.

    One whose scheduler went away is connected again: a scheduler of the same address may have taken its place.
    """
    existing = current_client()
    if existing is None:
        prefects: AbstractContextManager[Client] = get_dask_client()
        return prefects
    if existing.status != "running":
        existing = Client(existing.scheduler.address, timeout=RECONNECT_TIMEOUT_S)
    return nullcontext(existing)


def _has_gpu(client: Client) -> bool:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any(GPU in worker["resources"] for worker in workers)


def peak_memory_bytes() -> int:
    """Return the sum of peak resident sizes of this process and the Dask cluster's workers."""
    with _dask_client() as client:
        workers: dict[str, int] = client.run(_own_peak)
    return sum(workers.values()) + _own_peak()


def peak_gpu_memory_bytes() -> int | None:
    """Return the most memory torch held on a GPU in any of the Dask cluster's workers; None where none used one."""
    with _dask_client() as client:
        workers: dict[str, int | None] = client.run(_own_gpu_peak)
    return max((peak for peak in workers.values() if peak), default=None)


def _own_gpu_peak() -> int | None:
    torch = sys.modules.get("torch")  # a worker that never loaded it has used no GPU
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None


def _own_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts from the parent's size in a process that was forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
