"""Commands about a run that there is: sums, stories, JSON, and a message that names the runs where one is missing."""

import json

from typer.testing import CliRunner

from flows.cli.app import app


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
