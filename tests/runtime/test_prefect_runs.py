"""A run needs no Prefect server to end: flows and tasks go on as plain functions where it does not answer."""

import logging
import os
import re
import socket
import time

import httpx
import pytest
from deployments import run_log
from prefect import Flow, Task
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    temporary_settings,
)

from quad_tasks.records import Finding
from quad_tasks.runtime import prefect_runs
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_runs import (
    WITHOUT_PREFECT_VARIABLE,
    await_temporary_server,
    flow,
    go_on_without,
    make_task,
)
from quad_tasks.runtime.progress import notice, progress

PASSWORD = "planted-horse"
LATE_S = 20
"""Fifty lines that each waited for a server that is gone would take longer."""


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """What was said on the console; Prefect is asked again after the test."""
    monkeypatch.setenv(WITHOUT_PREFECT_VARIABLE, "")
    lines: list[str] = []
    monkeypatch.setattr(prefect_runs, "notice", lines.append)
    return lines


@pytest.fixture
def dead_server():
    """The address of a server that is gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/api"


def square_flow(calls: list[int]) -> Flow:
    def square(number: int) -> int:
        calls.append(number)
        return number**2

    return flow(name="square", flow_run_name="{number}")(square)


def test_a_flow_whose_server_is_gone_ends_all_the_same_and_says_which_server(dead_server, said):
    calls: list[int] = []
    with temporary_settings({PREFECT_API_URL: dead_server, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert square_flow(calls)(3) == 9
        assert square_flow(calls)(4) == 16
    assert calls == [3, 4]
    (line,) = said
    assert line.startswith(f"Prefect's server at {dead_server} does not answer")
    assert "the run goes on without it" in line
    assert "start it again, or unset PREFECT_API_URL" in line


@pytest.mark.slow
def test_a_server_lost_in_the_middle_of_a_flow_does_not_end_it(prefect_server, dead_server, said):
    calls: list[int] = []
    inner = square_flow(calls)

    def outer() -> int:
        with temporary_settings({PREFECT_API_URL: dead_server, PREFECT_CLIENT_MAX_RETRIES: 0}):
            return inner(3) + inner(4)

    assert flow(name="outer", flow_run_name="outer")(outer)() == 25
    assert calls == [3, 4]
    assert len(said) == 1


@pytest.mark.slow
def test_a_flow_runs_log_has_what_its_steps_say_and_its_findings_and_the_console_no_line_twice(
    prefect_server, monkeypatch, capsys
):
    monkeypatch.delenv("QUAD_QUIET")
    finding = Finding("flat_rewards", "warning", {"arms": 3}, "give bandit.pilot_documents more")

    def fit() -> int:
        with progress("fit factors", 128, "documents") as advance:
            for _ in range(128):
                advance(1)
        return 128

    def outer() -> int:
        stage = make_task(fit, "fit", [], ())
        announce_findings("run r", [finding])
        return flow(name="inner", flow_run_name="inner log")(lambda: stage())()

    assert flow(name="outer", flow_run_name="outer log")(outer)() == 128
    lines = run_log(PREFECT_API_URL.value().removesuffix("/api"), "outer log", last="fit factors: 128 documents in")
    assert [level for level, _ in lines] == [logging.WARNING, logging.INFO, logging.INFO]
    assert lines[0][1] == "run r: flat_rewards (warning; arms 3): give bandit.pilot_documents more"
    assert lines[1][1] == "fit factors: 128 documents"
    assert re.fullmatch(r"fit factors: 128 documents in \d+\.\d s", lines[2][1])
    said = [line.partition(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [message.partition(" in ")[0] for _, message in lines]


def test_a_log_whose_server_is_gone_neither_ends_nor_slows_a_run(prefect_server, dead_server):
    def outer() -> float:
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: dead_server}), progress("embed", 50, "shards") as advance:
            for number in range(50):
                advance(1)
                notice(f"said {number}")
        return time.monotonic() - began

    assert flow(name="away", flow_run_name="away")(outer)() < LATE_S


def test_without_prefect_a_task_is_tried_again_for_what_passes_and_for_nothing_else(monkeypatch):
    monkeypatch.setenv(WITHOUT_PREFECT_VARIABLE, "1")
    errors = [ConnectionError("busy"), ConnectionError("busy")]

    def work() -> str:
        if errors:
            raise errors.pop()
        return "done"

    task: Task = make_task(work, "work", [0.0, 0.0], (ConnectionError,))
    assert task() == "done"
    errors += [ValueError("broken")]
    with pytest.raises(ValueError, match="broken"):
        task()
    errors += [ConnectionError("busy")] * 3
    with pytest.raises(ConnectionError, match="busy"):
        task()


def test_an_error_of_the_work_itself_is_not_taken_for_a_lost_server(said):
    elsewhere = httpx.ConnectError("refused", request=httpx.Request("GET", "https://models.example/weights"))
    for error in (ValueError("broken"), ConnectionRefusedError("refused"), elsewhere):
        assert not go_on_without(error)
    assert said == []
    assert not os.environ[WITHOUT_PREFECT_VARIABLE]


def test_what_is_said_of_a_server_shows_no_password(said):
    with temporary_settings({PREFECT_API_URL: f"http://ada:{PASSWORD}@prefect.example/api"}):
        request = httpx.Request("GET", "http://prefect.example/api/health")
        assert go_on_without(httpx.ReadTimeout(f"http://ada:{PASSWORD}@prefect.example", request=request))
    assert "***@prefect.example" in said[0]
    assert PASSWORD not in said[0]


class SlowServer:
    """Prefect's temporary server on a busy machine: it is not there in time, and answers when it was asked thrice."""

    running = False
    pid, returncode = 4321, None

    def __init__(self) -> None:
        self.server_process, self.asked, self.api_url = self, 0, "http://127.0.0.1:1/api"

    def start(self, timeout: int) -> None:
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")

    def poll(self) -> int | None:
        return self.returncode

    def answer(self, url: str, **_options: object) -> httpx.Response:
        assert url == f"{self.api_url}/health"
        self.asked += 1
        if self.asked == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200 if self.asked > 3 else 503)


