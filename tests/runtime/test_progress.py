"""Progress off a terminal and in a run's log: lines with rate and time left, one step at a time, quiet if told so."""

import logging
import re

import pytest

from quad_tasks.runtime import progress as module
from quad_tasks.runtime.progress import duration, logged_by, notice, progress, working


@pytest.fixture
def said(monkeypatch, capsys):
    """Let progress speak, as a command off a terminal does; return what it said on standard error."""
    monkeypatch.delenv(module.QUIET_VARIABLE, raising=False)
    return lambda: capsys.readouterr().err


def test_a_step_says_its_rate_and_time_left_and_its_end(said, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    with progress("embed", 4, "shards") as advance:
        advance(1)
        advance(3)
    begun, first, last = said().splitlines()
    assert begun == "embed: 4 shards"
    assert re.fullmatch(r"embed: 1/4 shards, [\d,.]+/s, \d+\.\d s left", first)
    assert re.fullmatch(r"embed: 4 shards in \d+\.\d s", last)


def test_a_step_that_ends_before_its_last_unit_says_how_far_it_came(said):
    with progress("train", 1000, "tokens") as advance:
        advance(900)
    assert re.fullmatch(r"train: 1,000 tokens\ntrain: 900/1,000 tokens in \d+\.\d s\n", said())


class Clock:
    """Stands in for the `time` module: it shows the time it is set to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_runs_log_has_a_line_a_minute_of_a_long_step_and_what_is_noticed(said, monkeypatch, clock):
    monkeypatch.setenv(module.QUIET_VARIABLE, "1")
    lines: list[tuple[int, str]] = []
    with logged_by(lambda *line: lines.append(line)), logged_by(lambda *_: pytest.fail("a run inside has no log")):
        with progress("fit factors", 128, "documents") as advance:
            for _ in range(128):
                clock.now += 3
                advance(1)
                with progress("inside", 1, "items") as inner, working("inside"):
                    inner(1)
        with working("write report"):
            clock.now += 123
        notice("loss_rises: train on more", logging.WARNING)
    notice("after the run")
    assert lines == [
        (logging.INFO, "fit factors: 128 documents"),
        *((logging.INFO, f"fit factors: {n}/128 documents, 3.0 s each, {left} left") for n, left in FIT_FACTORS),
        (logging.INFO, "fit factors: 128 documents in 6 min 24 s"),
        (logging.INFO, "write report"),
        (logging.INFO, "write report in 2 min 3 s"),
        (logging.WARNING, "loss_rises: train on more"),
    ]
    assert said() == ""


FIT_FACTORS = [
    (20, "5 min 24 s"),
    (40, "4 min 24 s"),
    (60, "3 min 24 s"),
    (80, "2 min 24 s"),
    (100, "1 min 24 s"),
    (120, "24.0 s"),
]


def test_a_step_that_fails_does_not_say_that_it_ended(said):
    with pytest.raises(ValueError, match="broken"), progress("embed", 1, "shards"):
        raise ValueError("broken")
    assert said() == "embed: 1 shards\n"


def test_a_step_inside_another_shows_nothing_of_its_own(said):
    with progress("rounds", 2, "rounds") as advance:
        for _ in range(2):
            with progress("score", 1, "pulls") as score, working("fit"):
                score(1)
            advance(1)
        notice("said in any case")
    with progress("after", 1, "steps") as advance:
        advance(1)
    assert [line.split(":")[0] for line in said().splitlines()] == [
        "rounds",
        "said in any case",
        "rounds",
        *["after"] * 2,
    ]


def test_a_step_of_unknown_length_is_named_at_once_and_its_time_said_where_it_took_a_while(said, clock):
    with working("decompose"):
        assert said() == "decompose\n"
        clock.now += 1.9
    assert said() == ""
    with working("decompose"):
        clock.now += 123
    assert said() == "decompose\ndecompose in 2 min 3 s\n"


def test_quiet_says_nothing(said, monkeypatch):
    monkeypatch.setenv(module.QUIET_VARIABLE, "1")
    with progress("embed", 1, "shards") as advance, working("fit"):
        advance(1)
    notice("nothing")
    assert said() == ""


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0.0 s"), (4.26, "4.3 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (3599.6, "1 h 0 min"), (93_784, "26 h 3 min")],
)
def test_a_time_has_its_two_largest_units(seconds, written):
    assert duration(seconds) == written
