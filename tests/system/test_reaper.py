"""What tests start ends with them, also when they are killed and run no teardown."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from reaper import MARK, children_end_with_this_process

STUBBORN = "trap '' TERM INT HUP; echo $$; exec sleep 600"
TESTS = """
import subprocess, sys, time
from reaper import children_end_with_this_process

with children_end_with_this_process():
    subprocess.Popen(["bash", "-c", "setsid bash -c \\"$0\\" & eval \\"$0\\"", sys.argv[1]], start_new_session=True)
    subprocess.Popen(["bash", "-c", sys.argv[1]], env={})
    time.sleep(600)
"""


@pytest.fixture
def killed():
    """Kill a process as it runs tests; return its child, its grandchild and a process that does not bear its mark."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", TESTS, STUBBORN]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        started = [psutil.Process(int(tests.stdout.readline())) for _ in range(3)]
        marked = [MARK in process.environ() for process in started]
        tests.kill()
    yield [process for process, own in zip(started, marked, strict=True) if own], started[marked.index(False)]
    started[marked.index(False)].kill()


@pytest.mark.skipif(sys.platform != "linux", reason="needs setsid")
def test_what_a_killed_process_started_ends_with_it_and_nothing_else_does(killed):
    own, other = killed
    assert len(own) == 2
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []
    assert other.is_running()


def test_what_an_orderly_end_left_running_ends_too_and_the_mark_is_put_back():
    before = os.environ.get(MARK)
    with children_end_with_this_process():
        assert os.environ[MARK] != before
        left = subprocess.Popen(["sleep", "600"])
    assert left.wait(timeout=60) < 0
    assert os.environ.get(MARK) == before


def test_every_session_of_tests_is_under_a_reaper():
    assert MARK in os.environ
