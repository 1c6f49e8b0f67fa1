"""Experiment "bandit": the cumulative regret of every policy on arms whose means are known (`core.regret`).

Eight games of 20 pulls an arm: 100 or 10,000 arms, means smooth in the centroids or independent of them, rewards
Gaussian or heavy-tailed. A ninth is the one UCB1's bound applies to: rewards of 0 or 1, one arm a round. Owns the
games, their statistics and what they are to show; every claim comes with what was measured, held or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.compute import spread
from quad_tasks.config import RunConfig
from quad_tasks.core import bandit, regret
from quad_tasks.experiments.bandit_figures import draw_bandit
from quad_tasks.experiments.experiment import Experiment
from quad_tasks.experiments.outcome import interval

Float64 = npt.NDArray[np.float64]
Played = dict[str, dict[str, Any]]

SEEDS = 10
QUICK_SEEDS = 3
"""Of the games with 10,000 arms, which take 50 times as long."""
PULLS_PER_ARM = 20
FEW_ARMS, MANY_ARMS = 100, 10_000
ARMS_PER_ROUND = {FEW_ARMS: bandit.ARMS_PER_ROUND, MANY_ARMS: 100}
BOUNDED_ROUNDS = 10_000
"""UCB1's bound falls below the regret of pulling at random after about 4,300."""
RECORDED_ROUNDS = 50
EARLY = RECORDED_ROUNDS // 4 - 1
"""Recorded round at about a quarter of a game: 5 pulls an arm."""
PAPER_SHARE = 0.5
SMOOTH_SHARE, INDEPENDENT_SHARE = 0.6, 1.1


@dataclass(frozen=True, slots=True)
class Game:
    """One setting all policies play.

    Attributes:
        n_arms: K.
        smooth: whether centroids tell of means.
        noise: how rewards scatter.
        arms_per_round: k.
        n_rounds: R.
        seeds: games of other arms and other luck.
    """

    n_arms: int
    smooth: bool
    noise: regret.Noise
    arms_per_round: int
    n_rounds: int
    seeds: int


