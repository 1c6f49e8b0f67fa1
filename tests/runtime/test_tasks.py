"""Work spread over Dask outlives its workers and its scheduler, and keeps to GPUs where there are any."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dask_calls import fill_device, name_of_worker, power, slow_square, square, square_or_die
from distributed import Client, Future, LocalCluster, default_client
from prefect import flow

from quad_tasks.runtime import tasks
from quad_tasks.runtime.processes.memory import OutOfDeviceMemory
from quad_tasks.runtime.tasks import NoWorkers, map_tasks, stage_task


def test_a_killed_workers_calls_are_done_again_by_another(tmp_path):
    items = [(str(tmp_path / "killed"), number) for number in range(10)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        assert map_tasks(square_or_die, items, "square", "numbers") == [number**2 for number in range(10)]
    assert (tmp_path / "killed").exists()


def test_work_for_a_gpu_keeps_to_workers_that_have_one():
    items = [(number,) for number in range(6)]
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        cluster.scale(2)
        with Client(cluster) as client:
            client.wait_for_workers(2)
            assert set(map_tasks(name_of_worker, items, "name", "calls", on_gpu=True)) <= {"0", "1"}
            chosen = cluster.workers[1]
            client.sync(chosen.set_resources, GPU=1)
            assert set(map_tasks(name_of_worker, items, "name", "calls", on_gpu=True)) == {"1"}


def test_a_window_of_calls_is_in_the_scheduler_and_what_they_share_is_sent_once(dask_client, monkeypatch):
    in_scheduler, first_arguments = [], set()
    submit = Client.submit

    def watched(client, function, *arguments, **settings):
        first_arguments.add(arguments[1])  # after the function that a worker calls
        in_scheduler.append(1 + len([key for key in client.futures if key.startswith("power-")]))
        return submit(client, function, *arguments, **settings)

    monkeypatch.setattr(Client, "submit", watched)
    monkeypatch.setattr(tasks, "IN_FLIGHT", 7)
    found = map_tasks(power, [(number,) for number in range(60)], "power", "numbers", shared=[3])
    assert found == [number**3 for number in range(60)]
    assert 7 <= max(in_scheduler) <= 8
    assert [type(argument) for argument in first_arguments] == [Future]


def test_no_more_calls_than_asked_for_run_at_once(dask_client, monkeypatch):
    in_scheduler = []
    submit = Client.submit

    def watched(client, *arguments, **settings):
        in_scheduler.append(1 + len([key for key in client.futures if key.startswith("power-")]))
        return submit(client, *arguments, **settings)

    monkeypatch.setattr(Client, "submit", watched)
    found = map_tasks(power, [(number, 2) for number in range(9)], "power", "numbers", at_once=1)
    assert found == [2**number for number in range(9)]
    assert max(in_scheduler) <= 2  # one that has ended may not be forgotten yet


def test_a_failing_call_raises_its_own_error(dask_client):
    with pytest.raises(ZeroDivisionError):
        map_tasks(power, [(number,) for number in (2, 1, 0)], "power", "numbers", shared=[-1])


def test_a_cluster_in_this_process_that_lost_its_worker_is_an_error_that_says_why(monkeypatch):
    monkeypatch.setattr(tasks, "WORKERS_CHECK_S", 0.1)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.sync(cluster.workers[0].close, reason="it was told to")
        with pytest.raises(NoWorkers, match=r"square: expected a worker .*; it closed: it was told to"):
            map_tasks(square, [(3,)], "square", "numbers")


def test_workers_are_those_of_the_scheduler_not_what_the_client_keeps_of_them():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.sync(client._update_scheduler_info)  # as the client does every other second
        assert client._scheduler_identity["workers"] == {}
        assert list(tasks._list_workers(client)) == [cluster.workers[0].address]


def test_a_cluster_elsewhere_that_has_no_worker_is_waited_for_and_said(monkeypatch):
    said = []
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster.scheduler_address),
    ):

        def hear(message):
            said.append(message)
            cluster.scale(1)

        monkeypatch.setattr(tasks, "WORKERS_CHECK_S", 0.1)
        monkeypatch.setattr(tasks, "notice", hear)
        assert map_tasks(square, [(3,)], "square", "numbers") == [9]
        assert said[0] == f"square: waiting for a worker, the Dask cluster at {cluster.scheduler_address} has none"


def test_a_client_opened_in_place_of_a_lost_one_is_closed(monkeypatch):
    opened = []

    def open_client(*arguments, **settings):
        opened.append(Client(*arguments, **settings))
        return opened[-1]

    with (
        LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster.scheduler_address) as lost,
        monkeypatch.context() as patched,
    ):
        patched.setattr(tasks, "Client", open_client)
        patched.setattr(lost, "status", "connecting")
        assert map_tasks(square, [(3,)], "square", "numbers") == [9]
        assert [client.status for client in opened] == ["closed"]
        assert default_client() is lost


@pytest.fixture
def start_process():
    """Start processes that are ended with the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
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
    monkeypatch.setattr(tasks, "RETRY_DELAYS_S", [0.5, 0.5])

    def start_cluster():
        scheduler = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        worker = ("distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard")
        return start_process(*scheduler), start_process(*worker)

    @stage_task("square")
    def square_all() -> list[int]:
        return map_tasks(slow_square, [(str(tmp_path), number) for number in range(8)], "square", "numbers")

    @flow
    def outlive() -> list[int]:
        return square_all()

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


def test_a_device_that_is_full_is_one_message_that_names_what_to_change(dask_client):
    with pytest.raises(OutOfDeviceMemory) as failed:
        map_tasks(fill_device, [(20,)], "fit covariances", "chunks", smaller="set factors.max_factor_width")
    message = str(failed.value)
    assert message.startswith(
        "fit covariances: expected work that the memory of the device holds, found it full (CUDA out of"
    )
    assert message.endswith("): set factors.max_factor_width")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("key", ["model.batch_tokens", "model.window_tokens", "model.dtype", "compute.device"])
def test_without_more_to_say_the_keys_of_a_batch_and_a_model_are_named(dask_client, key):
    with pytest.raises(OutOfDeviceMemory, match=key):
        map_tasks(fill_device, [(20,)], "measure", "models")
