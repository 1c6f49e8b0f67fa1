"""What every command does alike: defaults of its process, one message and an exit code for an error, plain output."""

import json
import os
import signal
import urllib.request

import pytest
import typer

from flows.cli.options import run_flow
from flows.cli.terminal import (
    BAD_INPUT,
    DEFAULTS,
    FAILED,
    PROXIES,
    keep_loopback_direct,
    print_body,
    print_rows,
    session,
)
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.blocks import UnsupportedLayer
from quad_tasks.core.lm.model import ModelError
from quad_tasks.runtime.processes.memory import OutOfDeviceMemory
from quad_tasks.storage.errors import InvalidKey, StoreKeyError, StoreUnavailable, UnsupportedStore
from quad_tasks.storage.input_documents import InputError
from quad_tasks.storage.manifest import DigestMismatch, ManifestMismatch

BLAMED_ON_INPUT = (
    ConfigError, InputError, ModelError, UnsupportedLayer,
    UnsupportedStore, InvalidKey, StoreKeyError, ManifestMismatch, OutOfDeviceMemory,
)  # fmt: skip
BLAMED_ON_THE_RUN = (StoreUnavailable, DigestMismatch, RuntimeError, OSError, MemoryError)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment in which none of the defaults is set, restored afterwards."""
    for name in (*DEFAULTS, "QUAD_QUIET"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.mark.parametrize("error", BLAMED_ON_INPUT)
def test_bad_input_is_one_message_and_code_2(capsys, error):
    with pytest.raises(typer.Exit) as ended, session(True, False):
        raise error("pool.inputs: expected files, found none")
    assert ended.value.exit_code == BAD_INPUT == 2
    assert capsys.readouterr() == ("", "quad: pool.inputs: expected files, found none\n")


@pytest.mark.parametrize("error", BLAMED_ON_THE_RUN)
def test_any_other_error_is_one_message_and_code_1(capsys, error):
    with pytest.raises(typer.Exit) as ended, session(True, False):
        raise error("the disk went away")
    assert ended.value.exit_code == FAILED == 1
    assert capsys.readouterr().err == "quad: the disk went away\n"


def test_an_error_without_a_message_is_named_by_its_kind(capsys):
    with pytest.raises(typer.Exit), session(True, False):
        raise ZeroDivisionError
    assert capsys.readouterr().err == "quad: ZeroDivisionError\n"


def test_a_full_disk_that_no_store_met_says_what_to_do(capsys):
    with pytest.raises(typer.Exit), session(True, False):
        raise OSError(28, "No space left on device", "/full/file")
    shown = capsys.readouterr().err
    assert "'/full/file': make room there (for temporary files, or set TMPDIR), then begin or resume again" in shown


def test_debug_shows_the_error_itself_and_logs():
    with pytest.raises(ConfigError, match="as it was raised"), session(True, True):
        raise ConfigError("as it was raised")
    assert {os.environ[name] for name in DEFAULTS if "LOGGING" in name} == {"INFO"}


def test_an_exit_code_that_a_command_chose_stands(capsys):
    with pytest.raises(typer.Exit) as ended, session(True, False):
        raise typer.Exit(7)
    assert ended.value.exit_code == 7
    assert capsys.readouterr().err == ""


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_an_interrupted_flow_says_how_to_go_on(capsys):
    with pytest.raises(typer.Exit) as ended, session(True, False):
        run_flow(interrupted)
    assert ended.value.exit_code == 1
    message, page = capsys.readouterr().err.splitlines()
    assert message == "quad: interrupted; the same command goes on from the last commit"
    assert page.startswith("see docs/guides/troubleshooting.md#interrupted")


def test_an_error_that_has_a_heading_names_it_in_a_second_line(capsys):
    with pytest.raises(typer.Exit), session(True, False):
        raise ConfigError("config.yaml: bandit.alfa: unknown key; did you mean alpha?")
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == ["see docs/guides/troubleshooting.md#unknown-key"]


def test_a_command_that_commits_nothing_speaks_of_no_commit(capsys):
    """A plan, a check or a look at a document has nothing to resume."""
    with pytest.raises(typer.Exit) as ended, session(True, False):
        interrupted()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "quad: interrupted\n"


@pytest.mark.parametrize("error", [None, RuntimeError("any")])
def test_the_handler_of_sigterm_is_put_back_however_a_command_ends(error):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with session(True, False):
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
            if error:
                raise error
    except typer.Exit:
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_users_own_environment_goes_before_the_defaults(monkeypatch):
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    with session(False, False):
        assert os.environ["PREFECT_LOGGING_LEVEL"] == "WARNING"
        assert {n: os.environ[n] for n in DEFAULTS if n != "PREFECT_LOGGING_LEVEL"}.items() <= DEFAULTS.items()
        assert "QUAD_QUIET" not in os.environ


@pytest.fixture
def no_proxy(monkeypatch):
    """No variable of a proxy is set, and those that a test or the product sets are put back."""
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("variable", PROXIES)
def test_requests_to_this_machine_pass_by_a_proxy_in_every_command(no_proxy, monkeypatch, variable):
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example, localhost")
    monkeypatch.setenv("no_proxy", "intranet.example, localhost")
    assert not urllib.request.proxy_bypass("127.0.0.1")
    with session(True, False):
        assert all(urllib.request.proxy_bypass(host) for host in ("127.0.0.1", "localhost", "intranet.example"))
        assert not urllib.request.proxy_bypass("hub.example")
    once = os.environ["NO_PROXY"]
    keep_loopback_direct()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == once == "intranet.example,localhost,127.0.0.1,::1"


def test_without_a_proxy_nothing_is_kept_from_it(no_proxy):
    keep_loopback_direct()
    assert {"NO_PROXY", "no_proxy"}.isdisjoint(os.environ)


def test_quiet_is_told_to_the_progress_bars():
    with session(True, False):
        assert os.environ["QUAD_QUIET"] == "1"


def test_a_body_is_a_line_a_key_with_values_in_one_column_and_is_never_cut(capsys):
    path = "/a/" + "long/" * 60 + "path"
    print_body({"documents_in": 1234567, "ok": True, "share": 0.25, "report": path}, False)
    assert capsys.readouterr().out.splitlines() == [
        "documents in  1,234,567",
        "ok            True",
        "share         0.25",
        f"report        {path}",
    ]


def test_a_body_as_json_keeps_its_types(capsys):
    body = {"documents_in": 1234567, "ok": True, "nested": {"a": [1, None]}}
    print_body(body, True)
    assert json.loads(capsys.readouterr().out) == body


def test_an_empty_body_prints_nothing(capsys):
    print_body({}, False)
    assert capsys.readouterr().out == ""


def test_rows_are_a_table_whose_brackets_are_text_and_whose_long_cells_are_whole(capsys):
    long = "x" * 300
    print_rows([{"trained_on": "[bold]a[/bold]", "n": 1}, {"trained_on": long, "n": 20}])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["trained", "on", "n"]
    assert "[bold]a[/bold]" in lines[1]
    assert out.count("x") == 300
    assert max(map(len, lines)) <= 160
