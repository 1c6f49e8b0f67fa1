"""Names complete in the shell, and the command line runs a flow without heartbeats."""

from types import SimpleNamespace

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.cli import options, printing
from flows.cli.options import complete_run, given_config, run_flow, run_selection, run_until
from quad_tasks.config.schema import ConfigError
from quad_tasks.storage.errors import StoreForbidden


@pytest.fixture
def workspace(tmp_path):
    for name in ("novels", "novels-2", "poems"):
        (tmp_path / "here" / "runs" / name).mkdir(parents=True)
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("typed", "offered"), [("", ["novels", "novels-2", "poems"]), ("nov", ["novels", "novels-2"]), ("x", [])]
)
def test_a_runs_name_completes_from_the_workspace_given_before_it(workspace, typed, offered):
    assert complete_run(SimpleNamespace(params={"workspace": str(workspace)}), typed) == offered


@pytest.mark.parametrize("params", [{}, {"workspace": None}])
def test_without_a_workspace_given_the_default_one_is_looked_at(workspace, monkeypatch, params):
    workspace.rename(workspace.with_name("workspace"))
    monkeypatch.chdir(workspace.parent)
    assert complete_run(SimpleNamespace(params=params), "p") == ["poems"]


def test_where_there_is_no_workspace_nothing_is_offered(tmp_path):
    assert complete_run(SimpleNamespace(params={"workspace": str(tmp_path / "none")}), "") == []


def test_a_flow_from_the_command_line_sends_no_heartbeats_and_only_then():
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        inside = run_flow(lambda a, b: (a, b, PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()), 1, "two")
        assert inside == (1, "two", None)
        assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == 30


def test_running_until_a_step_gives_the_key_of_what_it_made(monkeypatch):
    called = []
    monkeypatch.setattr(options, "run_flow", lambda flow, *given: called.append((flow.name, given)) or "factors/abc")
    assert run_until("the configuration", "fit") == "factors/abc"
    assert called == [("select-data", ("the configuration", "fit"))]


def test_a_whole_selection_says_that_it_loads_and_ends_with_its_headline(monkeypatch, capsys):
    monkeypatch.delenv("QUAD_QUIET")
    called = []
    monkeypatch.setattr(options, "run_flow", lambda flow, *given: called.append((flow.name, given)))
    monkeypatch.setattr(printing, "print_report", lambda config, as_json: called.append(("report", config, as_json)))
    run_selection("the configuration", True)
    assert called == [("select-data", ("the configuration",)), ("report", "the configuration", True)]
    assert capsys.readouterr().err.startswith("load libraries\n")


def test_a_workspace_that_refuses_completes_to_nothing(monkeypatch):
    def refuse(_workspace: str) -> list[str]:
        raise StoreForbidden("access refused")

    monkeypatch.setattr("quad_tasks.runtime.run.list_runs", refuse)
    assert complete_run(SimpleNamespace(params={}), "") == []


def test_overrides_without_a_configuration_are_refused():
    assert given_config(None, None) is None
    with pytest.raises(ConfigError, match=r"--set seed=1: expected a configuration whose key it overrides, found none"):
        given_config(None, ["seed=1"])
