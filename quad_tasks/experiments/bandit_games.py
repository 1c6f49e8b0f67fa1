"""Play the bandit experiment's games and summarise them: every policy on one game's synthetic arms, over seeds.

Shape suffixes: S seeds, R rounds, or recorded rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from quad_tasks.core.evaluation.statistics import Band, Interval, band, interval
from quad_tasks.experiments.lab import synthetic_arms

Float64 = npt.NDArray[np.float64]

RECORDED_ROUNDS = 50
EARLY = RECORDED_ROUNDS // 4 - 1
"""Recorded round at about a quarter of a game: 5 pulls an arm."""
UCB1 = "ucb1"


@dataclass(frozen=True, slots=True)
class Game:
    """One setting that all policies play.

    Attributes:
        n_arms: K.
        smooth: whether means are a smooth function of centroids.
        noise: how rewards scatter about their arm's mean.
        arms_per_round: k.
        n_rounds: R.
        seeds: repeats, with other arms and other rewards.
    """

    n_arms: int
    smooth: bool
    noise: synthetic_arms.Noise
    arms_per_round: int
    n_rounds: int
    seeds: int


@dataclass(frozen=True, slots=True)
class Played:
    """A policy's game, at the recorded rounds.

    Attributes:
        regret: cumulative.
        exploited: share of pulls on the best tenth of the arms since the recorded round before.
    """

    regret: list[float]
    exploited: list[float]


@dataclass(frozen=True, slots=True)
class BoundedPlayed(Played):
    """A game whose regret has a bound.

    Attributes:
        bound: of the regret, at the recorded rounds.
        bound_share: largest share of its bound that the regret reached at any round.
    """

    bound: list[float]
    bound_share: float


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """A policy's games over seeds.

    Attributes:
        regret: at the end.
        share_of_uniform: of the regret of random pulls in the same games.
        early_share_of_uniform: the same after a quarter of the rounds.
        share_of_paper: of the regret of the paper's policy in the same games.
        history: regret by recorded round.
        exploited: share of pulls on the best tenth of the arms, by recorded round.
    """

    regret: Interval
    share_of_uniform: Interval
    early_share_of_uniform: Interval
    share_of_paper: Interval
    history: Band
    exploited: Band


@dataclass(frozen=True, slots=True)
class BoundedSummary(PolicySummary):
    """A policy's games where its regret has a bound.

    Attributes:
        bound: of the regret, by recorded round.
        bound_share: largest share of its bound that any game's regret reached at any round.
    """

    bound: list[float]
    bound_share: float


@dataclass(frozen=True, slots=True)
class GameSummary(Game):
    """A game, and every policy's outcome in it.

    Attributes:
        title: for reading.
        recorded_rounds: counted from 1.
        policies: by name.
    """

    title: str
    recorded_rounds: list[int]
    policies: dict[str, BoundedSummary | PolicySummary]


def play_seed(game: Game, seed: int) -> dict[str, Played]:
    """Let every policy play one seed's arms, on a worker; return its record by policy."""
    bounded = game.noise == "bernoulli"
    generator = np.random.default_rng([seed, game.n_arms, game.smooth])
    arms = synthetic_arms.bounded_arms() if bounded else synthetic_arms.make_arms(game.n_arms, game.smooth, generator)
    policies = dict(synthetic_arms.policies(game.arms_per_round))
    if bounded:
        policies = {name: policies[name] for name in ("uniform", "greedy", "paper", "thompson")}
        policies[UCB1] = synthetic_arms.ucb1_policy()
    played = {}
    for number, (name, policy) in enumerate(policies.items()):
        own = np.random.default_rng([seed, game.n_arms, game.smooth, number + 1])  # 0 would be the arms' own stream
        history = synthetic_arms.play(policy, arms, game.noise, game.arms_per_round, game.n_rounds, own)
        played[name] = _record(game, history)
        if name == UCB1:
            played[name] = _record_bound(game, history, arms)
    return played


def _record(game: Game, history: synthetic_arms.GameHistory) -> Played:
    rounds = recorded_rounds(game)
    starts = np.concatenate(([0], rounds[:-1]))
    exploited = np.add.reduceat(history.exploited_R, starts) / np.diff(np.append(starts, rounds[-1]))
    return Played(history.regret_R[rounds - 1].tolist(), exploited.tolist())


def _record_bound(game: Game, history: synthetic_arms.GameHistory, arms: synthetic_arms.Arms) -> BoundedPlayed:
    bound_R = synthetic_arms.ucb1_bound(arms.mean_K, np.arange(1, game.n_rounds + 1))
    at_recorded = bound_R[recorded_rounds(game) - 1].tolist()
    bound_share = float(np.max(history.regret_R / bound_R))
    return BoundedPlayed(**asdict(_record(game, history)), bound=at_recorded, bound_share=bound_share)


def recorded_rounds(game: Game) -> npt.NDArray[np.int64]:
    """Return the rounds, counted from 1, after which regret is recorded; the last one is among them."""
    ends = np.unique(np.linspace(0, game.n_rounds, RECORDED_ROUNDS + 1).round().astype(np.int64))
    return ends[1:]


def summarise(game: Game, played: Sequence[Mapping[str, Played]]) -> GameSummary:
    """Summarise every policy's games over seeds, with Student's intervals.

    Args:
        game: the setting.
        played: records by policy, one dictionary a seed.
    """
    regret_SR = {name: np.array([seed[name].regret for seed in played]) for name in played[0]}
    policies = {name: _summarise_policy(name, [seed[name] for seed in played], regret_SR) for name in regret_SR}
    means = "smooth" if game.smooth else "independent"
    title = f"{game.n_arms:,} arms, {means} means, {game.noise} rewards"
    return GameSummary(**asdict(game), title=title, recorded_rounds=recorded_rounds(game).tolist(), policies=policies)


def _summarise_policy(
    name: str, played: Sequence[Played], regret_SR: Mapping[str, Float64]
) -> BoundedSummary | PolicySummary:
    own, uniform, paper = regret_SR[name], regret_SR["uniform"], regret_SR["paper"]
    summary = PolicySummary(
        regret=interval(own[:, -1]),
        share_of_uniform=interval(own[:, -1] / uniform[:, -1]),
        early_share_of_uniform=interval(own[:, EARLY] / uniform[:, EARLY]),
        share_of_paper=interval(own[:, -1] / paper[:, -1]),
        history=band(own),
        exploited=band([one.exploited for one in played]),
    )
    bounded = [one for one in played if isinstance(one, BoundedPlayed)]
    if not bounded:
        return summary
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    return BoundedSummary(**values, bound=bounded[0].bound, bound_share=max(one.bound_share for one in bounded))
