"""Work spread over Dask outlives its workers and its scheduler, and keeps to GPUs where there are any."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dask_calls import name_of_worker, slow_square, square_or_die
from distributed import Client, LocalCluster, default_client
from prefect import flow

from quad_tasks import compute
from quad_tasks.compute import spread, step


def test_a_killed_workers_calls_are_done_again_by_another(tmp_path):
    items = [(str(tmp_path / "killed"), number) for number in range(10)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        assert spread(square_or_die, items, "square", "numbers") == [number**2 for number in range(10)]
    assert (tmp_path / "killed").exists()


def test_work_for_a_gpu_keeps_to_workers_that_have_one():
    items = [(number,) for number in range(6)]
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        cluster.scale(2)
        with Client(cluster) as client:
            client.wait_for_workers(2)
            assert set(spread(name_of_worker, items, "name", "calls", on_gpu=True)) <= {"0", "1"}
            chosen = cluster.workers[1]
            client.sync(chosen.set_resources, GPU=1)
            assert set(spread(name_of_worker, items, "name", "calls", on_gpu=True)) == {"1"}


@pytest.fixture
def start_process():
    """Start processes that are ended with the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        process = subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_step_outlives_its_scheduler(prefect_server, start_process, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(compute, "RETRY_DELAYS_S", [0.5, 0.5])

    def start_cluster():
        scheduler = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        worker = ("distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard")
        return start_process(*scheduler), start_process(*worker)

    @step("square")
    def square() -> list[int]:
        return spread(slow_square, [(str(tmp_path), number) for number in range(8)], "square", "numbers")

    @flow
    def outlive() -> list[int]:
        return square()

    first = start_cluster()

    def replace_cluster():
        while not (tmp_path / "2").exists():
            time.sleep(0.05)
        for process in first:
            process.kill()
            process.wait()
        start_cluster()

    restarts = threading.Thread(target=replace_cluster)
    with Client(f"tcp://127.0.0.1:{port}", timeout=60):
        restarts.start()
        assert outlive() == [number**2 for number in range(8)]
        default_client().close()
    restarts.join()
