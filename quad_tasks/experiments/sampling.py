"""Experiment "sampling": what scoring a share of 100,000 short documents reaches of what scoring all of them does.

Accuracy is the share of the achievable influence (0: a random selection's, 1: the best one's) of a selection of a
twentieth of the pool's tokens; cost is time on one core, every part of it measured: embedding, clustering, hidden
states where they are used, the fit of factors and direction, scoring, and choosing itself. Four ways spend a share:

    quad              a run's default, without a general share, which takes no notice of influence
    quad_states       the same with the model's hidden states among the regression's features (`selection.states`)
    cluster_sampling  the paper's policy alone: arms are pulled, and good arms' unscored documents taken unseen
    random_sampling   documents scored at random, the best of them taken, then others at random

Selections of Quad's at a tenth, of full scoring and at random are then trained on, on equal tokens.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config import RunConfig
from quad_tasks.core.selection import fill_budget
from quad_tasks.experiments import drawing, lookup, outcome
from quad_tasks.experiments.experiment import Experiment, Rows, shows_table, within
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.laboratory import Laboratory, find_laboratory, open_laboratory, prediction_features
from quad_tasks.experiments.sample import Size
from quad_tasks.experiments.trials import train_trials

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
COLOURS = dict(zip(WAYS, (drawing.RED, drawing.ORANGE, drawing.BLUE, drawing.GREY), strict=True))
LEAST_SHARE = 0.78
"""Of the achievable influence at a tenth scored."""


def measure_sampling(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Spend every share in every way; train on Quad's choice, full scoring's and a random one."""
    laboratory = find_laboratory(workspace, config, SMALL if quick else FULL)
    seeds = range(laboratory.size.seeds)
    spent = [(way, share, seed) for way in WAYS for share in reversed(SHARES) for seed in seeds]
    items = [(laboratory.workspace, laboratory.key, *one) for one in spent]
    found = dict(zip(spent, kept(spend, items, "choose", "selections"), strict=True))
    full_s = laboratory.seconds["fit_joint"] + laboratory.seconds["score"]
    points = [
        {
            "way": way,
            "scored_share": share,
            "influence_share": [found[way, share, seed]["influence_share"] for seed in seeds],
            "cost_s": _shared_s(laboratory, way)
            + share * laboratory.seconds["score"]
            + float(np.mean([found[way, share, seed]["choose_s"] for seed in seeds])),
        }
        for way in WAYS
        for share in SHARES
    ]
    chosen = {
        "random": [
            _ordered(laboratory, np.random.default_rng([seed, 1]).permutation(_rows(laboratory))) for seed in seeds
        ],
        "quad": [np.array(found["quad", MAIN_SHARE, seed]["rows"]) for seed in seeds],
        "full_influence": [_ordered(laboratory, np.argsort(-laboratory.per_token["joint"], kind="stable"))]
        * len(seeds),
    }
    trained = train_trials(laboratory, [(rows, seed) for each in chosen.values() for seed, rows in enumerate(each)])
    losses = {
        name: [m["reference_loss"] for m in trained[number * len(seeds) : (number + 1) * len(seeds)]]
        for number, name in enumerate(chosen)
    }
    return {
        "documents": len(laboratory.documents),
        "tokens": int(laboratory.n_tokens.sum()),
        "budget_tokens": laboratory.size.budget_tokens,
        "seconds": dict(laboratory.seconds),
        "full_cost_s": full_s,
        "points": points,
        "reference_loss": losses,
        "shows": _shows(points, full_s, losses),
    }


def spend(workspace: str, key: str, way: str, scored_share: float, seed: int) -> dict[str, Any]:
    """Choose in one way, on a worker.

    Returns:
        `influence_share`, `choose_s`, seconds of choosing, and `rows`.
    """
    laboratory = open_laboratory(workspace, key)
    influence_N, n_tokens_N, budget = laboratory.per_token["joint"], laboratory.n_tokens, laboratory.size.budget_tokens
    features_ND = prediction_features(laboratory, states=way == "quad_states")
    started = time.process_time()
    if way == "random_sampling":
        order = np.random.default_rng(seed).permutation(_rows(laboratory))
        scored, rest = np.split(order, [int(scored_share * len(order))])
        rows = fill_budget(np.concatenate([scored[np.argsort(-influence_N[scored])], rest]), n_tokens_N, budget)
    else:
        rules = lookup.Rules(scored_share=scored_share, general_share=0.0)
        if way == "cluster_sampling":
            policy = replace(rules.policy, documents_per_pull=lookup.RUN.documents_per_pull)
            rules = replace(rules, policy=policy, active_documents=0, mode="cluster")
        rows = lookup.choose(
            influence_N, laboratory.arm, n_tokens_N, features_ND, budget, rules, seed, laboratory.embedding
        ).rows
    took = time.process_time() - started
    share = lookup.influence_share(rows, influence_N, n_tokens_N, budget)
    return {"influence_share": share, "choose_s": took, "rows": rows.tolist()}


