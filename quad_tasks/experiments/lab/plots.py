"""Draw experiments: panels, lines and bars with their intervals, as files of a page's width.

An interval is a band or a bar, always drawn.
"""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.runtime.plot_style import BLACK as BLACK
from quad_tasks.runtime.plot_style import BLUE as BLUE
from quad_tasks.runtime.plot_style import GREEN as GREEN
from quad_tasks.runtime.plot_style import GREY as GREY
from quad_tasks.runtime.plot_style import LABEL_PT, PAGE_IN, PAPER, PNG_DPI, SALT, rc
from quad_tasks.runtime.plot_style import ORANGE as ORANGE
from quad_tasks.runtime.plot_style import PURPLE as PURPLE
from quad_tasks.runtime.plot_style import RED as RED
from quad_tasks.runtime.plot_style import SKY as SKY
from quad_tasks.runtime.plot_style import TICK_PT as TICK_PT

PALETTE = (GREY, SKY, BLACK, PURPLE, ORANGE, GREEN, RED, BLUE)
STYLE = rc(PAPER, axes_grid=False, axes_labelsize=LABEL_PT, axes_titlesize=LABEL_PT, axes_titlelocation="center")


def page_figure(height_in: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Open a figure of a page's width with a grid of panels."""
    with style.context(STYLE, after_reset=True):
        figure = Figure((PAGE_IN, height_in), layout="constrained")
        panels = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axes in panels:
        axes.tick_params(labelsize=TICK_PT)
    return figure, panels


def label(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Name axes, units included, and the panel."""
    axes.set_xlabel(x, fontsize=LABEL_PT)
    axes.set_ylabel(y, fontsize=LABEL_PT)
    if title:
        axes.set_title(title, fontsize=LABEL_PT)


def draw_course(
    axes: Axes, x: Sequence[float], found: Sequence[Interval], colour: str, name: str, marker: str = "o"
) -> None:
    """Draw means over x as a line with their intervals as a band."""
    axes.plot(x, [f.mean for f in found], color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=name)
    axes.fill_between(x, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.2, linewidth=0)


def draw_bars(axes: Axes, names: Sequence[str], found: Sequence[Interval], colours: Sequence[str]) -> None:
    """Draw horizontal positions of means, top to bottom as given, with their intervals as bars."""
    rows = list(range(len(names)))[::-1]
    for row, one, colour in zip(rows, found, colours, strict=True):
        error = [[one.mean - one.low], [one.high - one.mean]]
        axes.errorbar([one.mean], [row], xerr=error, fmt="o", markersize=4.5, capsize=2.5, color=colour)
    axes.set_yticks(rows, names, fontsize=TICK_PT)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", linewidth=0.6)
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
