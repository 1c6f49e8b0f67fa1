"""End what a killed test started: servers, workers and runs that no teardown came to.

A killed process runs nothing more, but the system closes its pipes. A reaper waits at the other end of one and then
kills every process whose environment bears its mark: flow runs leave session, process group and parent, not that.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

MARK = "QUAD_TEST_MARK"


@contextmanager
def children_end_with_this_process() -> Iterator[None]:
    """Mark what this process starts inside the block, and have what is left of it killed when block or process ends."""
    before, mark = os.environ.pop(MARK, None), uuid4().hex
    command = [sys.executable, str(Path(__file__)), mark]
    # a session of its own: Ctrl-C on the terminal is for the tests, not for the reaper
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait()


def kill_marked(mark: str) -> None:
    """Kill the processes that bear a mark, again until none does: one may just have started another."""
    import psutil  # after the wait: a reaper that is not needed starts at once and stays small

    while True:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        if not found:
            return
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=5)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the other end is closed
    kill_marked(sys.argv[1])
