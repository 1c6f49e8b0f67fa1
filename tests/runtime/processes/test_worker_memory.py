"""Workers that hold too much are started anew; peaks are those of all processes."""

import os

import pytest
from distributed import Client, LocalCluster

from quad_tasks.runtime.processes import worker_memory
from quad_tasks.runtime.processes.memory import own_bytes, own_peak_bytes
from quad_tasks.runtime.processes.worker_memory import peak_gpu_memory_bytes, peak_memory_bytes, renew_workers

HELD = []


def hold(size: int) -> int:
    """Keep so many bytes in this process, and say which it is."""
    HELD.append(b"x" * size)
    return os.getpid()


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_the_worker_that_holds_too_much_is_started_anew_and_the_other_goes_on(client):
    large, small = sorted(client.run(os.getpid))
    processes = client.run(os.getpid)
    client.run(hold, 2**29, workers=[large])
    renew_workers(client.run(own_bytes)[small] + 2**28)
    renewed = set(client.run(os.getpid).values())
    assert processes[small] in renewed
    assert processes[large] not in renewed
    assert len(renewed) == 2
    renew_workers(2**40)
    assert set(client.run(os.getpid).values()) == renewed


def test_a_cluster_of_others_is_left_as_it_is(client, monkeypatch):
    processes = client.run(os.getpid)
    with Client(client.scheduler.address) as by_address:
        monkeypatch.setattr(worker_memory, "current_client", lambda: by_address)
        renew_workers(0)
    assert client.run(os.getpid) == processes


def test_peaks_of_all_processes_are_added_up(client):
    workers = client.run(own_peak_bytes)
    assert peak_memory_bytes() >= sum(workers.values()) + own_bytes()
    assert peak_gpu_memory_bytes() is None


def test_without_a_cluster_the_peak_is_this_processes_own(monkeypatch):
    monkeypatch.setattr(worker_memory, "current_client", lambda: None)
    monkeypatch.setattr(worker_memory, "own_peak_bytes", lambda: 7)  # it may rise between two readings
    assert peak_memory_bytes() == 7
    renew_workers(0)
