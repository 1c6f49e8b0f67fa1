"""The bandit experiment: statistics against scipy's, claims that fail said to fail, and the command end to end."""

import json

import numpy as np
import pytest
from scipy.stats import t as student
from typer.testing import CliRunner

from flows.cli import app
from flows.run_experiment import EXPERIMENTS
from quad_tasks.experiments import bandit
from quad_tasks.experiments.bandit import (
    Game,
    judge,
    list_games,
    play_seed,
    recorded_rounds,
    summarise,
    tables,
)
from quad_tasks.experiments.bandit_figures import draw_bandit
from quad_tasks.experiments.drawing import encode
from quad_tasks.experiments.outcome import interval
from quad_tasks.storage.store import open_store

BOUNDED = Game(10, False, "bernoulli", 1, 60, 2)
SMOOTH = Game(12, True, "student", 2, 60, 2)


@pytest.fixture(scope="module")
def summaries():
    return [summarise(game, [play_seed(game, seed) for seed in range(game.seeds)]) for game in (BOUNDED, SMOOTH)]


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=10)
    found = interval(values)
    low, high = student.interval(0.95, 9, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(10))
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((values.mean(), low, high))


def test_every_pair_of_means_and_noise_is_played_with_ten_seeds():
    games = [game for game in list_games(quick=False) if game.noise != "bernoulli"]
    assert {(g.n_arms, g.smooth, g.noise) for g in games} == {
        (k, smooth, noise) for k in (100, 10_000) for smooth in (True, False) for noise in ("gaussian", "student")
    }
    assert {g.seeds for g in list_games(quick=False)} == {10}
    assert {g.n_rounds * g.arms_per_round / g.n_arms for g in games} == {20}


@pytest.mark.parametrize("n_rounds", [7, 50, 251])
def test_the_last_round_is_recorded(n_rounds):
    rounds = recorded_rounds(Game(10, True, "gaussian", 1, n_rounds, 2))
    assert rounds[0] >= 1
    assert rounds[-1] == n_rounds
    assert (np.diff(rounds) > 0).all()


def test_recorded_exploitation_is_the_mean_between_recorded_rounds(monkeypatch):
    game = Game(10, True, "gaussian", 1, 100, 2)
    fine = play_seed(game, 0)["paper"]["exploited"]
    monkeypatch.setattr(bandit, "RECORDED_ROUNDS", 10)
    coarse = play_seed(game, 0)["paper"]["exploited"]
    assert coarse == pytest.approx(np.mean(np.reshape(fine, (10, 5)), axis=1).tolist())


def test_shares_are_of_the_same_seeds_games(summaries):
    played = [play_seed(SMOOTH, seed) for seed in range(SMOOTH.seeds)]
    shares = [p["greedy"]["regret"][-1] / p["uniform"]["regret"][-1] for p in played]
    assert summaries[1]["policies"]["greedy"]["share_of_uniform"]["mean"] == pytest.approx(np.mean(shares))


def test_a_claim_that_fails_is_said_to_fail_and_by_how_much(summaries):
    game = json.loads(json.dumps(summaries[1]))
    game["policies"]["paper"]["share_of_uniform"]["mean"] = 0.75
    game["policies"]["contextual"]["share_of_paper"]["mean"] = 0.6
    shows = judge([game])
    assert [show["holds"] for show in shows] == [False, True]
    rows = tables({"games": [game], "shows": shows})["What it shows"]
    assert [row[""] for row in rows] == ["fails by 0.250", "holds"]


def test_drawings_are_svg_and_png_and_the_same_every_time(summaries):
    first, second = (
        {n: draw_bandit({"games": summaries})[n] for n in ("regret", "exploited", "bound")} for _ in range(2)
    )
    for name, figure in first.items():
        assert encode(figure, "svg") == encode(second[name], "svg")
    assert b"<svg" in encode(first["regret"], "svg")
    assert encode(first["bound"], "png").startswith(b"\x89PNG")


def test_the_bound_is_inside_its_drawing(summaries):
    (axes,) = draw_bandit({"games": summaries})["bound"].axes
    assert axes.get_ylim()[1] >= max(summaries[0]["policies"]["ucb1"]["bound"])


def test_the_command_writes_one_result_however_often_it_runs(prefect_server, dask_client, tmp_path, monkeypatch):
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


def test_an_unknown_experiment_is_refused_with_the_known_ones(prefect_server, dask_client, tmp_path):
    result = CliRunner().invoke(app, ["experiment", "bandits", "--workspace", str(tmp_path)])
    assert result.exit_code == 2
    assert f"expected one of {', '.join(EXPERIMENTS)}, found 'bandits'" in result.stderr
