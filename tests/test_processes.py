"""`quad run` as real processes: two on one run, of which one works, and nothing they write holds a secret."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from small_pool import small_config

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_planted0123456789planted",
    "QUAD_TEST_PASSWORD": "planted-correct-horse-battery",
}
TIMEOUT_S = 280


@dataclass(frozen=True)
class Finished:
    """An ended process: its exit code and what it printed."""

    pid: int
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Race:
    """Two processes that were started on one run at once, and the folder that holds all they wrote."""

    folder: Path
    finished: tuple[Finished, ...]


@pytest.fixture(scope="module")
def race(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    config = folder / "config.yaml"
    body = small_config(corpus, str(folder / "workspace"), training__stages=1, compute__workers=1)
    config.write_text(yaml.safe_dump(body))
    quad = str(Path(sys.executable).with_name("quad"))
    processes = []
    for number in range(2):
        environment = {**os.environ, **SECRETS, "PREFECT_HOME": str(folder / f"prefect-{number}")}
        environment.pop("PREFECT_API_URL", None)
        processes.append(
            subprocess.Popen(
                [quad, "run", str(config)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    finished = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        finished.append(Finished(process.pid, process.returncode, stdout, stderr))
    return Race(folder, tuple(finished))


@pytest.mark.slow
def test_of_two_processes_on_one_run_one_finishes_and_the_other_is_told_by_whom(race):
    winner, loser = sorted(race.finished, key=lambda finished: finished.code)
    assert (winner.code, loser.code) == (0, 1), winner.stderr + loser.stderr
    assert re.search(rf"expected no other driver, got process {winner.pid} on .*, started", loser.stderr)
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
