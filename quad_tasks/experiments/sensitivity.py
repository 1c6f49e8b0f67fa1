"""Experiment "sensitivity": vary k, the clustering algorithm, τ, α and m, one at a time; measure how the outcome moves.

Every value of a setting is tried with several seeds in simulation, a tenth of the documents scored, all else at a run's
default but for the general share, which ignores influence: there is none. The outcome is the share of the achievable
influence; for the values that reach least and most also the reference loss after training. Overlap with the default's
selection of the same seed says how much of the data changes; beside it stands how much another seed changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.bandit import PAPER_ALPHA, paper_policy
from quad_tasks.core.evaluation import statistics
from quad_tasks.experiments.experiment import Experiment, Tables, claims_table, within
from quad_tasks.experiments.lab import plots, simulation
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.clusterings import ALGORITHMS, Algorithm, cluster
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.evaluation import Claim, claim_most
from quad_tasks.experiments.lab.testbed import Testbed, find_testbed, open_testbed, prediction_features
from quad_tasks.experiments.lab.trials import train_trials
from quad_tasks.stages.bandit.round_settings import ACTIVE_SHARE

Int64 = npt.NDArray[np.int64]

SCORED_SHARE = 0.1
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95)
ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
PULLS = (4, 8, 16, 32, 64)
SEEDS = 3
LEEWAY = 0.02
"""How much more than the default the best value may reach before the claim fails."""
COLOURS = {
    "k": plots.BLUE,
    "clustering": plots.GREEN,
    "threshold_quantile": plots.ORANGE,
    "alpha": plots.RED,
    "m": plots.PURPLE,
}
NAMES = {"k": "arms (k)", "threshold_quantile": "quantile of τ", "alpha": "α", "m": "documents of a pull (m)"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination of the varied settings.

    Attributes:
        k: arms.
        clustering: algorithm that makes them.
        threshold_quantile: quantile of the pilot that becomes τ.
        alpha: weight of the exploration bonus.
        m: documents of a pull.
    """

    k: int
    clustering: Algorithm = "kmeans"
    threshold_quantile: float = simulation.RUN.threshold_quantile
    alpha: float = PAPER_ALPHA
    m: int = simulation.PULL.documents_per_pull


def list_settings(arms: int) -> dict[str, list[Setting]]:
    """List the values tried of every setting, all else at the default, which is among them."""
    base = Setting(arms)
    return {
        "k": [replace(base, k=max(round(factor * arms), 2)) for factor in FACTORS],
        "clustering": [replace(base, clustering=algorithm) for algorithm in ALGORITHMS],
        "threshold_quantile": [replace(base, threshold_quantile=quantile) for quantile in QUANTILES],
        "alpha": [replace(base, alpha=alpha) for alpha in ALPHAS],
        "m": [replace(base, m=m) for m in PULLS],
    }


@dataclass(frozen=True)
class Tried:
    """A selection under a setting: the share of the achievable influence it reaches, and its documents."""

    influence_share: float
    rows: list[int]


@dataclass(frozen=True)
class Value:
    """A value of a setting, and the outcome under it.

    Attributes:
        setting: a field of `Setting`.
        value: the value tried.
        default: whether it is the default.
        influence_share: of the achievable influence, by seed.
        overlap: with the default's selection, by seed.
    """

    setting: str
    value: int | float | str
    default: bool
    influence_share: list[float]
    overlap: list[float]


@dataclass(frozen=True)
class Trained:
    """Training on the selections of one value.

    Attributes:
        name: `default`, `least` or `most`.
        value: as `setting = value`; empty for the default.
        reference_loss: by seed.
    """

    name: str
    value: str
    reference_loss: list[float]


@dataclass(frozen=True)
class Result:
    """Result of the experiment.

    Attributes:
        documents: of the testbed.
        seeds: repeats.
        values: every value of every setting.
        overlap_of_seeds: of the default's selections of two seeds.
        trained: on the default's selections, and on those that reach least and most.
        ranges: by setting, mean share of the best value less that of the worst.
        shows: the claims.
    """

    documents: int
    seeds: int
    values: list[Value]
    overlap_of_seeds: list[float]
    trained: list[Trained]
    ranges: dict[str, float]
    shows: list[Claim]


