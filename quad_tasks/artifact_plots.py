"""Plots for Prefect's UI: matplotlib drawings as images inside Markdown, the only way its UI shows a drawing.

An image in Markdown can follow neither the page's colours nor its fonts: middle tones that read on white and on black,
and the browser's own sans-serif. Labels come from users' data: they are cut, and never read as mathematics.
Owns no numbers and no wording.
"""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

POSITIVE, NEGATIVE, TEXT, GRID = "#2e8bc0", "#c8643c", "#828282", "#82828255"
WIDTH_IN, ROW_IN, MARGIN_IN, COURSE_IN = 7.5, 0.24, 0.7, 2.1
CHARACTERS = 22

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": TEXT,
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9.5,
    "grid.color": GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "quad",
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


def bars(title: str, values: Mapping[str, float], xlabel: str, mark: tuple[str, float] | None = None) -> str:
    """Draw one horizontal bar a value, left of zero for negative ones, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the bars.
        values: label -> value, top first.
        xlabel: what is measured, with its unit.
        mark: name and value of a dashed line across all bars.
    """

    def paint(axes: Axes) -> None:
        rows, lengths = range(len(values)), list(values.values())
        colours = [POSITIVE if length >= 0 else NEGATIVE for length in lengths]
        drawn = axes.barh(rows, lengths, color=colours)
        for row, bar in enumerate(drawn):
            bar.set_gid(f"bar-{row}")
        axes.bar_label(drawn, fmt="{:.4g}", padding=3)
        axes.set_yticks(rows, [label[:CHARACTERS] for label in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.axvline(0, color=TEXT, linewidth=0.8)
        axes.set_xlabel(xlabel)
        if mark:
            axes.axvline(mark[1], color=TEXT, linestyle="--", label=f"{mark[0]} = {mark[1]:.4g}")
            axes.legend(frameon=False, loc="lower right")

    return _image(title, MARGIN_IN + ROW_IN * len(values), paint)


def course(title: str, values: Sequence[float], xlabel: str, ylabel: str, mark: tuple[str, float] | None = None) -> str:
    """Draw values in order as a line over their number from 0, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the line.
        values: at least one.
        xlabel: what is counted.
        ylabel: what is measured, with its unit.
        mark: name and value of a dashed line, e.g. a budget.
    """

    def paint(axes: Axes) -> None:
        (line,) = axes.plot(values, color=POSITIVE, marker="o", markersize=3)
        line.set_gid("course")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=min(0.0, *values))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if mark:
            axes.axhline(mark[1], color=TEXT, linestyle="--", label=f"{mark[0]} = {mark[1]:,.6g}")
            axes.legend(frameon=False)

    return _image(title, COURSE_IN, paint)


def _image(title: str, height_in: float, paint: Callable[[Axes], None]) -> str:
    buffer = io.BytesIO()
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # The browser, not matplotlib, finds the glyphs: text stays text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        paint(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    name = "".join(c for c in title if c not in "[]()\\\n")
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()})"
