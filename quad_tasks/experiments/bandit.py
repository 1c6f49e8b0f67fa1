"""Experiment "bandit": measure the cumulative regret of every policy on synthetic arms (`lab.synthetic_arms`).

Eight games of 20 pulls an arm: 100 or 10,000 arms, means smooth in the centroids or independent of them, rewards
Gaussian or heavy-tailed. A ninth is the one UCB1's bound applies to: rewards of 0 or 1, one arm a round. Owns the list
of games and the claims; a claim that fails is reported with what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quad_tasks.config.schema import RunConfig
from quad_tasks.core import bandit
from quad_tasks.experiments.bandit_figures import draw_bandit
from quad_tasks.experiments.bandit_games import (
    UCB1,
    BoundedSummary,
    Game,
    GameSummary,
    Played,
    PolicySummary,
    play_seed,
    summarise,
)
from quad_tasks.experiments.experiment import Experiment, Tables
from quad_tasks.experiments.lab import synthetic_arms
from quad_tasks.runtime.tasks import map_tasks

SEEDS = 10
QUICK_SEEDS = 3
"""Seeds of the quick games with 10,000 arms, which take 50 times as long."""
PULLS_PER_ARM = 20
FEW_ARMS, MANY_ARMS = 100, 10_000
ARMS_PER_ROUND = {FEW_ARMS: bandit.ARMS_PER_ROUND, MANY_ARMS: 100}
BOUNDED_ROUNDS = 10_000
"""UCB1's bound falls below the regret of pulling at random after about 4,300."""
PAPER_SHARE = 0.5
"""Limit of the paper's regret, as a share of random pulls'."""
SMOOTH_SHARE, INDEPENDENT_SHARE = 0.6, 1.1
"""Limits of the contextual policy's regret, as shares of the paper's, by how means depend on centroids."""


@dataclass(frozen=True, slots=True)
class GameClaim:
    """A claim about one game: what was measured, the most it may be, and whether it holds."""

    game: str
    claim: str
    measured: float
    limit: float
    holds: bool


@dataclass(frozen=True)
class Result:
    """Result of the experiment."""

    games: list[GameSummary]
    shows: list[GameClaim]


def measure_bandit(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Play every game.

    Args:
        workspace: not read.
        config: not read: arms are synthetic.
        quick: fewer seeds where there are many arms.
    """
    games = list_games(quick)
    items = [(game, seed) for game in reversed(games) for seed in range(game.seeds)]  # the long ones first
    played: dict[Game, list[Mapping[str, Played]]] = {game: [] for game in games}
    for (game, _), found in zip(items, map_tasks(play_seed, items, "play", "games"), strict=True):
        played[game].append(found)
    summaries = [summarise(game, seeds) for game, seeds in played.items()]
    return Result(summaries, judge(summaries))


def list_games(quick: bool) -> list[Game]:
    """List the games, the one with UCB1's bound first."""
    games = [Game(10, False, "bernoulli", 1, BOUNDED_ROUNDS, SEEDS)]
    noises: tuple[synthetic_arms.Noise, ...] = ("gaussian", "student")
    for n_arms in (FEW_ARMS, MANY_ARMS):
        k = ARMS_PER_ROUND[n_arms]
        seeds = QUICK_SEEDS if quick and n_arms == MANY_ARMS else SEEDS
        games += [
            Game(n_arms, smooth, noise, k, PULLS_PER_ARM * n_arms // k, seeds)
            for smooth in (True, False)
            for noise in noises
        ]
    return games


def judge(games: Sequence[GameSummary]) -> list[GameClaim]:
    """State what the games are to show, game by game: the claim, what was measured, the limit, whether it holds."""
    claims = []
    for game in games:
        ucb1 = game.policies.get(UCB1)
        if isinstance(ucb1, BoundedSummary):
            claims.append(_claim(game, "ucb1 / its bound, worst round and seed", ucb1.bound_share, 1.0))
            continue
        limit = SMOOTH_SHARE if game.smooth else INDEPENDENT_SHARE
        paper, contextual = game.policies["paper"], game.policies["contextual"]
        claims.append(_claim(game, "paper / uniform", paper.share_of_uniform.mean, PAPER_SHARE))
        claims.append(_claim(game, "contextual / paper", contextual.share_of_paper.mean, limit))
    return claims


def _claim(game: GameSummary, claim: str, measured: float, limit: float) -> GameClaim:
    return GameClaim(game.title, claim, measured, limit, measured <= limit)


def lay_out(result: Result) -> Tables:
    """Lay out a table a game, policies by regret, and what all of it shows."""
    tables = {}
    for game in result.games:
        by_regret = sorted(game.policies.items(), key=lambda item: item[1].regret.mean)
        title = f"{game.title}: {game.n_rounds:,} rounds of {game.arms_per_round}, {game.seeds} seeds"
        tables[title] = [_row(name, policy) for name, policy in by_regret]
    tables["What it shows"] = [
        {
            "game": claim.game,
            "claim": claim.claim,
            "measured": f"{claim.measured:.3f}",
            "at most": f"{claim.limit:g}",
            "": "holds" if claim.holds else f"fails by {claim.measured - claim.limit:.3f}",
        }
        for claim in result.shows
    ]
    return tables


def _row(name: str, policy: PolicySummary) -> dict[str, str]:
    regret, uniform = policy.regret, policy.share_of_uniform
    return {
        "policy": name,
        "regret": f"{regret.mean:,.1f}",
        "95 % interval": f"{regret.low:,.1f} to {regret.high:,.1f}",
        "of uniform's": f"{uniform.mean:.3f} ({uniform.low:.3f} to {uniform.high:.3f})",
        "after a quarter": f"{policy.early_share_of_uniform.mean:.3f}",
        "of paper's": f"{policy.share_of_paper.mean:.3f}",
    }


BANDIT = Experiment(
    "regret of every policy on arms whose means are known",
    Result,
    measure_bandit,
    lay_out,
    lambda result: draw_bandit(result.games),
)
