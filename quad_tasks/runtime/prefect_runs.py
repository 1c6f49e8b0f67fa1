"""Flows and tasks that Prefect records where it can, and that run without it where it cannot.

Prefect orders and shows a run; every result rests on what is committed to the workspace. So a server that does not
answer ends nothing: what was under way is called again as a plain function, which goes on from the last commit, and so
is all that follows in this process.

What steps and notices say (`runtime.progress`) goes to the log of the flow run that is outermost, never to Prefect's
console: standard error has it already. Prefect sends it in the background; what cannot be sent is left.
"""

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
from prefect import Flow, Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED
from prefect.utilities.hashing import file_hash

from quad_tasks.runtime.progress import LOG_INTERVAL_S, logged_by, notice, working
from quad_tasks.storage.errors import redact

WITHOUT_PREFECT_VARIABLE = "QUAD_WITHOUT_PREFECT"
"""Environment variable: where it is set, flows and tasks are plain functions, and no server is started or asked."""
SERVER_MODULE = "prefect.server.api.server"
"""Takes seconds to import, and is not where a server is named."""
UNREACHABLE = ("Failed to reach API at", "Timed out while attempting to connect to ephemeral Prefect API server")
"""How Prefect's own errors begin where it hides what its client raised."""
SILENT_S, POLL_S = 30, 0.5
"""Seconds that the temporary server may take before it is said that it is waited for, and between two questions."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVER_FAULT_STATUS = 500

P = ParamSpec("P")
R = TypeVar("R")


class RecordedFlow(Flow[P, R]):
    """A flow that runs without Prefect where its server does not answer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow, recorded if that can be."""
        return _recorded(super().__call__, self.fn, args, kwargs)


class RecordedTask(Task[P, R]):
    """A task that runs without Prefect, with the retries it would have there, where the server does not answer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, recorded if that can be."""
        return _recorded(super().__call__, self._plain, args, kwargs)

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        for delay_s in _delays(self.retry_delay_seconds):
            try:
                return self.fn(*args, **kwargs)
            except self.transient:
                time.sleep(delay_s)
        return self.fn(*args, **kwargs)

    transient: tuple[type[BaseException], ...] = ()


def flow(name: str, flow_run_name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a flow: named, with what its steps say in its log, and run without Prefect where that is away."""

    def make(function: Callable[P, R]) -> Flow[P, R]:
        version = file_hash(inspect.getfile(function))  # Prefect's own, of the file that `_logged` hides from it
        return RecordedFlow(_logged(function), name=name, version=version, flow_run_name=flow_run_name)

    return make


def _logged(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function write what its steps say to the log of the flow run around it, where there is one."""

    @wraps(function)
    def logged(*args: P.args, **kwargs: P.kwargs) -> R:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return function(*args, **kwargs)
        with logged_by(_log_writer(str(context.flow_run.id))):
            return function(*args, **kwargs)

    return logged


def _log_writer(flow_run_id: str) -> Callable[[int, str], None]:
    """Return a function that writes lines to a flow run's log, the same one at most once a minute."""
    written: dict[str, float] = {}

    def write(level: int, message: str) -> None:
        now = time.monotonic()
        if without_prefect() or now - written.get(message, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return
        written[message] = now
        record = logging.makeLogRecord({"name": "quad", "levelno": level, "msg": message, "flow_run_id": flow_run_id})
        _log_handler().handle(record)

    return write


@cache
def _log_handler() -> APILogHandler:
    return APILogHandler()


def make_task(
    function: Callable[P, R], name: str, delays_s: Sequence[float], transient: tuple[type[BaseException], ...]
) -> Task[P, R]:
    """Make a function a task: named, never cached, tried again after each delay for errors that pass."""

    def may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        return isinstance(state.result(raise_on_failure=False), transient)

    made = RecordedTask(
        function,
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(delays_s),
        retry_delay_seconds=list(delays_s),
        retry_condition_fn=may_pass,
    )
    made.transient = transient
    return made


def _delays(delays_s: Any) -> list[float]:
    return list(delays_s) if isinstance(delays_s, list) else []


def _recorded(
    recorded: Callable[..., Any], plain: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    if not without_prefect():
        try:
            await_temporary_server()
            return recorded(*args, **kwargs)
        except Exception as error:
            if not go_on_without(error):
                raise
    return plain(*args, **kwargs)


def without_prefect() -> bool:
    """Say whether flows and tasks run as plain functions in this process."""
    return bool(os.environ.get(WITHOUT_PREFECT_VARIABLE))


def await_temporary_server() -> None:
    """Start Prefect's temporary server where none is named, and wait for it while its process lives.

    Prefect itself gives up after a time, which a busy machine needs for the server's imports alone.

    Raises:
        RuntimeError: its process ended.
    """
    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    server = sys.modules.get(SERVER_MODULE)
    if server is None or not server.SubprocessASGIServer().running:
        with working("start Prefect's temporary server"):
            _start_server()


def _start_server() -> None:
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    try:
        server.start(timeout=SILENT_S)
        return
    except (RuntimeError, httpx.TransportError):
        process = server.server_process
        if process is None:
            raise
    began = said = time.monotonic() - SILENT_S
    while not _is_healthy(server.api_url):
        if process.poll() is not None:
            raise RuntimeError(f"{UNREACHABLE[1]}: its process ended with exit code {process.returncode}")
        if time.monotonic() - said >= SILENT_S:
            said = time.monotonic()
            notice(
                f"waiting for the temporary Prefect server, process {process.pid}, which has not answered for "
                f"{said - began:.0f} s: the machine is busy; with {WITHOUT_PREFECT_VARIABLE}=1 no server is started"
            )
        time.sleep(POLL_S)
    server.running = True


def _is_healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def go_on_without(error: Exception) -> bool:
    """Leave Prefect alone from now on where an error says that its server does not answer; say whether it does."""
    lost = next((one for one in _chain(error) if _is_unreachable(one)), None)
    if lost is None:
        return False
    os.environ[WITHOUT_PREFECT_VARIABLE] = "1"
    server = PREFECT_API_URL.value()
    where = f"Prefect's server at {redact(server)}" if server else "the temporary Prefect server of this process"
    remedy = "start it again, or unset PREFECT_API_URL" if server else "look at the machine's memory and disk"
    notice(
        f"{where} does not answer ({type(lost).__name__}: {redact(str(lost))}): the run goes on without it, and "
        f"Prefect's UI shows no more of it; for the next one, {remedy}"
    )
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code >= SERVER_FAULT_STATUS
    if isinstance(error, httpx.TransportError):
        return _asked_of_prefect(error)
    return isinstance(error, RuntimeError) and str(error).startswith(UNREACHABLE)


def _asked_of_prefect(error: httpx.TransportError) -> bool:
    """Say whether a request went to Prefect's server: libraries of models ask others the same way."""
    try:
        host = error.request.url.host
    except RuntimeError:  # httpx's way to say that it does not know
        return True
    return host in LOOPBACK or host == urlsplit(PREFECT_API_URL.value() or "").hostname
