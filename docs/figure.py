"""Draw the README's figure from a finished run's report: `python docs/figure.py WORKSPACE RUN docs/figure.svg`.

Left: what training on the selection did to every held-out domain, beside as many random tokens. Right: the exchange
between the reference and the other domains as the share drawn from the rest of the pool grows (`training.frontier`).
Every number is one of `report.json`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.storage.store import open_store

MUTED, GRID, SELECTED, BASELINE = "#66696f", "#e3e2dd", "#0a6ea8", "#b4572a"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "quad",
    "text.parse_math": False,
}


def paint_domains(axes: Axes, rows: Sequence[tuple[str, float, float]]) -> None:
    """Draw each domain's change in bits per byte after random and after selected tokens, joined by a line."""
    labels, random, selected = zip(*rows, strict=True)
    at = np.arange(len(rows))
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.hlines(at, random, selected, color=MUTED, linewidth=1, alpha=0.6)
    axes.plot(random, at, "o", color=BASELINE, markerfacecolor="white", markeredgewidth=1.6, label="random tokens")
    axes.plot(selected, at, "o", color=SELECTED, label="selected tokens")
    axes.set_yticks(at, labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="change in bits per byte; left of 0 is better")
    axes.set_title("Held-out domains after training", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0, handletextpad=0.2)


def paint_frontier(axes: Axes, points: Sequence[Mapping[str, float]], reference: str) -> None:
    """Draw reference loss against the mean of the other domains, a point a general share, random tokens last."""
    x, y = (np.array([point[key] for point in points]) for key in ("other_domains", "reference_loss"))
    axes.plot(x, y, color=MUTED, linewidth=1)
    axes.plot(x[:-1], y[:-1], "o", color=SELECTED)
    axes.plot(x[-1:], y[-1:], "o", color=BASELINE, markerfacecolor="white", markeredgewidth=1.6)
    for point, at_x, at_y in zip(points, x, y, strict=True):
        share = point["general_share"]
        name = "100 %: random" if share == 1 else f"{100 * share:.0f} %"
        axes.annotate(name, (at_x, at_y), xytext=(7, 5), textcoords="offset points")
    axes.margins(0.25, 0.15)
    axes.set(xlabel="other domains, bits per byte; left is better", ylabel=f"{reference} loss, nats per token")
    axes.set_title("By the share of tokens that is drawn from the rest", pad=24)


def read_domains(report: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """List domains with their change in bits per byte after random and after selected tokens, most helped first."""
    last, reference = report["stages"][-1], report["reference"]["domain"]
    before, random, selected = (last[kind]["domains"] for kind in ("before", "random", "selected"))
    rows = [
        (
            f"{name} (reference)" if name == reference else name,
            random[name] - before[name],
            selected[name] - before[name],
        )
        for name in before
    ]
    return sorted(rows, key=lambda row: row[2] - row[1])


def main() -> None:
    """Read the report, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("run")
    parser.add_argument("out")
    given = parser.parse_args()
    report = json.loads(open_store(given.workspace).get(f"runs/{given.run}/report/report.json"))
    rows, points = read_domains(report), report["stages"][-1]["frontier"]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(10.5, 1.4 + 0.27 * len(rows)), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        paint_domains(left, rows)
        paint_frontier(right, points, report["reference"]["domain"] or "reference")
        figure.savefig(given.out, metadata={"Date": None} if given.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
