"""What computes has one version: of a run from its beginning to its end, and of all of a cluster's workers."""

from importlib.metadata import version

import pytest
from distributed import Client, LocalCluster
from small_pool import small_config

from quad_tasks.config.load import parse_config
from quad_tasks.manifests.run import RunRecord
from quad_tasks.runtime import run as runs
from quad_tasks.runtime import versions
from quad_tasks.runtime.versions import (
    SameVersions,
    VersionMismatch,
    computing_versions,
    describe_differences,
    refuse_mixed_workers,
)
from quad_tasks.storage.manifest import ManifestMismatch, read_manifest
from quad_tasks.storage.store import open_store


def test_versions_are_those_installed():
    found = computing_versions()
    assert found["torch"] == version("torch")
    assert found["quad-data"] == version("quad-data")
    assert found["python"].count(".") == 1


def test_differences_are_named_with_both_versions():
    assert describe_differences({"torch": "2.13.0", "numpy": "2.1"}, {"torch": "2.14.0", "numpy": "2.1"}) == (
        "torch 2.14.0 in place of 2.13.0"
    )
    assert describe_differences({"torch": "2"}, {}) == "torch missing in place of 2"
    assert describe_differences({"torch": "2"}, {"torch": "2"}) == ""


def test_a_run_goes_on_only_with_the_versions_it_began_with(tmp_path, monkeypatch):
    config = parse_config(small_config(tmp_path, str(tmp_path / "workspace")), "versions")
    store = open_store(config.workspace)
    runs.open_run(store, config)
    runs.open_run(store, config)
    assert read_manifest(RunRecord, store, "runs/small/config.json").versions == computing_versions()
    monkeypatch.setattr(runs, "computing_versions", lambda: computing_versions() | {"torch": "9.9"})
    expected = rf"config\.json' in .*torch 9\.9 in place of {version('torch')}: install .* another name"
    with pytest.raises(ManifestMismatch, match=expected.replace("+", r"\+")):
        runs.open_run(store, config)


def test_workers_of_other_versions_are_refused_by_name_and_those_of_the_same_taken():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        refuse_mixed_workers(client)
        other = SameVersions(computing_versions() | {"torch": "9.9"})
        other.name = "another driver's"
        with pytest.raises(VersionMismatch, match=r"worker \S+: expected the driver's versions, got torch .* of 9\.9"):
            client.register_plugin(other)


def test_a_cluster_by_address_is_asked_for_its_versions(monkeypatch):
    from flows import dask_cluster

    asked = []
    monkeypatch.setattr(dask_cluster, "current_client", lambda: None)
    monkeypatch.setattr(dask_cluster, "refuse_mixed_workers", asked.append)
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp") as cluster:
        compute = versions_config(cluster.scheduler_address)
        with dask_cluster.dask_cluster(compute) as client:
            assert asked == [client]


def versions_config(address: str):
    from quad_tasks.config.compute import ComputeConfig

    return ComputeConfig(dask_address=address)


def test_the_module_names_what_computes_alone():
    assert {"torch", "transformers", "tokenizers"} <= set(versions.COMPUTING_PACKAGES)
    assert "prefect" not in versions.COMPUTING_PACKAGES
