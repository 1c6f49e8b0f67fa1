"""Two runs side by side: what is listed is what was committed and reported."""

import json

import pytest

from quad_tasks.commands.compare import compare_runs
from quad_tasks.storage.store import open_store


def test_a_run_compared_with_itself_differs_in_nothing(small_run):
    same = compare_runs(small_run.workspace, small_run.run, small_run.run)
    assert same["overlap"]["jaccard"] == 1
    assert same["overlap"]["tokens_in_both"] == same["overlap"]["tokens_a"]
    assert not same["config"]
    assert all(row["shift"] == 0 for row in same["mixture"])
    assert all(row["b_less_a"] == 0 for row in same["outcome"])


def test_what_differs_between_two_reports_is_listed(small_run, monkeypatch):
    reports = {name: json.loads(open_store(small_run.workspace).get("runs/small/report/report.json")) for name in "ab"}
    reports["b"]["config"]["bandit"]["alpha"] = 0.5
    reports["b"]["selected"]["by_source"] = {"weather": {"tokens": 10, "documents": 1}}
    chosen = {"a": {"x": 10, "y": 30}, "b": {"y": 30, "z": 5}}
    monkeypatch.setattr("quad_tasks.commands.compare._read_report", lambda _store, run: reports[run])
    monkeypatch.setattr("quad_tasks.commands.compare._read_chosen", lambda _store, run: chosen[run])
    compared = compare_runs(small_run.workspace, "a", "b")
    assert compared["overlap"]["tokens_in_both"] == 30
    assert compared["overlap"]["jaccard"] == pytest.approx(1 / 3, abs=1e-4)
    assert compared["config"] == [{"key": "bandit.alpha", "a": None, "b": 0.5}]
    weather = next(row for row in compared["mixture"] if row["name"] == "weather")
    assert weather["b"] == 1


def test_ids_of_pools_of_other_names_are_not_compared(small_run, monkeypatch):
    reports = {name: json.loads(open_store(small_run.workspace).get("runs/small/report/report.json")) for name in "ab"}
    reports["b"]["config"]["pool"]["name"] = "another"
    chosen = {"a": {"0": 10, "1": 30}, "b": {"1": 30}}
    monkeypatch.setattr("quad_tasks.commands.compare._read_report", lambda _store, run: reports[run])
    monkeypatch.setattr("quad_tasks.commands.compare._read_chosen", lambda _store, run: chosen[run])
    overlap = compare_runs(small_run.workspace, "a", "b")["overlap"]
    assert [overlap[name] for name in ("documents_in_both", "tokens_in_both", "jaccard")] == [None] * 3
    assert (overlap["documents_a"], overlap["tokens_b"]) == (2, 30)
