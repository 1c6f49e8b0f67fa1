"""Progress of long steps: a bar with rate and time left on a terminal, plain lines elsewhere, nothing when quiet.

A step inside another shows nothing of its own: a bandit's rounds are one bar, not a bar a round.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
PLAIN_INTERVAL_S = 10.0
WORTH_SAYING_S = 2.0
_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether a step around this one shows progress already."""


class _Rate(ProgressColumn):
    """Units done a second, lately."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0))


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a step's progress on standard error; yields a function that advances it.

    Args:
        label: what is done, in a few words.
        total: units to do.
        unit: what is counted, e.g. `shards`.
    """
    if _hidden():
        yield lambda n: None
        return
    around = _inside.set(True)
    try:
        if sys.stderr.isatty():
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
        else:
            yield _plain(label, total, unit)
    finally:
        _inside.reset(around)


@contextmanager
def working(label: str) -> Iterator[None]:
    """Show that a step of unknown length works: a spinner on a terminal; elsewhere a line once it took a while.

    Args:
        label: what is done, in a few words.
    """
    if _hidden():
        yield
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description:<24}"), SpinnerColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bars.add_task(label, total=None)
            yield
    else:
        started = time.monotonic()
        yield
        if (taken := time.monotonic() - started) >= WORTH_SAYING_S:
            print(f"{label} in {taken:.1f} s", file=sys.stderr, flush=True)


def _hidden() -> bool:
    return bool(os.environ.get(QUIET_VARIABLE)) or _inside.get()


def _plain(label: str, total: int, unit: str) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if done >= total or now - last >= PLAIN_INTERVAL_S:
            last = now
            rate = done / max(now - started, 1e-9)
            left = (
                f", {_rate(rate)}, {(total - done) / max(rate, 1e-9):.0f} s left"
                if done < total
                else f" in {now - started:.1f} s"
            )
            print(f"{label}: {done:,}/{total:,} {unit}{left}", file=sys.stderr, flush=True)

    return advance


def _rate(speed: float) -> str:
    """Write units a second, or where they take longer seconds a unit; nothing of what has not begun."""
    return "" if speed <= 0 else f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each"


def notice(message: str) -> None:
    """Say something once on standard error, unless quiet."""
    if not os.environ.get(QUIET_VARIABLE):
        print(message, file=sys.stderr, flush=True)
