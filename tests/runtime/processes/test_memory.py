"""Freed memory goes back to the system, and a peak is at least what was held."""

import os
import subprocess
import sys

import numpy as np
import pytest

from quad_tasks.runtime.processes import memory

FRAGMENTED = """
import sys
import numpy as np
from quad_tasks.runtime.processes.memory import release_freed_memory

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

# Pieces below the size that glibc maps by themselves, and after them one that stays: the heap cannot shrink
pieces = [np.ones(2**13) for _ in range(6000)]
last = np.ones(2**13)
before = held()
del pieces
freed = held()
release_freed_memory(2**26)
print(before, freed, held())
"""


@pytest.mark.skipif(memory._glibc() is None, reason="another allocator than glibc's")
def test_what_was_freed_is_given_back():
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # Dask sets them
    command = [sys.executable, "-c", FRAGMENTED]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=usual).stdout
    before, freed, after = map(float, found.split())
    assert freed > before - 50, "glibc gave the pieces back by itself: they show nothing"
    assert after < before - 300


def test_little_is_kept(monkeypatch):
    trimmed = []

    class Libc:
        @staticmethod
        def mallinfo2():
            return memory._AllocatorState(fordblks=1000)

        @staticmethod
        def malloc_trim(pad):
            trimmed.append(pad)

    monkeypatch.setattr(memory, "_glibc", lambda: Libc)
    memory.release_freed_memory(1000)
    assert not trimmed
    memory.release_freed_memory(999)
    assert trimmed == [0]
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    memory.release_freed_memory(0)
    assert trimmed == [0]


def test_a_peak_is_at_least_what_was_held():
    block = np.ones(2**24)
    assert memory.own_peak_bytes() > block.nbytes


def test_a_process_without_a_gpu_used_none():
    assert memory.own_gpu_peak_bytes() is None
