"""`quad run` as real processes: two on one run, of which one works, and nothing they write holds a secret."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from small_pool import small_config

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_planted0123456789planted",
    "QUAD_TEST_PASSWORD": "planted-correct-horse-battery",
}
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280
POLL_S = 0.2


@dataclass(frozen=True)
class Finished:
    """An ended process: its exit code and what it printed."""

    pid: int
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Race:
    """Two processes that were started on one run at once, what they wrote, and the addresses they listened on."""

    folder: Path
    finished: tuple[Finished, ...]
    listening: set[str]


@pytest.fixture(scope="module")
def race(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    config = folder / "config.yaml"
    body = small_config(corpus, str(folder / "workspace"), training__stages=1, compute__workers=1)
    config.write_text(yaml.safe_dump(body))
    started = [_start(folder, number, "run", str(config)) for number in range(2)]
    listening: set[str] = set()
    deadline = time.monotonic() + TIMEOUT_S
    while any(process.poll() is None for process in started):
        assert time.monotonic() < deadline
        for process in started:
            listening |= _listening(process.pid)
        time.sleep(POLL_S)
    return Race(folder, tuple(_finished(process, folder, n) for n, process in enumerate(started)), listening)


def _start(folder: Path, number: int, *arguments: str, recorded: bool = True) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("quad")), *arguments]
    environment = {**os.environ, **SECRETS, "PREFECT_HOME": str(folder / f"prefect-{number}"), "QUAD_QUIET": ""}
    environment |= {"QUAD_WITHOUT_PREFECT": "" if recorded else "1"}
    environment.pop("PREFECT_API_URL", None)
    with (folder / f"stdout-{number}").open("wb") as stdout, (folder / f"stderr-{number}").open("wb") as stderr:
        return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)


def _finished(process: subprocess.Popen[bytes], folder: Path, number: int) -> Finished:
    printed = [(folder / f"{stream}-{number}").read_text() for stream in ("stdout", "stderr")]
    return Finished(process.pid, process.returncode, *printed)


def _listening(pid: int) -> set[str]:
    """Return the addresses on which a process and its descendants wait for connections."""
    found: set[str] = set()
    with suppress(psutil.Error):
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            with suppress(psutil.Error):
                found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
def test_of_two_processes_on_one_run_one_finishes_and_the_other_is_told_by_whom(race):
    winner, loser = sorted(race.finished, key=lambda finished: finished.code)
    assert (winner.code, loser.code) == (0, 1), winner.stderr + loser.stderr
    assert re.search(rf"expected no other driver, got process {winner.pid} of .* on .*, started", loser.stderr)
    assert "Traceback" not in loser.stderr
    assert (race.folder / "workspace" / "runs" / "small" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_any_byte_that_was_written(race):
    written = {path: path.read_bytes() for path in race.folder.rglob("*") if path.is_file()}
    assert any(path.suffix == ".db" for path in written)
    printed = "".join(finished.stdout + finished.stderr for finished in race.finished)
    for name, secret in SECRETS.items():
        assert [str(path) for path, data in written.items() if secret.encode() in data] == [], name
        assert secret not in printed, name


@pytest.mark.slow
def test_of_two_refreshes_of_one_pool_the_second_waits_and_finds_the_work_done(corpus, tmp_path):
    started = []
    for number in range(2):
        config = tmp_path / f"config-{number}.yaml"
        changes = {"run": f"run-{number}", "compute__workers": 1}
        config.write_text(yaml.safe_dump(small_config(corpus, str(tmp_path / "workspace"), **changes)))
        started.append(_start(tmp_path, number, "pool", "refresh", str(config), "--json", recorded=False))
    for process in started:
        process.wait(timeout=TIMEOUT_S)
    both = [_finished(process, tmp_path, number) for number, process in enumerate(started)]
    assert [finished.code for finished in both] == [0, 0], both
    first, second = (json.loads(finished.stdout) for finished in both)
    assert first == second
    (waiting,) = [finished for finished in both if "waiting for process" in finished.stderr]
    assert "embed: " not in waiting.stderr
    assert [path for path in (tmp_path / "workspace").rglob("shuffle/**/*") if path.is_file()] == []


@pytest.mark.slow
def test_servers_that_a_run_starts_listen_on_loopback_only(race):
    assert race.listening == {"127.0.0.1"}


@pytest.mark.slow
def test_a_proxy_behind_which_nothing_is_keeps_no_dry_run_from_its_plan(corpus, tmp_path, monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{one.getsockname()[1]}"  # nothing listens at it
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, dead)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(small_config(corpus, str(tmp_path / "workspace"), compute__workers=1)))
        process = _start(tmp_path, 0, "run", str(config), "--dry-run")
        process.wait(timeout=TIMEOUT_S)
    finished = _finished(process, tmp_path, 0)
    assert finished.code == 0, finished.stderr


ENTRYPOINT = "from prefect.flows import load_flow_from_entrypoint as load; load('flows/fit_influence.py:fit_influence')"


@pytest.mark.parametrize("start", ["import flows.fit_influence", "import quad_tasks.runtime.tasks", ENTRYPOINT])
def test_prefect_reports_to_nobody_however_a_flow_is_started(tmp_path, start):
    """In a process whose environment says nothing of it, not even that it runs in CI, where Prefect reports nothing."""
    code = (
        f"import os; {start}; from prefect.analytics import _is_telemetry_enabled as enabled; "
        "from prefect.settings import get_current_settings as settings; "
        "print(enabled(), os.environ['PREFECT_SERVER_ANALYTICS_ENABLED'], settings().server.analytics_enabled)"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    # a server that is not there, which Prefect asks before it reports: a fault here reports nothing either
    elsewhere = {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **elsewhere},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ended.returncode == 0, ended.stderr
    reports, server_reports, setting = ended.stdout.split()
    assert (reports, server_reports) == ("False", "false")
    assert setting == "False" or start == ENTRYPOINT  # where Prefect, and its settings, are there before Quad
