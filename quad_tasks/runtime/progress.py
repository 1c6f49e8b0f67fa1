"""Progress of long steps: a bar with rate and time left on a terminal, plain lines elsewhere, nothing when quiet.

A step inside another shows nothing of its own: a bandit's rounds are one bar, not a bar a round. A run that has a log,
as one that Prefect records, is told the same in lines there, quiet or not.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

QUIET_VARIABLE = "QUAD_QUIET"
PLAIN_INTERVAL_S, LOG_INTERVAL_S = 10.0, 60.0
"""Between two lines of a step's progress, off a terminal and in a run's log; the same notice is not logged sooner."""
WORTH_SAYING_S = 2.0
_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether a step around this one shows progress already."""
_log: ContextVar[Callable[[int, str], None] | None] = ContextVar("log", default=None)
"""Writes a line, of a level of `logging`, to the log of the run around."""


class _Rate(ProgressColumn):
    """Units done a second, lately."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0))


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a step's progress on standard error and in the run's log; yields a function that advances it.

    Args:
        label: what is done, in a few words.
        total: units to do.
        unit: what is counted, e.g. `shards`.
    """
    if _inside.get():
        yield lambda n: None
        return
    around = _inside.set(True)
    try:
        logged = _lines(_to_log, label, total, unit, LOG_INTERVAL_S)
        with logged as log, _on_console(label, total, unit) as show:

            def advance(n: int) -> None:
                show(n)
                log(n)

            yield advance
    finally:
        _inside.reset(around)


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show that a step of unknown length works: a spinner on a terminal, its name elsewhere; then how long it took.

    Args:
        label: what is done, in a few words.
    """
    if _inside.get():
        yield
        return
    started = time.monotonic()
    _to_log(label)
    with _spinner(label):
        yield
    taken = time.monotonic() - started
    said = f"{label} in {duration(taken)}"
    _to_log(said)
    if taken >= WORTH_SAYING_S:
        _to_console(said)


@contextmanager
def logged_by(write: Callable[[int, str], None]) -> Iterator[None]:
    """Say in a run's log too what its steps and notices say; a run inside another has that one's log.

    Args:
        write: takes a level of `logging` and a line.
    """
    if _log.get() is not None:
        yield
        return
    around = _log.set(write)
    try:
        yield
    finally:
        _log.reset(around)


def notice(message: str, level: int = logging.INFO) -> None:
    """Say something once on standard error, unless quiet, and in the run's log.

    Args:
        message: a line.
        level: of `logging`, that the line has in the log.
    """
    _to_console(message)
    _to_log(message, level)


def duration(seconds: float) -> str:
    """Write seconds as people say them: `4.2 s`, `2 min 3 s`, `1 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _to_console(message: str) -> None:
    if not _quiet():
        print(message, file=sys.stderr, flush=True)


def _to_log(message: str, level: int = logging.INFO) -> None:
    if (write := _log.get()) is not None:
        write(level, message)


def _quiet() -> bool:
    return bool(os.environ.get(QUIET_VARIABLE))


def _on_console(label: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    if _quiet():
        return nullcontext(lambda n: None)
    return (_bar if sys.stderr.isatty() else _plain)(label, total, unit)


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(label, total=total)
        yield lambda n: bars.advance(bar, n)


@contextmanager
def _spinner(label: str) -> Iterator[None]:
    if _quiet() or not sys.stderr.isatty():
        _to_console(label)
        yield
        return
    columns = (TextColumn("{task.description:<24}"), SpinnerColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bars.add_task(label, total=None)
        yield


def _plain(label: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    return _lines(_to_console, label, total, unit, PLAIN_INTERVAL_S)


@contextmanager
def _lines(
    say: Callable[[str], None], label: str, total: int, unit: str, interval_s: float
) -> Iterator[Callable[[int], None]]:
    """Say in lines that a step begins, from time to time how far it is and how long it will take, and that it ended."""
    started = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if done < total and now - last >= interval_s:
            last = now
            rate = done / max(now - started, 1e-9)
            left = f", {_rate(rate)}, {duration((total - done) / rate)} left" if rate else ""
            say(f"{label}: {done:,}/{total:,} {unit}{left}")

    say(f"{label}: {total:,} {unit}".rstrip())
    yield advance
    counted = f"{total:,}" if done >= total else f"{done:,}/{total:,}"
    say(f"{label}: {counted} {unit}".rstrip() + f" in {duration(time.monotonic() - started)}")


def _rate(speed: float) -> str:
    """Write units a second, or where they take longer seconds a unit; nothing of what has not begun."""
    return "" if speed <= 0 else f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each"
