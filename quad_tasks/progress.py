"""Progress of long steps: a bar with rate and time left on a terminal, plain lines elsewhere, nothing when quiet."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

QUIET_VARIABLE = "QUAD_QUIET"
PLAIN_INTERVAL_S = 10.0


class _Rate(ProgressColumn):
    """Units done a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "")


@contextmanager
def progress(label: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a step's progress on standard error; yields a function that advances it.

    Args:
        label: what is done, in a few words.
        total: units to do.
        unit: what is counted, e.g. `shards`.
    """
    if os.environ.get(QUIET_VARIABLE):
        yield lambda n: None
    elif sys.stderr.isatty():
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
                f", {rate:,.1f}/s, {(total - done) / rate:.0f} s left" if done < total else f" in {now - started:.1f} s"
            )
            print(f"{label}: {done:,}/{total:,} {unit}{left}", file=sys.stderr, flush=True)

    return advance


def notice(message: str) -> None:
    """Say something once on standard error, unless quiet."""
    if not os.environ.get(QUIET_VARIABLE):
        print(message, file=sys.stderr, flush=True)
