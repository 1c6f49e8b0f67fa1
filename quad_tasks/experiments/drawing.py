"""How experiments draw: sizes, colours and file formats of figures that a page's width leaves readable.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind. An interval is a band or a bar, always drawn.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY, SKY, BLACK, PURPLE, ORANGE, GREEN, RED, BLUE = PALETTE = (
    "#999999",
    "#56B4E9",
    "#000000",
    "#CC79A7",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#0072B2",
)
PAGE_IN = 7.2
"""Width of a page's text: fonts below keep their size on paper."""
LABEL_PT, TICK_PT, TITLE_PT = 9, 8, 9
PNG_DPI = 150
SALT = "quad"
"""Makes the ids in an SVG the same every time."""


def page_figure(height_in: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Open a figure of a page's width with a grid of panels."""
    figure = Figure((PAGE_IN, height_in), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axes in panels:
        axes.tick_params(labelsize=TICK_PT)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def label(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Name axes, units included, and the panel."""
    axes.set_xlabel(x, fontsize=LABEL_PT)
    axes.set_ylabel(y, fontsize=LABEL_PT)
    if title:
        axes.set_title(title, fontsize=TITLE_PT)


def draw_course(
    axes: Axes, x: Sequence[float], found: Sequence[Mapping[str, Any]], colour: str, name: str, marker: str = "o"
) -> None:
    """Draw means over x as a line with their intervals as a band."""
    axes.plot(x, [f["mean"] for f in found], color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=name)
    axes.fill_between(x, [f["low"] for f in found], [f["high"] for f in found], color=colour, alpha=0.2, linewidth=0)


def draw_bars(axes: Axes, names: Sequence[str], found: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> None:
    """Draw horizontal positions of means, top to bottom as given, with their intervals as bars."""
    rows = list(range(len(names)))[::-1]
    for row, one, colour in zip(rows, found, colours, strict=True):
        error = [[one["mean"] - one["low"]], [one["high"] - one["mean"]]]
        axes.errorbar([one["mean"]], [row], xerr=error, fmt="o", markersize=4.5, capsize=2.5, color=colour)
    axes.set_yticks(rows, names, fontsize=TICK_PT)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.locator_params(axis="x", nbins=5)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Put the panels' common legend below them."""
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, fontsize=TICK_PT, frameon=False)


def encode(figure: Figure, suffix: str) -> bytes:
    """Return a figure's bytes as `svg` or `png`, the same for the same figure."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": SALT}):
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(file, format=suffix, dpi=PNG_DPI, metadata=metadata)
    return file.getvalue()
