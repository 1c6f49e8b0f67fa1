"""What the processes of a run hold: the driving one and the workers of the Dask cluster whose client is open in it."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from distributed import Client, LocalCluster, default_client

from quad_tasks.runtime.processes.memory import own_bytes, own_gpu_peak_bytes, own_peak_bytes
from quad_tasks.runtime.progress import working

T = TypeVar("T")

KEPT_BYTES = 2**30
"""What a worker may hold between two steps and go on; importing all that the stages use takes half of it."""


def current_client() -> Client | None:
    """Return the Dask client that is open in this process, if there is one."""
    try:
        return default_client()
    except ValueError:  # distributed's way to say there is none
        return None


def peak_memory_bytes() -> int:
    """Return the sum of the peak resident sizes of this process and the workers."""
    return sum(_ask_workers(own_peak_bytes).values()) + own_peak_bytes()


def peak_gpu_memory_bytes() -> int | None:
    """Return the most memory torch held on a GPU in any worker; None where none used one."""
    return max((peak for peak in _ask_workers(own_gpu_peak_bytes).values() if peak), default=None)


def renew_workers(most_bytes: int = KEPT_BYTES) -> None:
    """Start anew the workers of a local cluster that hold more than `most_bytes` while none of them has work.

    What a worker keeps of models it has read, and pieces of freed memory too small to give back, is lost to what comes
    next: trainings after a fit and scoring of 135M parameters peaked at 12.5 GB in all processes. Workers by address
    are left as they are: they may be at work for others.
    """
    client = current_client()
    if client is None or not isinstance(client.cluster, LocalCluster) or not client.cluster.processes:
        return
    large = [address for address, size in _ask_workers(own_bytes).items() if size > most_bytes]
    if large:
        with working("start new workers"), suppress(KeyError):  # one that ended meanwhile is new already
            client.restart_workers(large, raise_for_error=False)


def _ask_workers(function: Callable[[], T]) -> dict[str, T]:
    """Call a function in every worker that answers; without a client, or its scheduler, there is none."""
    client = current_client()
    if client is None or client.status != "running":
        return {}
    try:
        answers: dict[str, T] = client.run(function, on_error="ignore")
    except (OSError, RuntimeError):  # the scheduler is away, or the client's loop has ended
        return {}
    return answers
