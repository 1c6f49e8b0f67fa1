"""Calls for Dask workers in processes of their own, which import them by name, and a stranger's call at a scheduler."""

import asyncio
import os
import signal
import time
from pathlib import Path

import torch
from distributed import get_worker
from distributed.comm import connect
from distributed.security import Security


def knock(address: str, security: Security, timeout_s: float = 3) -> None:
    """Open and close a connection to a scheduler, as a client does first, without a client's threads."""

    async def open_and_close() -> None:
        connection = await connect(address, timeout=timeout_s, **security.get_connection_args("client"))
        connection.abort()

    asyncio.run(open_and_close())


def square(number: int) -> int:
    """Square a number."""
    return number**2


def square_or_die(marker: str, number: int) -> int:
    """Square a number; the first process that comes to 5 is killed."""
    if number == 5 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def slow_square(folder: str, number: int) -> int:
    """Square a number, and tell by a file that it was begun."""
    (Path(folder) / str(number)).touch()
    time.sleep(0.5)
    return number**2


def name_of_worker(number: int) -> str:
    """Name the worker that the call runs on."""
    return str(get_worker().name)


def power(exponent: int, number: int) -> float:
    """Raise a number to a power."""
    return number**exponent


def fill_device(number: int) -> int:
    """Fail as torch does on a device that is full."""
    raise torch.OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {number}.00 GiB.\nGPU 0 has none. " + "x" * 500
    )
