"""Draw the README's figure from a finished run's report: `python docs/figure.py WORKSPACE RUN docs/figure.svg`.

Left: what training on the selection did to every held-out domain, beside as many random tokens. Right: the exchange
between the reference and the other domains as the share drawn from the rest of the pool grows (`training.frontier`).
Every number is one of `report.json`.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.report.model import FrontierPoint
from quad_tasks.report.outcome import Domain, measure_outcome
from quad_tasks.report.report_json import parse_report
from quad_tasks.runtime.plot_style import PAPER, ROW_IN, label_rows, rc
from quad_tasks.storage.store import open_store

WIDTH_IN, MARGIN_IN, LEAST_IN = 10.5, 1.4, 3.4
OPEN = {"color": PAPER.baseline, "markerfacecolor": "white", "markeredgewidth": 1.6}


def paint_domains(axes: Axes, domains: Sequence[Domain]) -> None:
    """Draw each domain's change in bits per byte after random and after selected tokens, joined by a line."""
    rows = np.arange(len(domains))
    random, selected = (
        np.array(one) for one in zip(*((d.random - d.before, d.selected - d.before) for d in domains), strict=True)
    )
    axes.axvline(0, color=PAPER.muted, linewidth=1)
    axes.hlines(rows, random, selected, color=PAPER.muted, linewidth=1, alpha=0.6)
    axes.plot(random, rows, "o", **OPEN, label="random tokens")
    axes.plot(selected, rows, "o", color=PAPER.selected, label="selected tokens")
    label_rows(axes, [f"{d.name} (reference)" if d.is_reference else d.name for d in domains])
    axes.set(xlabel="change in bits per byte; left of 0 is better")
    axes.set_title("Held-out domains after training", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0, handletextpad=0.2)


def paint_frontier(axes: Axes, points: Sequence[FrontierPoint], reference: str) -> None:
    """Draw reference loss against the mean of the other domains, a point a general share, random tokens last."""
    x, y = (
        np.array(one, dtype=float) for one in zip(*((p.other_domains, p.reference_loss) for p in points), strict=True)
    )
    axes.plot(x, y, color=PAPER.muted, linewidth=1)
    axes.plot(x[:-1], y[:-1], "o", color=PAPER.selected)
    axes.plot(x[-1:], y[-1:], "o", **OPEN)
    for point, at_x, at_y in zip(points, x, y, strict=True):
        share = point.general_share
        name = "100 %: random" if share == 1 else f"{100 * share:.0f} %"
        axes.annotate(name, (at_x, at_y), xytext=(5, 9), textcoords="offset points")
    axes.margins(0.25, 0.15)
    axes.ticklabel_format(useOffset=False)
    axes.set(xlabel="other domains, bits per byte; left is better", ylabel=f"{reference} loss, nats per token")
    axes.set_title("By the share of tokens that is drawn from the rest", pad=24)


def main() -> None:
    """Read the report, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace")
    parser.add_argument("run")
    parser.add_argument("out")
    given = parser.parse_args()
    report = parse_report(open_store(given.workspace).get(f"runs/{given.run}/report/report.json"))
    domains = sorted(measure_outcome(report).domains, key=lambda domain: domain.loss_increase)
    with style.context(rc(PAPER), after_reset=True):
        size = (WIDTH_IN, max(LEAST_IN, MARGIN_IN + ROW_IN * len(domains)))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        paint_domains(left, domains)
        paint_frontier(right, report.stages[-1].frontier, report.reference.domain or "reference")
        figure.savefig(given.out, metadata={"Date": None} if given.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
