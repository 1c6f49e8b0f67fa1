"""Calls for Dask workers in processes of their own, which import them by name."""

import os
import signal
import time
from pathlib import Path

from distributed import get_worker


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