def measure_bandit(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Play every game.

    Args:
        workspace: not read.
        config: not read: arms are synthetic.
        quick: fewer seeds where there are many arms.
    """
    games = list_games(quick)
    items = [(game, seed) for game in reversed(games) for seed in range(game.seeds)]  # the long ones first
    played: dict[Game, list[Played]] = {game: [] for game in games}
    for (game, _), courses in zip(items, spread(play_seed, items, "play", "games"), strict=True):
        played[game].append(courses)
    summaries = [summarise(game, courses) for game, courses in played.items()]
    return {"games": summaries, "shows": judge(summaries)}


def list_games(quick: bool) -> list[Game]:
    """List the games, the one with UCB1's bound first."""
    games = [Game(10, False, "bernoulli", 1, BOUNDED_ROUNDS, SEEDS)]
    noises: tuple[regret.Noise, ...] = ("gaussian", "student")
    for n_arms in (FEW_ARMS, MANY_ARMS):
        k = ARMS_PER_ROUND[n_arms]
        seeds = QUICK_SEEDS if quick and n_arms == MANY_ARMS else SEEDS
        games += [
            Game(n_arms, smooth, noise, k, PULLS_PER_ARM * n_arms // k, seeds)
            for smooth in (True, False)
            for noise in noises
        ]
    return games


def play_seed(game: Game, seed: int) -> Played:
    """Let every policy play one seed's arms.

    Returns:
        By policy: `regret`, cumulative, at the recorded rounds; `exploited`, the share of pulls on the best tenth of
        the arms, between recorded rounds; and where it applies `bound_share`, the largest share of its bound that the
        regret reached at any round.
    """
    bounded = game.noise == "bernoulli"
    generator = np.random.default_rng([seed, game.n_arms, game.smooth])
    arms = regret.bounded_arms() if bounded else regret.make_arms(game.n_arms, game.smooth, generator)
    players = dict(regret.policies(game.arms_per_round))
    if bounded:
        players = {name: players[name] for name in ("uniform", "greedy", "paper", "thompson")}
        players["ucb1"] = regret.ucb1_policy()
    at = recorded_rounds(game)
    played: Played = {}
    for number, (name, policy) in enumerate(players.items()):
        luck = np.random.default_rng([seed, game.n_arms, game.smooth, number])
        course = regret.play(policy, arms, game.noise, game.arms_per_round, game.n_rounds, luck)
        starts = np.concatenate(([0], at[:-1]))
        exploited = np.add.reduceat(course.exploited_R, starts) / np.diff(np.append(starts, at[-1]))
        played[name] = {"regret": course.regret_R[at - 1].tolist(), "exploited": exploited.tolist()}
        if name == "ucb1":
            bound_R = regret.ucb1_bound(arms.mean_K, np.arange(1, game.n_rounds + 1))
            played[name]["bound"] = bound_R[at - 1].tolist()
            played[name]["bound_share"] = float(np.max(course.regret_R / bound_R))
    return played


def recorded_rounds(game: Game) -> npt.NDArray[np.int64]:
    """Return the rounds, counted from 1, after which a course is recorded; the last one is among them."""
    ends = np.unique(np.linspace(0, game.n_rounds, RECORDED_ROUNDS + 1).round().astype(np.int64))
    return ends[1:]


def summarise(game: Game, played: Sequence[Played]) -> dict[str, Any]:
    """Give every policy its mean over seeds with Student's interval: final regret, shares of others', its course."""
    courses = {name: np.array([p[name]["regret"] for p in played]) for name in played[0]}
    uniform, paper = courses["uniform"], courses["paper"]
    policies = {}
    for name, course in courses.items():
        policies[name] = {
            "regret": interval(course[:, -1]),
            "share_of_uniform": interval(course[:, -1] / uniform[:, -1]),
            "early_share_of_uniform": interval(course[:, EARLY] / uniform[:, EARLY]),
            "share_of_paper": interval(course[:, -1] / paper[:, -1]),
            "course": interval(course),
            "exploited": interval(np.array([p[name]["exploited"] for p in played])),
        }
        if name == "ucb1":
            policies[name]["bound"] = played[0][name]["bound"]
            policies[name]["bound_share"] = max(p[name]["bound_share"] for p in played)
    means = "smooth" if game.smooth else "independent"
    title = f"{game.n_arms:,} arms, {means} means, {game.noise} rewards"
    return {"title": title, **asdict(game), "recorded_rounds": recorded_rounds(game).tolist(), "policies": policies}


def judge(games: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """State what the games are to show, game by game: the claim, what was measured, the limit, whether it holds."""
    shows = []
    for game in games:
        policies = game["policies"]
        if "ucb1" in policies:
            shows.append(_claim(game, "ucb1 / its bound, worst round and seed", policies["ucb1"]["bound_share"], 1.0))
            continue
        paper, features = policies["paper"]["share_of_uniform"], policies["contextual"]["share_of_paper"]
        limit = SMOOTH_SHARE if game["smooth"] else INDEPENDENT_SHARE
        shows.append(_claim(game, "paper / uniform", paper["mean"], PAPER_SHARE))
        shows.append(_claim(game, "contextual / paper", features["mean"], limit))
    return shows


def _claim(game: Mapping[str, Any], claim: str, measured: float, limit: float) -> dict[str, Any]:
    return {"game": game["title"], "claim": claim, "measured": measured, "limit": limit, "holds": measured <= limit}


def tables(result: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Lay a result out for reading: a table a game, policies by regret, and what all of it shows.

    Args:
        result: the body of `result.json`.
    """
    laid_out = {}
    for game in result["games"]:
        by_regret = sorted(game["policies"].items(), key=lambda item: item[1]["regret"]["mean"])
        title = f"{game['title']}: {game['n_rounds']:,} rounds of {game['arms_per_round']}, {game['seeds']} seeds"
        laid_out[title] = [_row(name, policy) for name, policy in by_regret]
    laid_out["What it shows"] = [
        {
            "game": show["game"],
            "claim": show["claim"],
            "measured": f"{show['measured']:.3f}",
            "at most": f"{show['limit']:g}",
            "": "holds" if show["holds"] else f"fails by {show['measured'] - show['limit']:.3f}",
        }
        for show in result["shows"]
    ]
    return laid_out


def _row(name: str, policy: Mapping[str, Any]) -> dict[str, str]:
    lost, uniform = policy["regret"], policy["share_of_uniform"]
    return {
        "policy": name,
        "regret": f"{lost['mean']:,.1f}",
        "95 % interval": f"{lost['low']:,.1f} to {lost['high']:,.1f}",
        "of uniform's": f"{uniform['mean']:.3f} ({uniform['low']:.3f} to {uniform['high']:.3f})",
        "after a quarter": f"{policy['early_share_of_uniform']['mean']:.3f}",
        "of paper's": f"{policy['share_of_paper']['mean']:.3f}",
    }


BANDIT = Experiment("regret of every policy on arms whose means are known", measure_bandit, tables, draw_bandit)
