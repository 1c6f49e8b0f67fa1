"""A flow computes on the cluster around it, on one by address, or on one of its own that ends with it."""

import os

import pytest
from dask_calls import knock
from distributed import Client, LocalCluster, default_client
from distributed.security import Security

from flows import dask_cluster as module
from flows.dask_cluster import THREAD_VARIABLES, dask_cluster
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.runtime.check_environment import ADDRESS_VARIABLE


@pytest.fixture
def address():
    """A scheduler of another's, reached by its address only."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def no_client(monkeypatch):
    """Hide the session's own client, which an earlier test may have opened."""
    monkeypatch.setattr(module, "current_client", lambda: None)


def test_the_client_of_a_flow_around_is_taken_and_left_open(dask_client):
    with dask_cluster(ComputeConfig(dask_address="tcp://127.0.0.1:1")) as client:
        assert client is dask_client
    assert dask_client.status == "running"


@pytest.mark.parametrize("named", ["configuration", "environment"])
def test_a_scheduler_is_found_by_its_address_and_outlives_the_flow(no_client, address, monkeypatch, named):
    if named == "environment":
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
    compute = ComputeConfig(dask_address=address if named == "configuration" else None)
    with dask_cluster(compute) as client:
        assert client.scheduler.address == address
        assert default_client() is client
    with Client(address, set_as_default=False) as again:
        assert again.scheduler_info()["workers"] == {}


def test_the_configurations_address_goes_before_the_environments(no_client, address, monkeypatch):
    monkeypatch.setenv(ADDRESS_VARIABLE, "tcp://127.0.0.1:1")
    with dask_cluster(ComputeConfig(dask_address=address)) as client:
        assert client.scheduler.address == address


def test_a_cluster_of_its_own_has_the_workers_and_threads_asked_for_and_ends_with_the_flow(
    no_client, monkeypatch, capsys
):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.delenv("QUAD_QUIET")
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    with dask_cluster(ComputeConfig(workers=1, threads_per_worker=3)) as client:
        assert capsys.readouterr().err.startswith("start 1 worker\n")
        client.wait_for_workers(1)
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["nthreads"] == 1
        assert worker["memory_limit"] == 0
        (seen,) = client.run(lambda: {**os.environ, "pid": os.getpid()}).values()
        assert seen["pid"] != os.getpid()
        assert {seen[name] for name in THREAD_VARIABLES} == {"3"}
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"7"}
        assert (seen["MALLOC_ARENA_MAX"], seen["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("2", "64")
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for stranger in (address, address.replace("tls", "tcp")):
            with pytest.raises((OSError, TypeError)):
                knock(stranger, Security())
        with pytest.raises(OSError, match=r"[Tt]imed out|closed|TLS|handshake"):
            knock(address, Security.temporary())
        knock(address, client.security)
    assert client.status == "closed"
    with pytest.raises(ProcessLookupError):
        os.kill(seen["pid"], 0)
