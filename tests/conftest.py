"""Shared by all tests: quiet settings, one Prefect server and Dask cluster a session, and one small finished run."""

import os
from pathlib import Path

os.environ.setdefault("QUAD_QUIET", "1")
os.environ["QUAD_WITHOUT_PREFECT"] = "1"  # a recorded run takes twice as long; a test that asks for the server has it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

import pytest
from hypothesis import settings
from reaper import children_end_with_this_process
from scheduling import LoadFileOrFixture, longest_first, quick
from small_pool import small_config, write_corpus

# An example's time says how busy the machine is, and would fail tests at random.
settings.register_profile("quad", deadline=None)
settings.load_profile("quad")


TESTS = Path(__file__).parent
WAITING = [TESTS / folder for folder in ("flows", "runtime", "storage", "system")]
"""Of tests that wait for servers, workers and browsers, any of which is late where the machine stalls. Such a test is
tried once more; the summary shows what its first try met."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="Leave out slow tests, and most cases of parametrized ones.")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        items[:] = quick(items)
    for item in items:
        if any(folder in item.path.parents for folder in WAITING):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if hasattr(config, "workerinput"):
        items[:] = longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return LoadFileOrFixture(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_tests():
    """A killed pytest runs no teardown; its servers, workers and their runs end all the same."""
    with children_end_with_this_process():
        yield


@pytest.fixture(scope="session")
def prefect_server():
    """A Prefect API with a database of its own."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=300),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(autouse=True)
def _flows_recorded_where_asked(request, monkeypatch):
    """Flows and tasks are plain functions in a test that does not ask for `prefect_server` itself."""
    if "prefect_server" in request.fixturenames:
        monkeypatch.setenv("QUAD_WITHOUT_PREFECT", "")


@pytest.fixture(scope="session")
def dask_client():
    """A Dask cluster inside this process, the default client of every flow."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.worker-ttl": None,  # on a busy machine its one worker may be late
        "distributed.worker.profile.enabled": False,  # a sample every 10 ms, which no test reads
    }
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def one_process(monkeypatch):
    """`quad plan` measures a worker in this process: one of its own takes seconds to start and counts the same."""
    from quad_tasks.commands.estimates import probe

    monkeypatch.setattr(probe, "LEAST_S", 0.0)
    monkeypatch.setattr(probe, "_at_once", lambda measure, processes, *given: measure(*given))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def small_run(dask_client, corpus, tmp_path_factory):
    """The configuration of a finished run of two stages."""
    from flows.select_data import select_data
    from quad_tasks.config.load import parse_config

    config = parse_config(small_config(corpus, str(tmp_path_factory.mktemp("workspace"))), "small")
    select_data(config)
    return config
