"""The whole path on S3 gives what local disk does, with failing requests and by other workers; no secret is written."""

import http.client
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
import yaml
from deployments import wait_until
from s3_server import running_s3
from small_pool import digests_of, small_config

from flows.select_data import select_data
from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.storage.store import open_store

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
FAULT_SHARE = 0.1
FAULTS = {"unavailable": 10, "reset": 10, "truncated": 10, "timeout": 1}
"""How often each is, relative to the others: a timeout costs its whole wait."""
READ_TIMEOUT_S = 1.0
ROOT, BIN = Path(__file__).parents[2], Path(sys.executable).parent
STARTED_S = 60


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`, and fails a share of them on a seeded schedule, some after they were done."""

    daemon_threads = True

    def __init__(self, upstream: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream = urlsplit(upstream)
        self.failed: Counter[str] = Counter()
        self.requests = 0
        self.ended = threading.Event()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def next_fault(self) -> str | None:
        with self._lock:
            self.requests += 1
            failing = self._random.random() < FAULT_SHARE
            fault = self._random.choices([*FAULTS], [*FAULTS.values()])[0] if failing else None
            self.failed.update([fault] if fault else [])
            return fault


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.next_fault()
        if fault == "unavailable":
            self.reply(503, [], b"")
            return
        status, headers, data = self.pass_on(body)
        if fault == "timeout":
            self.server.ended.wait(timeout=10 * READ_TIMEOUT_S)  # the client gives up long before
        if fault in ("reset", "timeout"):
            self.hang_up()
        elif fault == "truncated":
            self.reply(status, headers, data, sent=len(data) // 2)
            self.hang_up()
        else:
            self.reply(status, headers, data)

    do_HEAD = do_PUT = do_DELETE = do_POST = do_GET

    def pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(str(self.server.upstream.hostname), self.server.upstream.port)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        return response.status, response.getheaders(), data

    def reply(self, status: int, headers: list[tuple[str, str]], data: bytes, sent: int | None = None) -> None:
        length = next((v for k, v in headers if k.lower() == "content-length"), str(len(data)))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client was first
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


@contextmanager
def faulty_proxy(upstream: str, seed: int) -> Iterator[FaultyProxy]:
    with FaultyProxy(upstream, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield proxy
        proxy.ended.set()
        proxy.shutdown()
        thread.join()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with an empty bucket `bucket`, whose credentials stand in the environment; yields its address."""
    with running_s3() as address:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.close()
        yield address


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_s3_that_fails_a_tenth_of_requests_selects_what_one_on_local_disk_does(
    small_run, corpus, s3, monkeypatch
):
    monkeypatch.setattr("quad_tasks.storage.errors.sleep", lambda seconds: None)
    monkeypatch.setattr("quad_tasks.storage.store.READ_TIMEOUT_S", READ_TIMEOUT_S)
    config = parse_config(small_config(corpus, "s3://bucket/faulty"), "faulty")
    with faulty_proxy(s3, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        select_data(config)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert digests_of(config) == digests_of(small_run)
    assert verify_run(config)["balanced"]
    store = open_store(config.workspace)
    assert [key for key in store.list() if SECRET.encode() in store.get(key)] == []
    assert sum(proxy.failed.values()) > FAULT_SHARE / 2 * proxy.requests
    assert set(proxy.failed) == set(FAULTS)
    print(f"{proxy.requests} requests, {dict(proxy.failed)} failed")


@contextmanager
def separate_cluster(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A scheduler and two workers, processes that speak TLS; yields its address and a client's environment."""
    runpy.run_path(str(ROOT / "infra/bootstrap.py"))["make_certificate"](folder)
    tls = {"REQUIRE_ENCRYPTION": "true", "TLS__CA_FILE": str(folder / "cert.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {f"TLS__{role}__{kind.upper()}": str(folder / f"{kind}.pem") for kind in ("cert", "key")}
    environment = {**os.environ, **{f"DASK_DISTRIBUTED__COMM__{name}": value for name, value in tls.items()}}
    known = folder / "scheduler.json"
    dask, here = str(BIN / "dask"), ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [dask, *arguments, "--protocol", "tls", *here, "--scheduler-file", str(known)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    started = [start("scheduler", "--port", "0")]
    try:
        wait_until(lambda: known.exists() and known.read_text().strip(), STARTED_S)
        started += [start("worker", "--nthreads", "1", "--name", name) for name in ("one", "two")]
        yield json.loads(known.read_text())["address"], environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(STARTED_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_by_workers_of_another_scheduler_over_tls_on_s3_selects_what_one_process_does(
    small_run, corpus, s3, tmp_path
):
    body = small_config(corpus, "s3://bucket/far")
    file, config = tmp_path / "config.yaml", parse_config(body, "far")
    file.write_text(yaml.safe_dump(body))
    with separate_cluster(tmp_path) as (address, environment):
        assert address.startswith("tls://127.0.0.1:")
        command = [str(BIN / "quad"), "run", str(file), "--set", f"compute.dask_address={address}"]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert digests_of(config) == digests_of(small_run)
    assert verify_run(config)["balanced"]
