"""Run a program of the user's beside the run, its output line by line, so that it never outlives the run.

Owns the child: it is killed, with all its own children, when the time is up, when the run is interrupted, and when the
run's process is killed, since a small supervisor between the two notices that its input has closed. Nothing goes
through a shell. This file is the supervisor too, run by its path, so that it imports nothing of the project.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, cast

LAST_LINES = 20
"""Of the child's output, that the message of its failure repeats."""
SIGNALLED = 128
"""A shell's exit code of a child killed by signal n is 128 + n; the supervisor gives the same."""


class ChildFailed(RuntimeError):
    """A program that could not be started, took too long, or ended with an exit code other than 0."""


def run_child(command: Sequence[str], timeout_s: float | None, say: Callable[[str], object]) -> None:
    """Run a program to its end, with its output and errors as one stream of lines.

    Args:
        command: the program and its arguments.
        timeout_s: seconds after which it is killed; None: never.
        say: called with each line as it comes.

    Raises:
        ChildFailed: see there; the message holds the last lines of the output.
    """
    supervised = [sys.executable, __file__, *command]
    child = subprocess.Popen(supervised, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    late = threading.Event()
    last: deque[str] = deque(maxlen=LAST_LINES)

    def end() -> None:
        late.set()
        stdin.close()

    timer = threading.Timer(timeout_s, end) if timeout_s is not None else None
    try:
        if timer:
            timer.start()
        for raw in stdout:
            line = raw.decode(errors="replace").rstrip()
            last.append(line)
            say(line)
        code = child.wait()
    finally:
        if timer:
            timer.cancel()
        with suppress(OSError):
            stdin.close()
        child.wait()
        stdout.close()
    if late.is_set():
        raise ChildFailed(f"expected {command[0]} to end within {timeout_s:g} s, killed it then{_tail(last)}")
    if code:
        how = f"killed by signal {code - SIGNALLED}" if code > SIGNALLED else f"exit code {code}"
        raise ChildFailed(f"expected {command[0]} to end with exit code 0, found {how}{_tail(last)}")


def _tail(lines: Sequence[str]) -> str:
    return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else "; it printed nothing"


def supervise(command: Sequence[str]) -> int:
    """Run a program in a session of its own until it ends or this process's input is closed; return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run, which then closes the input
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return 127

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        sys.stdin.buffer.read()
        kill()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    kill()  # what it may have left running
    return SIGNALLED - code if code < 0 else code


if __name__ == "__main__":
    code = supervise(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the watching thread holds the standard input's lock, on which an orderly end would wait
