"""A program run beside a run: its lines, its failures, and that nothing of it outlives the run."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from quad_tasks.runtime.processes.child_process import ChildFailed, run_child

LEAVES_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
print("started", flush=True)
time.sleep(float(sys.argv[2]))
"""


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def gone(pid, within_s=20.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_every_line_of_output_and_errors_is_passed_on_in_order():
    lines = []
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); print('thr\\u00e9e')"
    run_child(python(code), None, lines.append)
    assert lines == ["one", "two", "thrée"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print('no GPU'); raise SystemExit(3)", "exit code 3; its last lines:\n  no GPU"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9; it printed nothing"),
    ],
)
def test_a_failure_is_told_with_its_cause_and_last_lines(code, found):
    with pytest.raises(ChildFailed) as failure:
        run_child(python(code), None, lambda line: None)
    assert str(failure.value).endswith(found)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(ChildFailed, match="no-such-trainer: No such file"):
        run_child(["no-such-trainer"], None, lambda line: None)


def test_a_program_that_hangs_is_killed_with_its_children_when_the_time_is_up(tmp_path):
    with pytest.raises(ChildFailed, match=r"end within 5 s, killed it then; its last lines:\n  started"):
        run_child(python(LEAVES_CHILD, tmp_path / "pid", 600), 5, lambda line: None)
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_a_program_leaves_running_ends_with_it(tmp_path):
    # its child holds the output open, so that only the end of the whole group ends the stream
    run_child(python(LEAVES_CHILD, tmp_path / "pid", 0), 60, lambda line: None)
    assert gone(int((tmp_path / "pid").read_text()))


def test_it_is_killed_with_the_run_that_started_it(tmp_path):
    code = (
        "import sys; from quad_tasks.runtime.processes.child_process import run_child; "
        "run_child(sys.argv[1:], None, print)"
    )
    run = subprocess.Popen(python(code, *python(LEAVES_CHILD, tmp_path / "pid", 600)), stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"started\n"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert gone(int((tmp_path / "pid").read_text()))
