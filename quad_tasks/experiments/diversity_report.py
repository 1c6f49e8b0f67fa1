"""How the experiment "diversity" reads: tables and drawings of what methods chose and what it was worth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from quad_tasks.experiments import drawing, outcome
from quad_tasks.experiments.experiment import Rows, shows_table

MEASURES = {
    "effective_arms": "effective arms",
    "coverage": "coverage of arms (share)",
    "vendi_score": "Vendi score",
    "distinct_3grams": "distinct 3-grams (share)",
    "compression_ratio": "compression ratio",
    "near_duplicate_rate": "near-duplicates (share)",
}


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out outcome, diversity and cost, a row a method, lowest reference loss first, and what it shows."""
    methods = in_order(result["methods"])
    outcomes = [
        {
            "method": plain(name),
            "scored": f"{method['scored_share']:.0%}",
            **_cells(result["methods"], name),
            "time": f"{method['time_s']:.0f} s",
            "FLOPs": f"{method['flops']:.1e}" if method["flops"] else "",
        }
        for name, method in methods
    ]
    varied = [
        {
            "method": plain(name),
            **{title: f"{np.mean(method['diversity'][key]):.3g}" for key, title in MEASURES.items()},
            "influence share": f"{np.mean(method['influence_share']):.2f}",
            "first source": next(iter(method["by_source"])),
        }
        for name, method in methods
    ]
    title = (
        f"{result['budget_tokens']:,} tokens of {result['documents']:,} documents, {result['seeds']} repeats; before: "
        f"{np.mean(result['before']['reference_loss']):.3f}"
    )
    return {title: outcomes, "Diversity, means over repeats": varied, **shows_table(result["shows"])}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw what the reference gained and other domains paid, and how diverse selections are."""
    return {"outcome": _draw_outcome(result), "diversity": _draw_diversity(result)}


def _draw_outcome(result: Mapping[str, Any]) -> Figure:
    """Draw differences from random: repeats differ more than methods do."""
    methods = [(name, method) for name, method in in_order(result["methods"]) if name != "random"]
    random = result["methods"]["random"]
    names, colours = [plain(name) for name, _ in methods], [colour_of(name) for name, _ in methods]
    figure, (left, right) = drawing.page_figure(0.27 * len(names) + 1.1, columns=2)
    for axes, key, unit in (
        (left, "reference_loss", "reference loss less random's\n(nats per token)"),
        (right, "other_domains_bpb", "mean of other domains less random's\n(bits per byte)"),
    ):
        if None in random[key]:
            axes.remove()
            continue
        found = [outcome.compare(method[key], random[key]) for _, method in methods]
        drawing.draw_bars(axes, names, found, colours)
        axes.axvline(0, color=drawing.BLACK, linewidth=0.9, linestyle=":")
        drawing.label(axes, unit)
    right.set_yticks(list(range(len(names)))[::-1], [""] * len(names))
    left.set_title("dotted: a random selection", fontsize=drawing.TICK_PT, loc="left")
    return figure


def _draw_diversity(result: Mapping[str, Any]) -> Figure:
    methods = in_order(result["methods"])
    names, colours = [plain(name) for name, _ in methods], [colour_of(name) for name, _ in methods]
    figure, panels = drawing.page_figure(2 * (0.2 * len(names) + 0.9), columns=3, rows=2)
    for number, (axes, (key, title)) in enumerate(zip(panels, MEASURES.items(), strict=True)):
        found = [outcome.interval(np.array(method["diversity"][key])) for _, method in methods]
        drawing.draw_bars(axes, names if number % 3 == 0 else [""] * len(names), found, colours)
        random = float(np.mean(result["methods"]["random"]["diversity"][key]))
        axes.axvline(random, color=drawing.BLACK, linewidth=0.9, linestyle=":")
        drawing.label(axes, title)
    panels[0].set_title("dotted: a random selection", fontsize=drawing.TICK_PT, loc="left")
    return figure


def in_order(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """List methods, lowest reference loss first."""
    return sorted(methods.items(), key=lambda item: float(np.mean(item[1]["reference_loss"])))


def plain(name: str) -> str:
    """Write a method's name for reading."""
    return {"quad": "Quad", "dsir": "DSIR", "full_influence": "all influence scored"}.get(
        name, name.replace("_", " ").replace("quad", "Quad")
    )


def colour_of(name: str) -> str:
    """Give Quad, full scoring, random and the others colours of their own."""
    if name.startswith("quad"):
        return drawing.RED
    return {"full_influence": drawing.BLACK, "random": drawing.GREY}.get(name, drawing.BLUE)


def _cells(methods: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, str]:
    titles = {
        "reference_loss": "reference loss",
        "other_domains_bpb": "other domains, bits per byte",
        "worst_domain_bpb": "worst domain",
    }
    cells: dict[str, str] = {}
    for key, title in titles.items():
        cells[title], cells[f"{title}, less random's"] = outcome.mean_and_difference(methods, name, key)
    return cells