def measure_sensitivity(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Try every value with every seed; train on the selections that reach least and most."""
    testbed = find_testbed(workspace, config, QUICK if quick else Size())
    base, settings = Setting(testbed.size.arms), list_settings(testbed.size.arms)
    distinct = dict.fromkeys(setting for tried in settings.values() for setting in tried)
    runs = [(setting, seed) for setting in distinct for seed in range(SEEDS)]
    items = [(testbed.workspace, testbed.key, asdict(setting), seed) for setting, seed in runs]
    found = dict(zip(runs, map_cached(try_setting, items, "select", "selections"), strict=True))
    by_setting = {setting: [found[setting, seed] for seed in range(SEEDS)] for setting in distinct}
    default = [np.array(one.rows) for one in by_setting[base]]
    values = [
        Value(
            setting=name,
            value=getattr(setting, name),
            default=setting == base,
            influence_share=[one.influence_share for one in by_setting[setting]],
            overlap=[
                overlap(testbed, np.array(one.rows), rows)
                for one, rows in zip(by_setting[setting], default, strict=True)
            ],
        )
        for name, tried in settings.items()
        for setting in tried
    ]
    ranges, shows = judge(values)
    return Result(
        documents=len(testbed.documents),
        seeds=SEEDS,
        values=values,
        overlap_of_seeds=[overlap(testbed, default[s], default[(s + 1) % SEEDS]) for s in range(SEEDS)],
        trained=_train_ends(testbed, by_setting, [setting for tried in settings.values() for setting in tried], values),
        ranges=ranges,
        shows=shows,
    )


def try_setting(workspace: str, key: str, setting_body: Mapping[str, Any], seed: int) -> Tried:
    """Select under a setting, given as JSON, on a worker."""
    testbed, setting = open_testbed(workspace, key), Setting(**setting_body)
    arm_N = cluster(testbed.embedding, setting.k, setting.clustering, seed)
    active = int(ACTIVE_SHARE * setting.m)
    rules = simulation.Rules(
        policy=paper_policy(setting.alpha, simulation.PULL.arms_per_round, setting.m - active),
        active_documents=active,
        scored_share=SCORED_SHARE,
        threshold_quantile=setting.threshold_quantile,
        general_share=0.0,
    )
    pool = simulation.pool_of(testbed, prediction_features(testbed), arm_N)
    rows = simulation.simulate_selection(testbed.per_token(), pool, rules, seed).rows
    return Tried(simulation.share_reached_in(testbed, rows), rows.tolist())


def overlap(testbed: Testbed, first: Int64, second: Int64) -> float:
    """Compute tokens in both selections over tokens in either."""
    both, either = np.intersect1d(first, second), np.union1d(first, second)
    return float(testbed.n_tokens[both].sum() / testbed.n_tokens[either].sum())


def _train_ends(
    testbed: Testbed,
    by_setting: Mapping[Setting, Sequence[Tried]],
    settings: Sequence[Setting],
    values: Sequence[Value],
) -> list[Trained]:
    """Train on the default's selections, and on those of the values that reach least and most of all.

    Above a high τ there may be less than the budget: all are then trained on as much as the least has.

    Args:
        testbed: its checkpoint is trained.
        by_setting: selections by seed.
        settings: of each value, in the values' order.
        values: every value tried.
    """
    means = [float(np.mean(value.influence_share)) for value in values]
    default = next(number for number, value in enumerate(values) if value.default)
    ends = {"default": default, "least": int(np.argmin(means)), "most": int(np.argmax(means))}
    tried = {name: by_setting[settings[number]] for name, number in ends.items()}
    trials = [(np.array(one.rows), seed) for ones in tried.values() for seed, one in enumerate(ones)]
    losses = iter([found.reference_loss for found in train_trials(testbed, trials, short=True)])
    return [
        Trained(
            name=name,
            value="" if name == "default" else f"{values[number].setting} = {values[number].value}",
            reference_loss=[next(losses) for _ in tried[name]],
        )
        for name, number in ends.items()
    ]


def judge(values: Sequence[Value]) -> tuple[dict[str, float], list[Claim]]:
    """Measure how far each setting moves the outcome, and claim that no value beats the default by more than a little.

    Returns:
        By setting, the mean share of its best value less that of its worst; and the claims.
    """
    ranges, claims = {}, []
    for name in dict.fromkeys(value.setting for value in values):
        tried = [value for value in values if value.setting == name]
        means = [float(np.mean(value.influence_share)) for value in tried]
        best, default = tried[int(np.argmax(means))], next(value for value in tried if value.default)
        ranges[name] = max(means) - min(means)
        more = statistics.interval(np.subtract(best.influence_share, default.influence_share))
        title = f"share reached with {_plain(name)} = {best.value}, the best, less the default's"
        claims.append(claim_most(title, more, LEEWAY))
    return ranges, claims


def _plain(name: str) -> str:
    return name.replace("_", " ")


def lay_out(result: Result) -> Tables:
    """Lay out a row a value, what was trained, the range of each setting, and what it shows."""
    rows = [
        {
            "setting": _plain(value.setting),
            "value": f"{value.value}{' (default)' if value.default else ''}",
            "share of achievable influence": within(statistics.interval(value.influence_share)),
            "overlap with the default": f"{np.mean(value.overlap):.2f}",
        }
        for value in result.values
    ]
    ranges = [
        {"setting": _plain(name), "best less worst": f"{span:.3f}"}
        for name, span in sorted(result.ranges.items(), key=lambda item: -item[1])
    ]
    trained = [
        {
            "selection": one.name,
            "value": _plain(one.value),
            "reference loss": within(statistics.interval(one.reference_loss)),
        }
        for one in result.trained
    ]
    seeds = np.mean(result.overlap_of_seeds)
    title = f"{result.documents:,} documents, {result.seeds} seeds; another seed overlaps {seeds:.2f}"
    return {title: rows, "Which setting matters": ranges, "Trained": trained, **claims_table(result.shows)}


def draw(result: Result) -> dict[str, Figure]:
    """Draw the outcome by the value of every setting, on one scale."""
    figure, panels = plots.page_figure(4.6, columns=3, rows=2)
    own = panels[: len(COLOURS)]
    for number, (axes, (name, colour)) in enumerate(zip(own, COLOURS.items(), strict=True)):
        _draw_values(axes, [value for value in result.values if value.setting == name], colour)
        plots.label(axes, NAMES.get(name, name), "" if number % 3 else "share of achievable\ninfluence")
    low, high = min(axes.get_ylim()[0] for axes in own), max(axes.get_ylim()[1] for axes in own)
    for axes in own:
        axes.set_ylim(low, high)
    _draw_overlap(panels[len(COLOURS)], result)
    return {"sensitivity": figure}


def _draw_values(axes: Axes, tried: Sequence[Value], colour: str) -> None:
    """Draw the outcome of one setting's values, the default's ringed."""
    found = [statistics.interval(value.influence_share) for value in tried]
    places, means = list(range(len(tried))), [one.mean for one in found]
    error = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    axes.errorbar(places, means, yerr=error, fmt="o-", markersize=4, capsize=2.5, color=colour)
    default = next(place for place, value in enumerate(tried) if value.default)
    axes.plot([default], [means[default]], "o", markersize=9, markerfacecolor="none", color=plots.BLACK)
    axes.set_xticks(places, [str(value.value) for value in tried])


def _draw_overlap(axes: Axes, result: Result) -> None:
    """Draw, by setting, the least overlap with the default's selection, beside another seed's."""
    names, found, colours = ["another seed"], [statistics.interval(result.overlap_of_seeds)], [plots.BLACK]
    for name, colour in COLOURS.items():
        tried = [value for value in result.values if value.setting == name]
        least = min(tried, key=lambda value: float(np.mean(value.overlap)))
        names.append({"threshold_quantile": "τ", "alpha": "α"}.get(name, name))
        found.append(statistics.interval(least.overlap))
        colours.append(colour)
    plots.draw_bars(axes, names, found, colours)
    axes.set_xlim(0, 1)
    plots.label(axes, "least overlap with default")


SENSITIVITY = Experiment(
    "how far the outcome moves with k, the clustering algorithm, τ, α and m",
    Result,
    measure_sensitivity,
    lay_out,
    draw,
)
