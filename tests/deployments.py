"""A Prefect server with deployments and workers, started as `make ui` does, for tests and for a look at the screen."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STARTUP_S = 400
POLL_S = 0.5
ANSWER_S = 60


@contextmanager
def running_ui(folder: Path, config: Path) -> Iterator[str]:
    """Run `infra/ui.sh` with a database and a port of its own; yields the server's address once workers are started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "QUAD_BIN": str(BIN),
        "QUAD_CONFIG": str(config),
        "PREFECT_HOME": str(folder / "prefect"),
        "QUAD_WITHOUT_PREFECT": "",
        "PREFECT_PORT": str(port),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    environment.pop("PREFECT_API_URL", None)
    log = folder / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", str(ROOT / "infra/ui.sh")],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "Prefect UI: " in log.read_text() or process.poll() is not None, STARTUP_S)
        if process.poll() is not None:
            raise RuntimeError(f"infra/ui.sh ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def run_deployment(url: str, name: str, *arguments: str) -> str:
    """Start a deployment's run from the command line, wait for its end and return what was printed."""
    command = [str(BIN / "prefect"), "--no-prompt", "deployment", "run", name, "--watch", *arguments]
    environment = {**os.environ, "PREFECT_API_URL": f"{url}/api"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def once_soon(url: str, name: str) -> None:
    """Change a deployment's cron schedule to the minute after the next one: each further run takes a processor."""
    soon = datetime.now(UTC) + timedelta(minutes=2)
    deployment = _ask("GET", f"{url}/api/deployments/name/{name}").json()
    (schedule,) = deployment["schedules"]
    changed = {"schedule": {"cron": f"{soon.minute} {soon.hour} * * *", "timezone": "UTC"}, "active": True}
    path = f"{url}/api/deployments/{deployment['id']}/schedules/{schedule['id']}"
    _ask("PATCH", path, changed)


def flow_runs(url: str, deployment: str, state: str) -> list[dict[str, Any]]:
    """Return a deployment's runs in a state, oldest first."""
    body = {
        "deployments": {"name": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": [state]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    found: list[dict[str, Any]] = _ask("POST", f"{url}/api/flow_runs/filter", body).json()
    return found


def run_log(url: str, name: str, last: str) -> list[tuple[int, str]]:
    """Return level and text of a name's last flow run's log, oldest first, once a line begins with `last`.

    Lines are sent in the background, some seconds after they were written; `last` begins the one written last.
    """
    body: dict[str, Any] = {"flow_runs": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_DESC"}
    runs = _ask("POST", f"{url}/api/flow_runs/filter", body).json()
    run_id = next(run["id"] for run in runs if run["parent_task_run_id"] is None)
    body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}

    def lines() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = _ask("POST", f"{url}/api/logs/filter", body).json()
        return [line for line in found if line["name"] == "quad"]

    wait_until(lambda: any(line["message"].startswith(last) for line in lines()), ANSWER_S)
    return [(line["level"], line["message"]) for line in lines()]


def artifacts(url: str) -> dict[str, dict[str, Any]]:
    """Return the last version of every artifact, by key; its own number stands under `latest_id`."""
    found = _ask("POST", f"{url}/api/artifacts/latest/filter", {"limit": 200}).json()
    return {artifact["key"]: artifact for artifact in found}


def deployment_id(url: str, name: str) -> str:
    """Return a deployment's number."""
    found: str = _ask("GET", f"{url}/api/deployments/name/{name}").json()["id"]
    return found


def _ask(method: str, address: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Ask the server, again while its SQLite is locked."""

    def answer() -> httpx.Response | None:
        response = httpx.request(method, address, json=body, timeout=ANSWER_S)
        return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response.raise_for_status()

    response: httpx.Response = wait_until(answer, ANSWER_S)
    return response


def wait_until(condition: Callable[[], Any], timeout_s: float) -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing within {timeout_s} s")
        time.sleep(POLL_S)
    return result
