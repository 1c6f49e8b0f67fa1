"""The part of the Hugging Face Hub that its own client asks to list a dataset and to read ranges of its files.

What is answered, and with which headers, follows https://huggingface.co/docs/hub/api: a repository that is not there or
that the caller may not see is 401 without a token, and a gated one is 403.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from quad_tasks.storage.store import _open

GATED = "gated"
"""In the name of a dataset that is refused to everybody."""


class Hub(ThreadingHTTPServer):
    """Serves `files`, by "owner/name" and the path inside; keeps what was asked of it, and fails as it is told to."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        self.sent: list[int] = []
        """Bytes of each range of a file."""
        self.failing: list[int] = []
        """Statuses of the next answers."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.failing:
            return self.answer(self.server.failing.pop(0), b"later")
        found = re.fullmatch(
            r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)/[^/]+/?(.*))?", path
        )
        dataset, what, inside = found.groups() if found else ("", "", "")
        if GATED in dataset:
            return self.answer(403, b"gated", {"X-Error-Code": "GatedRepo"})
        if dataset not in self.server.files:
            return self.answer(401, b"Invalid username or password.", {"X-Error-Code": "RepoNotFound"})
        files = self.server.files[dataset]
        if what == "resolve":
            return self.give_range(files.get(inside))
        if what == "paths-info":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            return self.give([self.entry(files, one) for one in form["paths"] if one in files])
        if what == "tree":
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            return self.give_tree(files, f"{inside}/" if inside else "", recursive)
        return self.give({"id": dataset, "sha": "0" * 40, "siblings": []})

    do_HEAD = do_POST = do_GET

    def entry(self, files: dict[str, bytes], path: str) -> dict[str, object]:
        return {"type": "file", "oid": "0" * 40, "size": len(files[path]), "path": path}

    def give_tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        inside = sorted(path for path in files if path.startswith(folder))
        if not inside:
            return self.answer(404, b"not there", {"X-Error-Code": "EntryNotFound"})
        parts = [path.removeprefix(folder).split("/")[:-1] for path in inside]
        folders = {f"{folder}{'/'.join(names[:n])}" for names in parts for n in range(1, len(names) + 1)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": one} for one in sorted(folders)]
        entries += [self.entry(files, path) for path in inside]
        deep = [one for one in entries if recursive or "/" not in str(one["path"]).removeprefix(folder)]
        return self.give(deep)

    def give_range(self, data: bytes | None) -> None:
        if data is None:
            return self.answer(404, b"not there", {"X-Error-Code": "EntryNotFound"})
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        self.server.sent.append(len(data[int(first) : int(last) + 1]))
        return self.answer(206, data[int(first) : int(last) + 1])

    def give(self, body: object) -> None:
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


def at_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the Hub's client in this process ask a server, as `HF_ENDPOINT` does for a process that begins."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    _open.cache_clear()


@contextmanager
def running_hub(files: Mapping[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Run a hub on loopback that has these datasets."""
    with Hub(files) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
