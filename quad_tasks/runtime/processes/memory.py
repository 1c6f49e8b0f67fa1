"""What memory a process holds: its peak, and giving back to the system what it has freed.

glibc keeps freed memory for the next allocation. After the fit of a model of 135M parameters that is 1.9 GB a worker,
which the other processes of the machine then lack.
"""

import ctypes
import functools
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

KEPT_BYTES = 2**29
"""Freed memory that a process may keep: the next allocations are faster for it."""
SMALLER_MODEL = (
    "lower compute.workers, since those of a machine share its device, use model.dtype bfloat16, or set compute.device "
    "to cpu"
)
SMALLER_BATCH = f"lower model.batch_tokens, or model.window_tokens where one document is too long; {SMALLER_MODEL}"
SMALLER_TRAINING = (
    "lower model.window_tokens, the least that a pass reads, or compute.workers, or train by training.command: a "
    "trainer of yours that computes activations again (gradient checkpointing) or spreads the weights over devices"
)
"""What to change where a device's memory is too small for a model, for a batch that it reads, for its training."""
CAUSE_CHARACTERS = 200


class OutOfDeviceMemory(RuntimeError):
    """Work that the memory of a device does not hold; the message says what to change."""


class _AllocatorState(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def release_freed_memory(kept_bytes: int = KEPT_BYTES) -> None:
    """Give freed memory back to the system where it is more than `kept_bytes`; with another allocator, do nothing."""
    libc = _glibc()
    if libc is not None and libc.mallinfo2().fordblks > kept_bytes:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """Load the C library where it is glibc 2.33 or later."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype, libc.malloc_trim.argtypes = _AllocatorState, [ctypes.c_size_t]
    except (OSError, AttributeError):
        return None
    return libc


def is_out_of_device_memory(error: BaseException) -> bool:
    """Tell whether an error is torch's own of a device that is full; torch need not be loaded here."""
    return any((kind.__module__, kind.__name__) == ("torch", "OutOfMemoryError") for kind in type(error).__mro__)


@contextmanager
def explained_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Raise in place of torch's error of a full device one that says what to change.

    Args:
        what: the work.
        remedy: what to change.

    Raises:
        OutOfDeviceMemory: the memory of the device was too small.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_device_memory(error):
            said = " ".join(str(error).split())[:CAUSE_CHARACTERS]
            raise OutOfDeviceMemory(
                f"{what}: expected work that the memory of the device holds, found it full ({said}): {remedy}"
            ) from None
        raise


def own_peak_bytes() -> int:
    """Return the peak resident size of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts from the parent's size in a process that was forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def own_bytes() -> int:
    """Return the resident size of this process."""
    return int(psutil.Process().memory_info().rss)


def own_gpu_peak_bytes() -> int | None:
    """Return the most memory torch held on a GPU in this process; None where it used none."""
    torch = sys.modules.get("torch")  # a process that never loaded it has used no GPU
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
