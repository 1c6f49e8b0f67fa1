"""The games are those of the method, claims that fail are said to fail, and the command writes one result."""

import json
from dataclasses import replace

from experiments.bandit_small import BOUNDED, SMOOTH, play
from typer.testing import CliRunner

from flows.cli.app import app
from flows.run_experiment import EXPERIMENTS
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments import bandit
from quad_tasks.experiments.bandit import Result, judge, lay_out, list_games
from quad_tasks.storage.store import open_store


def test_every_pair_of_means_and_noise_is_played_with_ten_seeds():
    games = [game for game in list_games(quick=False) if game.noise != "bernoulli"]
    assert {(g.n_arms, g.smooth, g.noise) for g in games} == {
        (k, smooth, noise) for k in (100, 10_000) for smooth in (True, False) for noise in ("gaussian", "student")
    }
    assert {g.seeds for g in list_games(quick=False)} == {10}
    assert {g.n_rounds * g.arms_per_round / g.n_arms for g in games} == {20}


def test_a_claim_that_fails_is_said_to_fail_and_by_how_much():
    game = play(SMOOTH)
    policies = dict(game.policies)
    for name, field, mean in (("paper", "share_of_uniform", 0.75), ("contextual", "share_of_paper", 0.6)):
        policies[name] = replace(policies[name], **{field: Interval(mean, mean, mean)})
    game = replace(game, policies=policies)
    claims = judge([game])
    assert [claim.holds for claim in claims] == [False, True]
    rows = lay_out(Result([game], claims))["What it shows"]
    assert [row[""] for row in rows] == ["fails by 0.250", "holds"]


def test_the_command_writes_one_result_however_often_it_runs(dask_client, tmp_path, monkeypatch):
    monkeypatch.setattr(bandit, "list_games", lambda quick: [BOUNDED, SMOOTH])
    command = ["experiment", "bandit", "--workspace", str(tmp_path), "--quick", "--quiet"]
    first, second = (CliRunner().invoke(app, [*command, "--json"]) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["result"] == json.loads(second.stdout)["result"]
    names = {key.rsplit("/", 1)[1] for key in open_store(str(tmp_path)).list("experiments/bandit")}
    assert names == {
        "result.json",
        *(f"{n}.{kind}" for n in ("regret", "exploited", "bound") for kind in ("svg", "png")),
    }
    printed = CliRunner().invoke(app, command).stdout
    for policy in ("uniform", "greedy", "paper", "released", "thompson", "contextual", "ucb1", "What it shows"):
        assert policy in printed


def test_an_unknown_experiment_is_refused_with_the_known_ones(dask_client, tmp_path):
    result = CliRunner().invoke(app, ["experiment", "bandits", "--workspace", str(tmp_path)])
    assert result.exit_code == 2
    assert f"expected one of {', '.join(EXPERIMENTS)}, found 'bandits'" in result.stderr
