"""Progress off a terminal: plain lines with rate and time left, one step at a time, nothing when quiet."""

import re

import pytest

from quad_tasks.runtime import progress as module
from quad_tasks.runtime.progress import notice, progress, working


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
    first, last = said().splitlines()
    assert re.fullmatch(r"embed: 1/4 shards, [\d,.]+/s, \d+ s left", first)
    assert re.fullmatch(r"embed: 4/4 shards in \d+\.\d s", last)


def test_a_step_inside_another_shows_nothing_of_its_own(said):
    with progress("rounds", 2, "rounds") as advance:
        for _ in range(2):
            with progress("score", 1, "pulls") as score, working("fit"):
                score(1)
            advance(1)
        notice("said in any case")
    with progress("after", 1, "steps") as advance:
        advance(1)
    assert [line.split(":")[0] for line in said().splitlines()] == ["rounds", "said in any case", "after"]


def test_a_step_of_unknown_length_is_named_once_it_took_a_while(said, monkeypatch):
    with working("decompose"):
        pass
    assert said() == ""
    monkeypatch.setattr(module, "WORTH_SAYING_S", 0.0)
    with working("decompose"):
        pass
    assert re.fullmatch(r"decompose in \d+\.\d s\n", said())


def test_quiet_says_nothing(said, monkeypatch):
    monkeypatch.setenv(module.QUIET_VARIABLE, "1")
    with progress("embed", 1, "shards") as advance, working("fit"):
        advance(1)
    notice("nothing")
    assert said() == ""
