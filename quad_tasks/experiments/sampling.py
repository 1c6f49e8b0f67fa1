"""Experiment "sampling": measure what scoring a share of 100,000 short documents reaches, and what it costs.

Accuracy is the share of the achievable influence (0: a random selection's, 1: the best one's) of a selection of a
twentieth of the pool's tokens. Cost is time on one core, every part of it measured: embedding, clustering, hidden
states and the regression's features where they are used, the fit of factors and direction, scoring, and selecting.
Four ways spend a share:

    quad              a run's default, without a general share, which ignores influence
    quad_states       the same with the model's hidden states among the regression's features
    cluster_sampling  the paper's policy alone: arms are pulled, and good arms' unscored documents taken unseen
    random_sampling   documents scored at random, the best of them taken, then others at random

Then models are trained on equal tokens: of Quad's selections with a tenth scored, of full scoring's, and at random.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import Features
from quad_tasks.core.evaluation import statistics
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.experiments.experiment import Experiment, Tables, claims_table, within
from quad_tasks.experiments.lab import plots, simulation
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.corpus_sample import Size
from quad_tasks.experiments.lab.evaluation import Claim, claim_least, claim_most
from quad_tasks.experiments.lab.testbed import Testbed, find_testbed, open_testbed, prediction_features
from quad_tasks.experiments.lab.trials import train_trials

Int64 = npt.NDArray[np.int64]

FULL = Size(
    documents=100_000,
    passage_characters=90,
    window_tokens=48,
    trained_documents=16_000,
    factor_documents=1_500,
    width=64,
    layers=2,
    arms=200,
    budget_tokens=150_000,
    seeds=3,
    kinds=("joint",),
)
SMALL = replace(FULL, documents=6_000, trained_documents=3_000, factor_documents=300, arms=60, budget_tokens=10_000)
SHARES = (0.02, 0.05, 0.1, 0.2)
MAIN_SHARE = 0.1
WAYS = ("quad", "quad_states", "cluster_sampling", "random_sampling")
COLOURS = dict(zip(WAYS, (plots.RED, plots.ORANGE, plots.BLUE, plots.GREY), strict=True))
FEATURES: dict[str, Features] = {"quad_states": "hidden_states", "cluster_sampling": "embedding"}
"""Features of a way's regression; a run's default unless named. Cluster sampling has no regression."""
LEAST_SHARE = 0.78
"""Share of the achievable influence that Quad must reach with a tenth scored."""


@dataclass(frozen=True)
class Spent:
    """A selection and its outcome.

    Attributes:
        influence_share: of the achievable influence.
        choose_s: seconds of computing features and selecting.
        rows: the documents.
    """

    influence_share: float
    choose_s: float
    rows: list[int]


@dataclass(frozen=True)
class Point:
    """A point of a way's curve.

    Attributes:
        way: one of `WAYS`.
        scored_share: of the documents.
        influence_share: of the achievable influence, by seed.
        cost_s: seconds on one core, mean over seeds.
    """

    way: str
    scored_share: float
    influence_share: list[float]
    cost_s: float


@dataclass(frozen=True)
class Result:
    """Result of the experiment.

    Attributes:
        documents: of the testbed.
        tokens: of all of them.
        budget_tokens: of a selection.
        seconds: of building the testbed, by part.
        full_cost_s: seconds of scoring every document.
        points: of every way's curve.
        reference_loss: by selection that was trained on, by seed.
        shows: the claims.
    """

    documents: int
    tokens: int
    budget_tokens: int
    seconds: dict[str, float]
    full_cost_s: float
    points: list[Point]
    reference_loss: dict[str, list[float]]
    shows: list[Claim]


def measure_sampling(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Spend every share in every way; train on Quad's selections, full scoring's and random ones."""
    testbed = find_testbed(workspace, config, SMALL if quick else FULL)
    seeds = range(testbed.size.seeds)
    runs = [(way, share, seed) for way in WAYS for share in reversed(SHARES) for seed in seeds]
    items = [(testbed.workspace, testbed.key, *run) for run in runs]
    spent = dict(zip(runs, map_cached(spend, items, "select", "selections"), strict=True))
    points = [
        _point(testbed, way, share, [spent[way, share, seed] for seed in seeds]) for way in WAYS for share in SHARES
    ]
    full_s = testbed.seconds["fit_joint"] + testbed.seconds["score"]
    losses = _train_selections(testbed, [spent["quad", MAIN_SHARE, seed] for seed in seeds])
    return Result(
        documents=len(testbed.documents),
        tokens=int(testbed.n_tokens.sum()),
        budget_tokens=testbed.size.budget_tokens,
        seconds=dict(testbed.seconds),
        full_cost_s=full_s,
        points=points,
        reference_loss=losses,
        shows=_claims(points, full_s, losses),
    )


def _point(testbed: Testbed, way: str, share: float, spent: Sequence[Spent]) -> Point:
    choose_s = float(np.mean([one.choose_s for one in spent]))
    cost_s = _shared_s(testbed, way) + share * testbed.seconds["score"] + choose_s
    return Point(way, share, [one.influence_share for one in spent], cost_s)


def _shared_s(testbed: Testbed, way: str) -> float:
    """Return the seconds before the first score: of the direction, of arms, and of features."""
    seconds = testbed.seconds
    clustered = 0.0 if way == "random_sampling" else seconds["embed"] + seconds["cluster"]
    return seconds["fit_joint"] + clustered + (seconds["loss"] if way == "quad_states" else 0.0)


