"""A game is recorded to its last round; shares compare policies within one seed's game."""

import numpy as np
import pytest
from drawn_streams import note_streams
from experiments.bandit_small import BOUNDED, SMOOTH, play
from pydantic import TypeAdapter

from quad_tasks.experiments import bandit_games
from quad_tasks.experiments.bandit_games import BoundedSummary, Game, GameSummary, play_seed, recorded_rounds


@pytest.mark.parametrize("n_rounds", [7, 50, 251])
def test_the_last_round_is_recorded(n_rounds):
    rounds = recorded_rounds(Game(10, True, "gaussian", 1, n_rounds, 2))
    assert rounds[0] >= 1
    assert rounds[-1] == n_rounds
    assert (np.diff(rounds) > 0).all()


def test_recorded_exploitation_is_the_mean_between_recorded_rounds(monkeypatch):
    game = Game(10, True, "gaussian", 1, 100, 2)
    fine = play_seed(game, 0)["paper"].exploited
    monkeypatch.setattr(bandit_games, "RECORDED_ROUNDS", 10)
    coarse = play_seed(game, 0)["paper"].exploited
    assert coarse == pytest.approx(np.mean(np.reshape(fine, (10, 5)), axis=1).tolist())


def test_no_policy_draws_from_the_stream_that_made_the_arms(monkeypatch):
    states = note_streams(monkeypatch)
    played = play_seed(Game(10, True, "gaussian", 1, 10, 2), 0)
    assert len(set(states)) == len(states) > len(played)


def test_shares_are_of_the_same_seeds_games():
    played = [play_seed(SMOOTH, seed) for seed in range(SMOOTH.seeds)]
    shares = [seed["greedy"].regret[-1] / seed["uniform"].regret[-1] for seed in played]
    assert play(SMOOTH).policies["greedy"].share_of_uniform.mean == pytest.approx(np.mean(shares))


def test_the_worst_round_of_the_worst_seed_is_held_against_the_bound():
    summary = play(BOUNDED).policies["ucb1"]
    assert isinstance(summary, BoundedSummary)
    recorded = [max(np.divide(play_seed(BOUNDED, seed)["ucb1"].regret, summary.bound)) for seed in range(BOUNDED.seeds)]
    assert summary.bound_share >= max(recorded) > 0
    assert len(summary.bound) == len(play(BOUNDED).recorded_rounds)
    assert not any(isinstance(policy, BoundedSummary) for policy in play(SMOOTH).policies.values())


def test_a_summary_reads_back_from_json():
    games = TypeAdapter(list[GameSummary])
    summaries = [play(BOUNDED), play(SMOOTH)]
    assert games.validate_json(games.dump_json(summaries)) == summaries
