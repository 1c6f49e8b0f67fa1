"""`quad pool|influence|bandit ...` and `quad train` stop at their own step and print what a finished run has there.

Each command runs on the configuration of the finished small run, its flow stubbed; what it prints is read from the
store by other means here. `test_app.py` runs the parts in earnest, one after the other.
"""

import json

import pytest
import yaml
from small_pool import small_config
from typer.testing import CliRunner

from flows.cli import parts
from flows.cli.app import app
from quad_tasks.commands import replay
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.store import open_store

STAGE = "runs/small/stage-00"


@pytest.fixture
def config_file(small_run, corpus, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(corpus, small_run.workspace)))
    return str(path)


@pytest.fixture
def stopped_at(monkeypatch):
    """Stub the selection: it ends at once with the given key; gather how far it was asked to go."""
    asked = []

    def stub(key):
        monkeypatch.setattr(parts, "run_until", lambda config, until: asked.append((config.run, until)) or key)
        return asked

    return stub


def stored(config, key):
    return json.loads(open_store(config.workspace).get(key))


def invoke(*arguments):
    result = CliRunner().invoke(app, [*arguments, *(["--quiet"] if arguments[-1].endswith("yaml") else [])])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def both(*arguments):
    """Return a command's result, which it prints as JSON, and the words it prints for a person."""
    return json.loads(invoke(*arguments[:-1], "--json", arguments[-1])), invoke(*arguments).split()


def test_a_refresh_prints_the_version_and_its_counts(small_run, config_file, monkeypatch):
    version = pinned_pool(open_store(small_run.workspace), small_run.run)
    monkeypatch.setattr(parts, "run_flow", lambda flow, config: version)
    body, words = both("pool", "refresh", config_file)
    manifest = stored(small_run, version)
    assert body == {"version": version, **{k: manifest[k] for k in ("documents", "tokens", "arms", "set_aside")}}
    assert f"{manifest['tokens']:,}" in words


def test_fitting_prints_what_was_fitted_where(small_run, config_file, stopped_at):
    report = stored(small_run, "runs/small/report/report.json")
    direction = report["stages"][0]["direction"]
    asked = stopped_at(direction)
    body, words = both("influence", "fit", config_file)
    made = stored(small_run, f"{direction}/manifest.json")
    assert asked == [("small", "fit")] * 2
    assert (body["direction"], body["factors"], body["checkpoint"]) == (direction, made["factors"], made["checkpoint"])
    assert body["blocks"] == len(body["block_names"]) > 0
    assert body["sample_documents"] == 40
    assert direction in words
    assert "block_names" not in " ".join(words)


def test_a_bandit_run_prints_its_stage(small_run, config_file, stopped_at):
    asked = stopped_at(f"{STAGE}/selected")
    body, words = both("bandit", "run", config_file)
    assert asked == [("small", "bandit")] * 2
    assert body["stage"] == 0
    assert body["chosen_tokens"] <= body["budget_tokens"] == 750
    assert f"{body['chosen_tokens']:,}" in words


def test_training_prints_a_row_a_training(small_run, config_file, stopped_at):
    asked = stopped_at(f"{STAGE}/trained/selected-0")
    body, words = both("train", config_file)
    assert asked == [("small", "train")] * 2
    rows = {row["trained_on"]: row for row in body["trained"]}
    assert list(rows) == ["before", "selected-0", "random-0", "general-0.5"]
    for name, row in rows.items():
        losses = stored(small_run, f"{STAGE}/trained/{name}/losses.json")
        assert row["reference_loss"] == pytest.approx(losses["reference_loss"], abs=5e-5)
        assert str(row["reference_loss"]) in words


@pytest.mark.parametrize(("second", "code"), [(True, 0), (False, 1)])
def test_a_replay_fails_where_a_round_chooses_other_arms(small_run, monkeypatch, second, code):
    rounds = [{"round": 0, "reproduced": True}, {"round": 1, "reproduced": second}]
    monkeypatch.setattr(replay, "replay_run", lambda config: rounds)
    arguments = ("bandit", "replay", "small", "--workspace", small_run.workspace)
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert printed.exit_code == code
    assert json.loads(printed.stdout) == {"run": "small", "reproduced": second, "rounds": rounds}
    shown = CliRunner().invoke(app, [*arguments])
    assert shown.exit_code == code
    assert [line.split() for line in shown.stdout.splitlines()][-1] == ["1", str(second)]


def test_a_pool_is_shown_a_table_a_subject(small_run):
    shown = [
        line.split() for line in invoke("pool", "show", "--workspace", small_run.workspace, "--arms", "2").splitlines()
    ]
    titles = [" ".join(line) for line in shown]
    assert [title for title in titles if title in ("versions", "set aside", "sources", "arms")] == [
        "versions", "set aside", "sources", "arms",
    ]  # fmt: skip
    assert len(shown[titles.index("arms") + 2 :]) == 2