def _train_selections(testbed: Testbed, quad: Sequence[Spent]) -> dict[str, list[float]]:
    """Train on Quad's selections, as many random ones and full scoring's; return reference losses by seed."""
    seeds = range(len(quad))
    best = _fill(testbed, np.argsort(-testbed.per_token(), kind="stable"))
    selections = {
        "random": [
            _fill(testbed, np.random.default_rng([seed, 1]).permutation(len(testbed.documents))) for seed in seeds
        ],
        "quad": [np.array(one.rows) for one in quad],
        "full_influence": [best] * len(seeds),
    }
    trials = [(rows, seed) for each in selections.values() for seed, rows in enumerate(each)]
    losses = iter([found.reference_loss for found in train_trials(testbed, trials)])
    return {name: [next(losses) for _ in seeds] for name in selections}


def spend(workspace: str, key: str, way: str, scored_share: float, seed: int) -> Spent:
    """Score a share of a testbed's documents in one way and select, on a worker."""
    testbed, started = open_testbed(workspace, key), time.process_time()
    if way == "random_sampling":
        rows = _sample_at_random(testbed, scored_share, seed)
    else:
        pool = simulation.pool_of(testbed, prediction_features(testbed, FEATURES.get(way)))
        rules = simulation.Rules(scored_share=scored_share, general_share=0.0)
        if way == "cluster_sampling":
            policy = replace(rules.policy, documents_per_pull=simulation.PULL.documents_per_pull)
            rules = replace(rules, policy=policy, active_documents=0, mode="cluster")
        rows = simulation.simulate_selection(testbed.per_token(), pool, rules, seed).rows
    choose_s = time.process_time() - started
    return Spent(simulation.share_reached_in(testbed, rows), choose_s, rows.tolist())


def _sample_at_random(testbed: Testbed, scored_share: float, seed: int) -> Int64:
    """Score documents at random; take the best of them, then others at random."""
    order = np.random.default_rng(seed).permutation(len(testbed.documents))
    scored, rest = np.split(order, [int(scored_share * len(order))])
    best_first = scored[np.argsort(-testbed.per_token()[scored])]
    return _fill(testbed, np.concatenate([best_first, rest]))


def _fill(testbed: Testbed, order: Int64) -> Int64:
    return fill_budget(order, testbed.n_tokens, testbed.size.budget_tokens)


def _claims(points: Sequence[Point], full_s: float, losses: Mapping[str, list[float]]) -> list[Claim]:
    at = {point.way: point for point in points if point.scored_share == MAIN_SHARE}
    quad = at["quad"].influence_share
    title = "share of the achievable influence, Quad, a tenth scored"
    claims = [claim_least(title, statistics.interval(quad), LEAST_SHARE)]
    for way in ("cluster_sampling", "random_sampling"):
        more = statistics.interval(np.subtract(quad, at[way].influence_share))
        claims.append(claim_least(f"the same less that of {_plain(way)}", more, 0.0))
    for way in ("quad", "quad_states"):
        cost = at[way].cost_s / full_s
        title = f"time of {_plain(way)}, a tenth scored, over full scoring's"
        claims.append(claim_most(title, Interval(cost, cost, cost), 1.0))
    gained = statistics.gain_share(losses["random"], losses["quad"], losses["full_influence"])
    return [*claims, claim_least("gain over random in reference loss, as a share of full scoring's", gained, 0.85)]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def lay_out(result: Result) -> Tables:
    """Lay out a row a point of the curve, the trained models, and what it shows."""
    rows = [
        {
            "way": _plain(point.way),
            "scored": f"{point.scored_share:.0%}",
            "share of achievable influence": within(statistics.interval(point.influence_share)),
            "time on one core": f"{point.cost_s:.0f} s",
            "of full scoring's": f"{point.cost_s / result.full_cost_s:.2f}",
        }
        for point in result.points
    ]
    trained = [
        {"trained on": _plain(name), "reference loss": within(statistics.interval(losses))}
        for name, losses in result.reference_loss.items()
    ]
    title = f"{result.documents:,} documents, {result.tokens:,} tokens; full scoring {result.full_cost_s:.0f} s"
    return {title: rows, "Trained on equal tokens": trained, **claims_table(result.shows)}


def draw(result: Result) -> dict[str, Figure]:
    """Draw accuracy against what was scored and against time."""
    figure, (left, right) = plots.page_figure(3.3, columns=2)
    for way in WAYS:
        points = [point for point in result.points if point.way == way]
        found = [statistics.interval(point.influence_share) for point in points]
        plots.draw_course(left, [100 * point.scored_share for point in points], found, COLOURS[way], _plain(way))
        plots.draw_course(right, [point.cost_s for point in points], found, COLOURS[way], _plain(way))
    right.axvline(result.full_cost_s, color=plots.BLACK, linewidth=1, linestyle=":")
    right.annotate("full scoring", (result.full_cost_s, 0.02), rotation=90, ha="right", fontsize=plots.TICK_PT)
    for axes in (left, right):
        axes.axhline(1.0, color=plots.BLACK, linewidth=0.6)
        axes.set_ylim(0, 1.05)
    left.set_xscale("log")
    left.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
    left.minorticks_off()
    right.set_xlim(left=0)
    plots.label(left, "documents scored (%)", "share of the achievable influence")
    plots.label(right, "time on one core (s)", "share of the achievable influence")
    plots.legend_below(figure, left)
    return {"accuracy-against-cost": figure}


SAMPLING = Experiment(
    "accuracy against cost of scoring a share of 100,000 documents", Result, measure_sampling, lay_out, draw
)
