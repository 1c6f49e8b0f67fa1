"""A moto S3 server whose conditional writes are atomic, as a real one's are.

moto looks whether an object exists and creates it in two steps: of two writers that race to create it, both may win.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import ThreadedMotoServer


class AtomicMotoServer(ThreadedMotoServer):
    """Writes on a condition (`If-None-Match`) are done in turn, all else at once.

    Attributes:
        asked: every request: when it came in seconds since 1970, its method, its path and its query.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.asked: list[tuple[float, str, str, str]] = []

    def start(self) -> None:
        super().start()
        app, turn = self._server.app, threading.Lock()

        def in_turn(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
            self.asked.append((time.time(), *asked))
            if "HTTP_IF_NONE_MATCH" not in environ:
                answer: Iterable[bytes] = app(environ, start_response)
                return answer
            with turn:
                return list(app(environ, start_response))

        self._server.app = in_turn


@contextmanager
def running_s3() -> Iterator[str]:
    """Run an S3 server on loopback; give its address."""
    with counting_s3() as (address, _):
        yield address


@contextmanager
def counting_s3() -> Iterator[tuple[str, list[tuple[float, str, str, str]]]]:
    """Run an S3 server on loopback; give its address, and what it is asked (`AtomicMotoServer.asked`)."""
    server = AtomicMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}", server.asked
    finally:
        server.stop()
