"""The self-check plants what it says, and each of its verdicts fails on what it is there to catch."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments import selfcheck
from quad_tasks.experiments.selfcheck import Leaks, Shares, find_failures, judge, shuffle_influence

ZERO, GAIN, LOSS = Interval(0.01, -0.02, 0.04), Interval(0.5, 0.4, 0.6), Interval(-0.1, -0.15, -0.05)
HEALTHY = {
    "gain": {"lengths": ZERO, "planted": GAIN, "shuffled": ZERO},
    "short": Shares(0.5, 0.7),
    "domain": Shares(0.15, 0.95),
    "leaks": Leaks(60, 60, 0),
}
LENGTHS, LEAKED, SHUFFLED, DOMAIN = (verdict.check for verdict in judge(**HEALTHY))


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"gain": {**HEALTHY["gain"], "lengths": GAIN}}, [LENGTHS]),
        ({"gain": {**HEALTHY["gain"], "lengths": LOSS}}, [LENGTHS]),
        ({"gain": {**HEALTHY["gain"], "shuffled": GAIN}}, [SHUFFLED]),
        ({"gain": {**HEALTHY["gain"], "planted": ZERO}}, [DOMAIN]),
        ({"gain": {**HEALTHY["gain"], "planted": LOSS}}, [DOMAIN]),
        ({"domain": Shares(0.15, 0.79)}, [DOMAIN]),
        ({"leaks": Leaks(60, 59, 0)}, [LEAKED]),
        ({"leaks": Leaks(60, 60, 1)}, [LEAKED]),
    ],
)
def test_a_verdict_fails_on_what_it_is_there_to_catch(changes, failing):
    found = {**HEALTHY, **changes}
    result = selfcheck.Result({}, **found, verdicts=judge(**found))
    assert find_failures(result) == failing
    (rows,) = selfcheck.lay_out(result).values()
    assert [row["planted"] for row in rows if row[""] == "FAILS"] == failing


def test_the_pool_of_two_lengths_has_as_many_words_of_each():
    pool = selfcheck.plant_lengths().pool
    words = Counter()
    for record in pool:
        assert len(record["text"].split()) == {"short": 24, "long": 72}[record["source"]]
        words[record["source"]] += len(record["text"].split())
    assert words["short"] == words["long"] == selfcheck.LENGTHS_WORDS
    assert len({record["id"] for record in pool}) == len(pool)


def test_leaked_documents_alone_hold_measured_text():
    planted = selfcheck.plant_domains()
    measured = [f" {record['text']} " for record in planted.measured]
    holding = {
        record["id"] for record in planted.pool if any(text in f" {record['text'].lower()} " for text in measured)
    }
    assert holding == planted.leaked
    assert len(holding) == selfcheck.LEAKS


def permute(tables, number, within_source=False):
    joined = pa.concat_tables(shuffle_influence(tables, [0, number], within_source))
    return joined["position"].to_pylist(), joined["influence"].to_numpy()


@pytest.fixture
def scores():
    """Documents of two sources, of influences below and above 50."""
    influence = np.arange(100.0)
    return pa.table({"position": np.arange(100), "influence": influence, "source": ["low"] * 50 + ["high"] * 50})


def test_permuted_influences_are_the_same_ones_on_other_documents(scores):
    tables = [scores[:30], scores[30:30], scores[30:]]
    assert [len(part) for part in shuffle_influence(tables, [0, 1], False)] == [30, 0, 70]
    position, influence = permute(tables, 1)
    assert position == list(range(100))
    assert sorted(influence) == list(range(100))
    assert np.count_nonzero(influence == np.arange(100)) < 10
    assert 10 < np.count_nonzero(influence[:50] < 50) < 40
    assert not np.array_equal(influence, permute([scores], 2)[1])


def test_a_source_keeps_its_influences_where_they_are_permuted_within(scores):
    _, influence = permute([scores[:30], scores[30:]], 1, within_source=True)
    assert sorted(influence[:50]) == list(range(50))
    assert sorted(influence[50:]) == list(range(50, 100))
    assert np.count_nonzero(influence == np.arange(100)) < 10
