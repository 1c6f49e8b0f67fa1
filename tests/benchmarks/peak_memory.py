"""Run a command and say how much memory it and all its children held at most, shared pages counted once.

    python tests/benchmarks/peak_memory.py [--json FILE] -- quad run config.yaml

The sum is that of proportional set sizes (`/proc/PID/smaps_rollup`), read twice a second; Linux alone has them.
"""

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

EVERY_S = 0.5


def tree_bytes(root: psutil.Process) -> tuple[int, int]:
    """Sum the memory of a process and its descendants: bytes, and how many processes."""
    total, count = 0, 0
    for process in [root, *root.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (OSError, ProcessLookupError):
            continue
        total += 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        count += 1
    return total, count


def main() -> None:
    """Run the command and print its peak."""
    parser = argparse.ArgumentParser(description="Measure the peak memory of a command and its children.")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    started = time.perf_counter()
    run = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's; what it held until then is still told
    root, peak, done = psutil.Process(run.pid), {"size_bytes": 0, "processes": 0, "at_s": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            try:
                size, count = tree_bytes(root)
            except psutil.NoSuchProcess:
                return
            if size > peak["size_bytes"]:
                peak.update(size_bytes=size, processes=count, at_s=round(time.perf_counter() - started, 1))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = run.wait()
    done.set()
    watcher.join()
    result = {"command": command, "exit_code": code, "seconds": round(time.perf_counter() - started, 1), "peak": peak}
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
