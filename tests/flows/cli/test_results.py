"""Commands about a run that there is: sums, stories, JSON, and a message that names the runs where one is missing."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.results import SHIFTS_SHOWN, largest_shifts


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_verify_prints_the_sum_of_all_documents(small_run):
    result = invoke("verify", "small", "--workspace", small_run.workspace)
    assert result.exit_code == 0
    assert "documents in =" in result.stdout


def test_json_results_are_json(small_run):
    for command in ("verify", "status", "report"):
        result = invoke(command, "small", "--workspace", small_run.workspace, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)


def test_a_run_that_does_not_exist_is_named(tmp_path):
    result = invoke("status", "absent", "--workspace", str(tmp_path))
    assert result.exit_code == 2, result.stderr
    assert "runs/absent/config.json" in result.stderr
    assert "runs there: none" in result.stderr


def test_a_mistyped_run_names_those_there_are(small_run):
    result = invoke("status", "smal", "--workspace", small_run.workspace)
    assert result.exit_code == 2, result.stderr
    assert "runs there: small" in result.stderr


def test_a_story_is_told_on_a_terminal_and_as_json(small_run):
    arguments = ("inspect", "small", "harbour-0-7", "--workspace", small_run.workspace)
    assert "where" in invoke(*arguments).stdout
    assert json.loads(invoke(*arguments, "--json").stdout)["where"]["line"] == 8
    missing = invoke("inspect", "small", "nobody", "--workspace", small_run.workspace)
    assert missing.exit_code == 2
    assert "'nobody'" in missing.stderr


def test_the_largest_shifts_are_shown_wherever_they_stand():
    sources = [{"of": "source", "name": str(i), "shift": 0.001 * (i % 3 - 1)} for i in range(30)]
    arms = [{"of": "arm", "name": str(i), "shift": sign * 0.5} for i, sign in enumerate((1, -1))]
    shown = largest_shifts([*sources, *arms])
    assert len(shown) == SHIFTS_SHOWN
    assert shown[-2:] == arms
    least = min(abs(row["shift"]) for row in shown)
    assert all(abs(row["shift"]) <= least for row in sources if row not in shown)
    assert largest_shifts(sources[:5]) == sources[:5]


@pytest.mark.parametrize(
    "given",
    [["--format", "hf"], ["--tokenize"], ["--shard-size", "1000"], ["--license", "mit"], ["--format", "parquet"]],
)
def test_options_that_an_export_of_influence_would_ignore_are_refused(tmp_path, given):
    result = CliRunner().invoke(app, ["export", "x", "--out", str(tmp_path / "out"), "--influence", *given])
    assert result.exit_code == 2
    assert f"{given[0]}: expected it without --influence" in result.stderr


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_shard_holds_at_least_a_byte(tmp_path, size):
    result = CliRunner().invoke(app, ["export", "x", "--out", str(tmp_path / "out"), "--shard-size", size])
    assert result.exit_code == 2
    assert "'--shard-size'" in result.stderr
