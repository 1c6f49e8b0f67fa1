"""An experiment is found by its name, measured on a cluster and kept; a mistyped name lists those there are."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from flows import run_experiment as module
from flows.cli.app import EXPERIMENTS as NAMED
from flows.cli.app import app
from flows.run_experiment import EXPERIMENTS, find_experiment, run_experiment
from quad_tasks.config.schema import ConfigError
from quad_tasks.experiments.experiment import Experiment
from quad_tasks.storage.store import open_store


def test_a_mistyped_name_is_told_all_there_are():
    with pytest.raises(
        ConfigError, match=r"expected one of end-to-end, bandit, .*, diversity, selfcheck, found 'bandits'"
    ):
        find_experiment("bandits")


@dataclass(frozen=True)
class Answer:
    """What the tests' experiment measures."""

    answer: int


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_shows_and_the_command_names_it(name):
    assert find_experiment(name).about
    assert name in NAMED.replace(" or ", ", ").rstrip(".").split(", ")


@pytest.mark.parametrize(("given", "expected"), [("given", "given"), (None, "configured")])
def test_a_result_is_kept_where_the_call_says_else_where_the_configuration_does(
    dask_client, tmp_path, monkeypatch, given, expected
):
    seen = []

    def measure(workspace, config, quick):
        seen.append((workspace, config.workspace, quick))
        return Answer(42)

    tiny = Experiment("a test", Answer, measure, lambda found: {}, lambda found: {})
    monkeypatch.setattr(module, "EXPERIMENTS", {"tiny": tiny})
    config = SimpleNamespace(workspace=str(tmp_path / "configured"), compute=None)
    where = str(tmp_path / given) if given else None
    key = run_experiment.fn("tiny", config, where, quick=True)
    assert seen == [(str(tmp_path / expected), config.workspace, True)]
    body = json.loads(open_store(str(tmp_path / expected)).get(key))
    assert (body["experiment"], body["quick"], body["answer"]) == ("tiny", True, 42)
    assert body["volatile"]["took_s"] >= 0


@dataclass(frozen=True)
class Check:
    """What the tests' self-check finds."""

    failing: list[str]


@pytest.mark.parametrize(("failing", "code"), [([], 0), (["lengths"], 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_ends_with_1_where_a_check_fails_and_prints_all_the_same(
    prefect_server, dask_client, tmp_path, monkeypatch, failing, code, as_json
):
    def lay_out(found):
        return {"Checks": [{"failing": ", ".join(found.failing) or "none"}]}

    tiny = Experiment(
        "a test", Check, lambda *_: Check(failing), lay_out, lambda found: {}, lambda found: found.failing
    )
    monkeypatch.setattr(module, "EXPERIMENTS", {"tiny": tiny})
    command = ["experiment", "tiny", "--workspace", str(tmp_path), "--quiet", *(["--json"] if as_json else [])]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    if as_json:
        assert json.loads(result.stdout)["failing"] == failing
    else:
        assert (failing or ["none"])[0] in result.stdout