@pytest.fixture
def slow_server(monkeypatch):
    server = SlowServer()
    monkeypatch.setattr("prefect.server.api.server.SubprocessASGIServer", lambda: server)
    monkeypatch.setattr(prefect_runs.httpx, "get", server.answer)
    monkeypatch.setattr(prefect_runs, "SILENT_S", 0)
    monkeypatch.setattr(prefect_runs, "POLL_S", 0)
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL}):
        yield server


def test_a_temporary_server_that_is_slow_is_waited_for_while_its_process_lives(slow_server, said, monkeypatch, capsys):
    monkeypatch.delenv("QUAD_QUIET")
    await_temporary_server()
    assert capsys.readouterr().err == "start Prefect's temporary server\n"
    assert (slow_server.running, slow_server.asked) == (True, 4)
    assert len(said) == 3
    assert said[0].startswith("waiting for the temporary Prefect server, process 4321, which has not answered for 0 s")
    await_temporary_server()
    assert slow_server.asked == 4
    assert capsys.readouterr().err == ""


def test_a_temporary_server_whose_process_ended_is_gone_on_without(slow_server, said):
    slow_server.returncode = 1
    calls: list[int] = []
    assert square_flow(calls)(3) == 9
    assert calls == [3]
    (line,) = said
    assert "the temporary Prefect server of this process does not answer" in line
    assert "its process ended with exit code 1" in line


def test_no_temporary_server_is_started_beside_one_that_is_named(slow_server, dead_server):
    with temporary_settings({PREFECT_API_URL: dead_server}):
        await_temporary_server()
    assert (slow_server.running, slow_server.asked) == (False, 0)
