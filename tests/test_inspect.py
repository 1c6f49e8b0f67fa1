"""One document's story, and two runs side by side: what they say is what was committed."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from quad_tasks.choose import read_chosen
from quad_tasks.compare import compare_runs
from quad_tasks.inspect import inspect_document
from quad_tasks.publish import read_scores
from quad_tasks.storage.store import StoreKeyError, open_store


def test_every_verdict_follows_from_the_ledger(small_run):
    store = open_store(small_run.workspace)
    scores = {row["id"]: row for row in read_scores(store, small_run.run, 2).to_pylist()}
    chosen = read_chosen(store, small_run.run, 2)["id"].to_pylist()
    best = chosen[0]
    assert inspect_document(small_run, best)["verdict"] == "selected"
    assert inspect_document(small_run, best)["reason"].startswith(f"number 1 of {len(chosen)}")
    left = next(name for name, row in scores.items() if name not in chosen and not row["accepted"])
    story = inspect_document(small_run, left)
    assert (story["verdict"], story["influence"]) == ("rejected", scores[left]["influence"])
    assert f"stage {scores[left]['stage']} round" in " ".join(story["pulled_in"]) or scores[left]["active"]
    better = [
        row for row in scores.values() if row["stage"] == story["stage"] and row["influence"] > story["influence"]
    ]
    assert story["rank_among_scored"] == len(better) + 1
    assert len(story["nearest_documents"]) == 5
    assert story["nearest_documents"][0]["cosine"] >= story["nearest_documents"][-1]["cosine"]


def test_a_documents_line_is_that_of_its_file(small_run):
    store = open_store(small_run.workspace)
    name = read_chosen(store, small_run.run, 2)["id"].to_pylist()[0]
    story = inspect_document(small_run, name)
    with open(story["input"], encoding="utf-8") as file:
        record = json.loads(file.readlines()[story["line"] - 1])
    assert record["id"] == name
    assert record["text"].startswith(story["text"])


def test_what_was_set_aside_is_told_with_its_reason(small_run):
    assert inspect_document(small_run, "short")["reason"].startswith("too_short: expected at least")
    copy = inspect_document(small_run, "kitchen-copy")
    assert (copy["verdict"], copy["line"]) == ("set aside", 61)
    with pytest.raises(StoreKeyError, match="document 'nobody': expected an id of pool 'pool', found none"):
        inspect_document(small_run, "nobody")


def test_the_command_tells_the_story(small_run):
    done = CliRunner().invoke(app, ["inspect", small_run.run, "short", "--workspace", small_run.workspace, "--json"])
    assert json.loads(done.stdout)["verdict"] == "set aside"
    missing = CliRunner().invoke(app, ["inspect", small_run.run, "nobody", "--workspace", small_run.workspace])
    assert missing.exit_code == 2


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
    monkeypatch.setattr("quad_tasks.compare._read_report", lambda _store, run: reports[run])
    monkeypatch.setattr("quad_tasks.compare._read_chosen", lambda _store, run: chosen[run])
    compared = compare_runs(small_run.workspace, "a", "b")
    assert compared["overlap"]["tokens_in_both"] == 30
    assert compared["overlap"]["jaccard"] == pytest.approx(1 / 3, abs=1e-4)
    assert compared["config"] == [{"key": "bandit.alpha", "a": None, "b": 0.5}]
    weather = next(row for row in compared["mixture"] if row["name"] == "weather")
    assert weather["b"] == 1