def _rows(laboratory: Laboratory) -> Int64:
    return np.arange(len(laboratory.documents))


def _ordered(laboratory: Laboratory, order: Int64) -> Int64:
    return fill_budget(order, laboratory.n_tokens, laboratory.size.budget_tokens)


def _shared_s(laboratory: Laboratory, way: str) -> float:
    """Seconds before the first score: the direction, and what arms and features are made of."""
    seconds = laboratory.seconds
    clustered = 0.0 if way == "random_sampling" else seconds["embed"] + seconds["cluster"]
    return seconds["fit_joint"] + clustered + (seconds["loss"] if way == "quad_states" else 0.0)


def _shows(points: list[dict[str, Any]], full_s: float, losses: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    at = {point["way"]: point for point in points if point["scored_share"] == MAIN_SHARE}
    quad = np.array(at["quad"]["influence_share"])
    shows = [
        outcome.claim("share of the achievable influence, Quad, a tenth scored", outcome.interval(quad), LEAST_SHARE)
    ]
    for way in ("cluster_sampling", "random_sampling"):
        more = outcome.interval(quad - np.array(at[way]["influence_share"]))
        shows.append(outcome.claim(f"the same less that of {way.replace('_', ' ')}", more, least=0.0))
    for way in ("quad", "quad_states"):
        cost = {end: at[way]["cost_s"] / full_s for end in ("mean", "low", "high")}
        shows.append(
            outcome.claim(f"time of {way.replace('_', ' ')}, a tenth scored, over full scoring's", cost, most=1.0)
        )
    gained = outcome.gain_share(losses["random"], losses["quad"], losses["full_influence"])
    return [*shows, outcome.claim("gain over random in reference loss, as a share of full scoring's", gained, 0.85)]


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out a row a point of the curve, the trained models, and what it shows."""
    rows = [
        {
            "way": point["way"].replace("_", " "),
            "scored": f"{point['scored_share']:.0%}",
            "share of achievable influence": within(outcome.interval(np.array(point["influence_share"]))),
            "time on one core": f"{point['cost_s']:.0f} s",
            "of full scoring's": f"{point['cost_s'] / result['full_cost_s']:.2f}",
        }
        for point in result["points"]
    ]
    trained = [
        {"trained on": name.replace("_", " "), "reference loss": within(outcome.interval(np.array(losses)))}
        for name, losses in result["reference_loss"].items()
    ]
    title = (
        f"{result['documents']:,} documents, {result['tokens']:,} tokens; full scoring {result['full_cost_s']:.0f} s"
    )
    return {title: rows, "Trained on equal tokens": trained, **shows_table(result["shows"])}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw accuracy against what was scored and against time."""
    figure, (left, right) = drawing.page_figure(3.3, columns=2)
    for way in WAYS:
        points = [point for point in result["points"] if point["way"] == way]
        found = [outcome.interval(np.array(point["influence_share"])) for point in points]
        name = way.replace("_", " ")
        drawing.draw_course(left, [100 * point["scored_share"] for point in points], found, COLOURS[way], name)
        drawing.draw_course(right, [point["cost_s"] for point in points], found, COLOURS[way], name)
    right.axvline(result["full_cost_s"], color=drawing.BLACK, linewidth=1, linestyle=":")
    right.annotate("full scoring", (result["full_cost_s"], 0.02), rotation=90, ha="right", fontsize=drawing.TICK_PT)
    for axes in (left, right):
        axes.axhline(1.0, color=drawing.BLACK, linewidth=0.6)
        axes.set_ylim(0, 1.05)
    left.set_xscale("log")
    left.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
    left.minorticks_off()
    right.set_xlim(left=0)
    drawing.label(left, "documents scored (%)", "share of the achievable influence")
    drawing.label(right, "time on one core (s)", "share of the achievable influence")
    drawing.legend_below(figure, left)
    return {"accuracy-against-cost": figure}


SAMPLING = Experiment("accuracy against cost of scoring a share of 100,000 documents", measure_sampling, tables, draw)
