"""What every command does alike: set up its process, turn errors into one message and an exit code, print results."""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.troubleshooting import find_help

DEFAULTS = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin for one another stand still beside any other busy process
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DASK_LOGGING__DISTRIBUTED": "critical",
}
PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FAILED, BAD_INPUT = 1, 2
BAD_INPUT_ERRORS = {
    "quad_tasks.config.schema.ConfigError",
    "quad_tasks.core.blocks.UnsupportedLayer",
    "quad_tasks.core.lm.model.ModelError",
    "quad_tasks.runtime.processes.memory.OutOfDeviceMemory",
    "quad_tasks.storage.errors.InvalidKey",
    "quad_tasks.storage.errors.StoreKeyError",
    "quad_tasks.storage.errors.UnsupportedStore",
    "quad_tasks.storage.input_files.InputError",
    "quad_tasks.storage.manifest.ManifestMismatch",
}
FILE_COLUMNS = 160
"""Width of a table that goes to no terminal."""


def keep_loopback_direct() -> None:
    """Keep requests to this machine from a proxy, where one is set: Prefect's temporary server would not be reached."""
    if not any(os.environ.get(name) for name in PROXIES):
        return
    for name in ("NO_PROXY", "no_proxy"):
        given = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        os.environ[name] = ",".join([*given, *(host for host in LOOPBACK if host not in given)])


@contextmanager
def session(quiet: bool, debug: bool) -> Iterator[None]:
    """Set up a command's process and turn errors into one message and an exit code.

    SIGTERM ends a command as Ctrl-C does, so that its workers and its own Prefect server end with it.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, "INFO" if debug and "LOGGING" in name else value)
    if quiet:
        os.environ["QUAD_QUIET"] = "1"
    keep_loopback_direct()
    _refuse_deleted_directory()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as interrupt:
        _fail("; ".join(["interrupted", *interrupt.args]), FAILED)
    except Exception as error:
        if debug:
            raise
        _fail(_message(error), _exit_code(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_deleted_directory() -> None:
    """End where the working directory is gone, as torch's libraries would, but by a message of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("working directory: expected one, found it deleted: change to another", BAD_INPUT)


def _exit_code(error: Exception) -> int:
    """Choose the exit code by the names of an error's classes: none is imported, torch's libraries least of all."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return BAD_INPUT if names & BAD_INPUT_ERRORS else FAILED


def _message(error: Exception) -> str:
    """Return an error's message; one of a full disk that no store met says what to do, as the store's own does."""
    text = str(error) or type(error).__name__
    full = os.strerror(errno.ENOSPC) in text
    return f"{text}: make room there (for temporary files, or set TMPDIR), then begin or resume again" if full else text


def _fail(message: str, code: int) -> None:
    """End a command with a message; a line more names the page that explains it, where one does."""
    print(f"quad: {message}", file=sys.stderr)
    explained = find_help(message)
    if explained is not None:
        print(f"see {explained}", file=sys.stderr)
    raise typer.Exit(code)


def print_body(body: dict[str, Any], as_json: bool) -> None:
    """Print a result as JSON, or a line a key; a line is never cut, so that a path can be copied."""
    if as_json:
        print(json.dumps(body, indent=1))
        return
    width = max(map(len, body), default=0)
    for key, value in body.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        print(f"{key.replace('_', ' '):<{width}}  {shown}")


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the same keys as a table."""
    table = Table(box=None)
    for key in rows[0]:
        table.add_column(key.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else FILE_COLUMNS).print(table)
