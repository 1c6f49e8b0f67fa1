"""Define what the experiment "diversity" found, and lay it out: tables and drawings of methods and their outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from quad_tasks.core.evaluation import statistics
from quad_tasks.core.evaluation.statistics import Comparison
from quad_tasks.experiments.experiment import Tables, claims_table
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.evaluation import Claim, Measured, Outcome, mean_and_difference, measured_only
from quad_tasks.experiments.lab.scorer_cost import ScorerCost

MEASURES = {
    "effective_arms": "effective arms",
    "coverage": "coverage of arms (share)",
    "vendi_score": "Vendi score",
    "distinct_3grams": "distinct 3-grams (share)",
    "compression_ratio": "compression ratio",
    "near_duplicate_rate": "near-duplicates (share)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOutcome(Outcome):
    """One method's outcome, by repeat.

    Attributes:
        worst_domain_bpb: bits per byte of the worst other domain, None where there is none.
        influence_share: of the achievable influence.
        tokens: selected.
        domains: bits per byte of each other domain, mean over repeats.
        by_source: share of the selected tokens by source, mean over repeats.
        diversity: by measure (`MEASURES`), a list over repeats each.
        flops: of selecting, mean over repeats.
    """

    worst_domain_bpb: list[float | None]
    influence_share: list[float]
    tokens: list[int]
    domains: dict[str, float]
    by_source: dict[str, float]
    diversity: dict[str, list[float]]
    flops: float


@dataclass(frozen=True, slots=True)
class HeldOutLosses:
    """Losses by repeat: nats per token of the reference, bits per byte of other domains, None where there are none."""

    reference_loss: list[float]
    other_domains_bpb: list[float | None]
    worst_domain_bpb: list[float | None]


@dataclass(frozen=True)
class Comparisons:
    """Quad beside the other methods, repeat by repeat.

    Attributes:
        gain_share: Quad's gain over random as a share of full scoring's.
        gain_share_interval: both ends of its 95 per cent interval.
        quad_less_other: by method, Quad's reference loss less its; < 0 where Quad is better.
        quad_less_full_other_domains_bpb: how much more other domains lost by Quad's selection than by full scoring's;
            None where there are none.
        shows: the claims.
    """

    gain_share: float
    gain_share_interval: tuple[float, float]
    quad_less_other: dict[str, Comparison]
    quad_less_full_other_domains_bpb: Comparison | None
    shows: list[Claim]


@dataclass(frozen=True)
class Result(Comparisons):
    """Result of the experiment.

    Attributes:
        documents: of a testbed, mean over repeats.
        budget_tokens: of a selection.
        seeds: repeats.
        building_s: seconds of building each testbed, by part.
        methods: outcomes by name.
        before: losses of the checkpoints.
        scorers: what scores after the pilot, a testbed each.
    """

    documents: int
    budget_tokens: int
    seeds: int
    building_s: list[dict[str, float]]
    methods: dict[str, MethodOutcome]
    before: HeldOutLosses
    scorers: list[ScorerCost]


def lay_out(result: Result) -> Tables:
    """Lay out outcome, diversity and cost, a row a method, lowest reference loss first, and what it shows."""
    random = result.methods["random"]
    outcomes = [
        {
            "method": plain(name),
            "cost": "" if method.cost_share is None else f"{method.cost_share:.1%}",
            "scored": f"{method.scored_share:.0%}",
            **_loss_cells(method, None if name == "random" else random),
            "time": f"{method.time_s:.0f} s",
            "FLOPs": f"{method.flops:.1e}" if method.flops else "",
        }
        for name, method in in_order(result.methods)
    ]
    varied = [
        {
            "method": plain(name),
            **{title: f"{np.mean(method.diversity[key]):.3g}" for key, title in MEASURES.items()},
            "influence share": f"{np.mean(method.influence_share):.2f}",
            "first source": max(method.by_source, key=method.by_source.__getitem__),
        }
        for name, method in in_order(result.methods)
    ]
    title = (
        f"{result.budget_tokens:,} tokens of {result.documents:,} documents, {result.seeds} repeats; before: "
        f"{np.mean(result.before.reference_loss):.3f}"
    )
    return {title: outcomes, "Diversity, means over repeats": varied, **claims_table(result.shows)}


def _loss_cells(method: MethodOutcome, random: MethodOutcome | None) -> dict[str, str]:
    """Write a method's losses and their differences from random's; None: the method is random itself."""
    columns: dict[str, tuple[Measured, Measured | None]] = {
        "reference loss": (method.reference_loss, random.reference_loss if random else None),
        "other domains, bits per byte": (method.other_domains_bpb, random.other_domains_bpb if random else None),
        "worst domain": (method.worst_domain_bpb, random.worst_domain_bpb if random else None),
    }
    cells: dict[str, str] = {}
    for title, (values, random_values) in columns.items():
        cells[title], cells[f"{title}, less random's"] = mean_and_difference(values, random_values)
    return cells


def draw(result: Result) -> dict[str, Figure]:
    """Draw what the reference gained and other domains lost, and how diverse selections are."""
    return {"outcome": _draw_outcome(result), "diversity": _draw_diversity(result)}


def _draw_outcome(result: Result) -> Figure:
    """Draw differences from random: repeats differ more than methods do."""
    methods = [(name, method) for name, method in in_order(result.methods) if name != "random"]
    random = result.methods["random"]
    names, colours = [plain(name) for name, _ in methods], [colour_of(name) for name, _ in methods]
    figure, (left, right) = plots.page_figure(0.27 * len(names) + 1.1, columns=2)
    reference = [statistics.compare(method.reference_loss, random.reference_loss) for _, method in methods]
    plots.draw_bars(left, names, reference, colours)
    plots.label(left, "reference loss less random's\n(nats per token)")
    left.axvline(0, color=plots.BLACK, linewidth=0.9, linestyle=":")
    left.set_title("dotted: a random selection", fontsize=plots.TICK_PT, loc="left")
    random_others = measured_only(random.other_domains_bpb)
    if random_others is None:
        right.remove()
        return figure
    others = [statistics.compare(measured_only(method.other_domains_bpb) or [], random_others) for _, method in methods]
    plots.draw_bars(right, [""] * len(names), others, colours)
    plots.label(right, "mean of other domains less random's\n(bits per byte)")
    right.axvline(0, color=plots.BLACK, linewidth=0.9, linestyle=":")
    return figure


def _draw_diversity(result: Result) -> Figure:
    methods = in_order(result.methods)
    names, colours = [plain(name) for name, _ in methods], [colour_of(name) for name, _ in methods]
    figure, panels = plots.page_figure(2 * (0.2 * len(names) + 0.9), columns=3, rows=2)
    for number, (axes, (key, title)) in enumerate(zip(panels, MEASURES.items(), strict=True)):
        found = [statistics.interval(method.diversity[key]) for _, method in methods]
        plots.draw_bars(axes, names if number % 3 == 0 else [""] * len(names), found, colours)
        random = float(np.mean(result.methods["random"].diversity[key]))
        axes.axvline(random, color=plots.BLACK, linewidth=0.9, linestyle=":")
        plots.label(axes, title)
    panels[0].set_title("dotted: a random selection", fontsize=plots.TICK_PT, loc="left")
    return figure


def in_order(methods: Mapping[str, MethodOutcome]) -> list[tuple[str, MethodOutcome]]:
    """List methods, lowest reference loss first."""
    return sorted(methods.items(), key=lambda item: float(np.mean(item[1].reference_loss)))


def plain(name: str) -> str:
    """Write a method's name for reading."""
    return {"quad": "Quad", "dsir": "DSIR", "full_influence": "all influence scored"}.get(
        name, name.replace("_", " ").replace("quad", "Quad")
    )


def colour_of(name: str) -> str:
    """Give Quad, full scoring, random and the others colours of their own."""
    if name.startswith("quad"):
        return plots.RED
    return {"full_influence": plots.BLACK, "random": plots.GREY}.get(name, plots.BLUE)
