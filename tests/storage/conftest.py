"""Stores to test on: a local folder, fsspec's memory, moto's S3, and an S3 that fails as told."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import running_s3


@dataclass(frozen=True)
class Backend:
    """A store's place, and ways to it that do not pass through the code under test."""

    uri: str
    plant: Callable[[str, bytes], None]
    peek: Callable[[str], bytes | None]


REAL_ENDPOINT = "QUAD_TEST_S3_ENDPOINT"
"""Environment variable that names a real S3 to test on, with credentials in AWS's own variables; unset: moto."""


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    if real := os.environ.get(REAL_ENDPOINT):
        yield real
        return
    with running_s3() as address:
        yield address


@pytest.fixture(scope="session", autouse=True)
def _models_of_s3_are_parsed_once() -> Iterator[None]:
    """Keep botocore's descriptions of S3: each client would parse them anew, most of its cost."""
    parsed: dict[str, Any] = {}
    parse = JSONFileLoader.load_file

    def load_file(loader: JSONFileLoader, path: str) -> Any:
        if path not in parsed:
            parsed[path] = parse(loader, path)
        return parsed[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", load_file)
        yield


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Iterator[Any]:
    """One client for all that is planted and looked at: a test needs a bucket of its own only."""
    with pytest.MonkeyPatch.context() as environment:
        _set_credentials(environment)
        client = boto3.client("s3", endpoint_url=s3_endpoint)
    yield client
    client.close()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    _set_credentials(monkeypatch)
    return monkeypatch


def _set_credentials(environment: pytest.MonkeyPatch) -> None:
    """Set moto's credentials; a real S3 has its own."""
    if os.environ.get(REAL_ENDPOINT):
        return
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        environment.setenv(name, value)


@pytest.fixture(params=["local", "memory", "s3"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(f"{request.param}_backend")


@pytest.fixture
def local_backend(tmp_path: Path) -> Backend:
    def plant(key: str, data: bytes) -> None:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)

    def peek(key: str) -> bytes | None:
        return (tmp_path / key).read_bytes() if (tmp_path / key).is_file() else None

    return Backend(str(tmp_path), plant, peek)


@pytest.fixture
def memory_backend() -> Iterator[Backend]:
    files, root = MemoryFileSystem(), f"/{uuid4().hex}"

    def peek(key: str) -> bytes | None:
        return files.store[f"{root}/{key}"].getvalue() if f"{root}/{key}" in files.store else None

    yield Backend(f"memory:/{root}", lambda key, data: files.pipe_file(f"{root}/{key}", data), peek)
    files.store.clear()


@pytest.fixture
def s3_backend(s3_endpoint: str, s3_client: Any, s3_environment: pytest.MonkeyPatch) -> Backend:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    bucket = f"bucket-{uuid4().hex}"
    s3_client.create_bucket(Bucket=bucket)

    def peek(key: str) -> bytes | None:
        try:
            return s3_client.get_object(Bucket=bucket, Key=f"some/prefix/{key}")["Body"].read()
        except s3_client.exceptions.NoSuchKey:
            return None

    def plant(key: str, data: bytes) -> None:
        s3_client.put_object(Bucket=bucket, Key=f"some/prefix/{key}", Body=data)

    return Backend(f"s3://{bucket}/some/prefix", plant, peek)


@dataclass
class FaultyS3:
    """One bucket over HTTP that answers the next requests with ``faults``.

    A status is answered as it is, and ``served`` is no fault; ``reset`` drops the connection, ``slow`` does so once
    the test has ended; ``lost 500`` and ``lost reset`` fail after doing what a PUT asks.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    writers: dict[str, str] = field(default_factory=dict)
    faults: list[int | str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ignores_conditions: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: "_Request") -> None:
        self.requests.append(request.command)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            request.reply(fault)
            return
        if fault == "slow":
            self.ended.wait()
        status, data = (0, b"") if fault in ("reset", "slow") else self._serve(request, body)
        if fault in ("reset", "slow", "lost reset"):
            request.close_connection = True
        else:
            request.reply(500 if fault == "lost 500" else status, data)

    def _serve(self, request: "_Request", body: bytes) -> tuple[int, bytes]:
        path = request.path
        if request.command == "PUT":
            if request.headers.get("If-None-Match") and path in self.objects and not self.ignores_conditions:
                return 412, b""
            self.objects[path] = body
            self.writers[path] = request.headers.get("x-amz-meta-quad-writer", "")
        elif request.command == "DELETE":
            self.objects.pop(path, None)
        elif path not in self.objects:
            return 404, b""
        else:
            return 200, self.objects[path]
        return 200, b""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.bucket.answer(self)  # type: ignore[attr-defined]

    do_HEAD = do_PUT = do_DELETE = do_GET

    def reply(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.send_header("x-amz-meta-quad-writer", self.server.bucket.writers.get(self.path, ""))  # type: ignore[attr-defined]
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def faulty_s3(s3_environment: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Request)
    server.bucket = FaultyS3()  # type: ignore[attr-defined]
    s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.bucket  # type: ignore[attr-defined]
    server.bucket.ended.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between tries instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("quad_tasks.storage.errors.sleep", waited.append)
    return waited
