"""Experiment "sensitivity": how far the outcome moves with k, the clustering algorithm, τ, α and m, one at a time.

Every value of a setting is tried with several seeds on looked-up scores, a tenth of the documents scored, all else as a
run has it by default but for the general share, which takes no notice of influence: there is none. The outcome is the
share of the achievable influence; for the values that reach least and most also the reference loss after training.
Overlap with the default's selection of the same seed says how much of the data changes, beside how much of it another
seed changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config import RunConfig
from quad_tasks.core.bandit import PAPER_ALPHA, paper_policy
from quad_tasks.experiments import drawing, lookup, outcome
from quad_tasks.experiments.clusterings import ALGORITHMS, Algorithm, cluster
from quad_tasks.experiments.experiment import Experiment, Rows, shows_table, within
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.laboratory import Laboratory, find_laboratory, open_laboratory, prediction_features
from quad_tasks.experiments.sample import QUICK, Size
from quad_tasks.experiments.trials import train_trials

Int64 = npt.NDArray[np.int64]

SCORED_SHARE = 0.1
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95)
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
PULLS = (4, 8, 16, 32, 64)
SEEDS = 3
LEEWAY = 0.02
"""What the best value of a setting may reach above the default before the default is called wrong."""
COLOURS = {
    "k": drawing.BLUE,
    "clustering": drawing.GREEN,
    "threshold_quantile": drawing.ORANGE,
    "alpha": drawing.RED,
    "m": drawing.PURPLE,
}
NAMES = {"k": "arms (k)", "threshold_quantile": "quantile of τ", "alpha": "α", "m": "documents of a pull (m)"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied.

    Attributes:
        k: arms.
        clustering: how they are made.
        threshold_quantile: of the pilot, that becomes τ.
        alpha: weight of the exploration bonus.
        m: documents of a pull.
    """

    k: int
    clustering: Algorithm = "kmeans"
    threshold_quantile: float = lookup.RUN.threshold_quantile
    alpha: float = PAPER_ALPHA
    m: int = lookup.RUN.documents_per_pull


def list_settings(arms: int) -> dict[str, list[Setting]]:
    """List, by what is varied, every value tried, the default among them."""
    base = Setting(arms)
    return {
        "k": [replace(base, k=max(round(factor * arms), 2)) for factor in FACTORS],
        "clustering": [replace(base, clustering=algorithm) for algorithm in ALGORITHMS],
        "threshold_quantile": [replace(base, threshold_quantile=quantile) for quantile in QUANTILES],
        "alpha": [replace(base, alpha=alpha) for alpha in ALPHAS],
        "m": [replace(base, m=m) for m in PULLS],
    }


