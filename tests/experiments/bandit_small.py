"""Two games small enough for a test, and their summaries."""

from functools import cache

from quad_tasks.experiments.bandit_games import Game, GameSummary, play_seed, summarise

BOUNDED = Game(10, False, "bernoulli", 1, 60, 2)
SMOOTH = Game(12, True, "student", 2, 60, 2)


@cache
def play(game: Game) -> GameSummary:
    return summarise(game, [play_seed(game, seed) for seed in range(game.seeds)])