def measure_sensitivity(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Try every value with every seed; train on what reaches least and most."""
    laboratory = find_laboratory(workspace, config, QUICK if quick else Size())
    base, settings = Setting(laboratory.size.arms), list_settings(laboratory.size.arms)
    distinct = list(dict.fromkeys(setting for tried in settings.values() for setting in tried))
    runs = [(setting, seed) for setting in distinct for seed in range(SEEDS)]
    items = [(laboratory.workspace, laboratory.key, asdict(setting), seed) for setting, seed in runs]
    found = dict(zip(runs, kept(try_setting, items, "choose", "selections"), strict=True))
    rows = {run: np.array(one["rows"]) for run, one in found.items()}
    values = [
        {
            "setting": name,
            "value": getattr(setting, name),
            "default": setting == base,
            "influence_share": [found[setting, seed]["influence_share"] for seed in range(SEEDS)],
            "overlap": [overlap(laboratory, rows[setting, seed], rows[base, seed]) for seed in range(SEEDS)],
        }
        for name, tried in settings.items()
        for setting in tried
    ]
    other_seed = [overlap(laboratory, rows[base, s], rows[base, (s + 1) % SEEDS]) for s in range(SEEDS)]
    trained = _train_ends(laboratory, base, settings, values, rows)
    return {
        "documents": len(laboratory.documents),
        "seeds": SEEDS,
        "values": values,
        "overlap_of_seeds": other_seed,
        "trained": trained,
        **judge(values),
    }


def try_setting(workspace: str, key: str, said: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Choose under a setting, on a worker; return `influence_share` and `rows`."""
    laboratory, setting = open_laboratory(workspace, key), Setting(**said)
    arm_N = cluster(laboratory.embedding, setting.k, setting.clustering, seed)
    active = int(lookup.RUN.active_share * setting.m)
    policy = paper_policy(setting.alpha, lookup.RUN.arms_per_round, setting.m - active)
    rules = lookup.Rules(
        policy=policy,
        active_documents=active,
        scored_share=SCORED_SHARE,
        threshold_quantile=setting.threshold_quantile,
        general_share=0.0,
    )
    influence_N, n_tokens_N, budget = laboratory.per_token["joint"], laboratory.n_tokens, laboratory.size.budget_tokens
    features_ND = prediction_features(laboratory)
    rows = lookup.choose(influence_N, arm_N, n_tokens_N, features_ND, budget, rules, seed, laboratory.embedding).rows
    share = lookup.influence_share(rows, influence_N, n_tokens_N, budget)
    return {"influence_share": share, "rows": rows.tolist()}


def overlap(laboratory: Laboratory, first: Int64, second: Int64) -> float:
    """Compute tokens in both selections over tokens in either."""
    both, either = np.intersect1d(first, second), np.union1d(first, second)
    return float(laboratory.n_tokens[both].sum() / laboratory.n_tokens[either].sum())


def _train_ends(
    laboratory: Laboratory,
    base: Setting,
    settings: Mapping[str, Sequence[Setting]],
    values: Sequence[Mapping[str, Any]],
    rows: Mapping[tuple[Setting, int], Int64],
) -> list[dict[str, Any]]:
    """Train on the default's choice, and on those of the values that reach least and most of all."""
    tried = [(name, setting) for name, settings_of in settings.items() for setting in settings_of]
    means = [float(np.mean(value["influence_share"])) for value in values]
    ends = {"default": ("", base), "least": tried[int(np.argmin(means))], "most": tried[int(np.argmax(means))]}
    seeds = range(SEEDS)
    measured = train_trials(laboratory, [(rows[setting, seed], seed) for _, setting in ends.values() for seed in seeds])
    return [
        {
            "name": name,
            "value": f"{varied} = {getattr(setting, varied)}" if varied else "",
            "reference_loss": [m["reference_loss"] for m in measured[len(seeds) * i : len(seeds) * (i + 1)]],
        }
        for i, (name, (varied, setting)) in enumerate(ends.items())
    ]


def judge(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say how far each setting moves the outcome, and whether any value beats the default by more than a little.

    Returns:
        `ranges`, by setting: mean share of the best value less that of the worst; and `shows`.
    """
    ranges, shows = {}, []
    for name in dict.fromkeys(value["setting"] for value in values):
        tried = [value for value in values if value["setting"] == name]
        means = [float(np.mean(value["influence_share"])) for value in tried]
        best = tried[int(np.argmax(means))]
        default = next(value for value in tried if value["default"])
        ranges[name] = max(means) - min(means)
        more = outcome.interval(np.array(best["influence_share"]) - np.array(default["influence_share"]))
        claim = f"share reached with {name.replace('_', ' ')} = {best['value']}, the best, less the default's"
        shows.append(outcome.claim(claim, more, most=LEEWAY))
    return {"ranges": ranges, "shows": shows}


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out a row a value, what was trained, the range of each setting, and what it shows."""
    rows = [
        {
            "setting": value["setting"].replace("_", " "),
            "value": f"{value['value']}{' (default)' if value['default'] else ''}",
            "share of achievable influence": within(outcome.interval(np.array(value["influence_share"]))),
            "overlap with the default": f"{np.mean(value['overlap']):.2f}",
        }
        for value in result["values"]
    ]
    ranges = [
        {"setting": name.replace("_", " "), "best less worst": f"{span:.3f}"}
        for name, span in sorted(result["ranges"].items(), key=lambda item: -item[1])
    ]
    trained = [
        {
            "selection": one["name"].replace("_", " "),
            "value": one["value"].replace("_", " "),
            "reference loss": within(outcome.interval(np.array(one["reference_loss"]))),
        }
        for one in result["trained"]
    ]
    seeds = np.mean(result["overlap_of_seeds"])
    title = f"{result['documents']:,} documents, {result['seeds']} seeds; another seed overlaps {seeds:.2f}"
    return {title: rows, "Which setting matters": ranges, "Trained": trained, **shows_table(result["shows"])}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the outcome by the value of every setting, on one scale."""
    figure, panels = drawing.page_figure(4.6, columns=3, rows=2)
    for axes, (name, colour) in zip(panels, COLOURS.items(), strict=False):
        tried = [value for value in result["values"] if value["setting"] == name]
        found = [outcome.interval(np.array(value["influence_share"])) for value in tried]
        places = list(range(len(tried)))
        error = [[f["mean"] - f["low"] for f in found], [f["high"] - f["mean"] for f in found]]
        axes.errorbar(places, [f["mean"] for f in found], yerr=error, fmt="o-", markersize=4, capsize=2.5, color=colour)
        default = next(i for i, value in enumerate(tried) if value["default"])
        axes.plot([default], [found[default]["mean"]], "o", markersize=9, markerfacecolor="none", color=drawing.BLACK)
        axes.set_xticks(places, [str(value["value"]) for value in tried])
        drawing.label(axes, NAMES.get(name, name), "" if panels.index(axes) % 3 else "share of achievable\ninfluence")
    low = min(axes.get_ylim()[0] for axes in panels[: len(COLOURS)])
    high = max(axes.get_ylim()[1] for axes in panels[: len(COLOURS)])
    for axes in panels[: len(COLOURS)]:
        axes.set_ylim(low, high)
    _draw_overlap(panels[len(COLOURS)], result)
    return {"sensitivity": figure}


def _draw_overlap(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw, by setting, the least overlap with the default's selection, beside another seed's."""
    names, found, colours = ["another seed"], [outcome.interval(np.array(result["overlap_of_seeds"]))], [drawing.BLACK]
    for name, colour in COLOURS.items():
        tried = [value for value in result["values"] if value["setting"] == name]
        least = min(tried, key=lambda value: float(np.mean(value["overlap"])))
        names.append({"threshold_quantile": "τ", "alpha": "α"}.get(name, name))
        found.append(outcome.interval(np.array(least["overlap"])))
        colours.append(colour)
    drawing.draw_bars(axes, names, found, colours)
    axes.set_xlim(0, 1)
    drawing.label(axes, "least overlap with default")


SENSITIVITY = Experiment(
    "how far the outcome moves with k, the clustering algorithm, τ, α and m", measure_sensitivity, tables, draw
)
