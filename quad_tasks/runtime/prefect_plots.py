"""Draw plots for Prefect's UI: images inside Markdown, the only way its UI shows a drawing.

An image in Markdown can follow neither the page's colours nor its fonts: middle tones, the browser's own sans-serif.
Owns no numbers and no wording.
"""

import base64
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from quad_tasks.runtime.plot_style import IMAGE, ROW_IN, SCREEN_IN, draw_svg, label_rows

MARGIN_IN, HISTORY_IN = 0.7, 2.1


def bars(title: str, values: Mapping[str, float], xlabel: str, mark: tuple[str, float] | None = None) -> str:
    """Draw one horizontal bar a value, left of zero for negative ones, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the bars.
        values: label -> value, top first.
        xlabel: what is measured, with its unit.
        mark: name and value of a dashed line across all bars.
    """

    def paint(axes: Axes) -> None:
        lengths = list(values.values())
        colours = [IMAGE.selected if length >= 0 else IMAGE.baseline for length in lengths]
        drawn = axes.barh(range(len(values)), lengths, color=colours)
        for row, bar in enumerate(drawn):
            bar.set_gid(f"bar-{row}")
        axes.bar_label(drawn, fmt="{:.4g}", padding=3)
        label_rows(axes, list(values))
        axes.margins(x=0.12)
        axes.axvline(0, color=IMAGE.muted, linewidth=0.8)
        axes.set_xlabel(xlabel)
        if mark:
            axes.axvline(mark[1], color=IMAGE.muted, linestyle="--", label=f"{mark[0]} = {mark[1]:.4g}")
            axes.legend(loc="lower right")

    return _image(title, MARGIN_IN + ROW_IN * len(values), paint)


def history(
    title: str, values: Sequence[float], xlabel: str, ylabel: str, mark: tuple[str, float] | None = None
) -> str:
    """Draw values in order as a line over their number from 0, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the line.
        values: at least one.
        xlabel: what is counted.
        ylabel: what is measured, with its unit.
        mark: name and value of a dashed line, e.g. a budget.
    """

    def paint(axes: Axes) -> None:
        (line,) = axes.plot(values, color=IMAGE.selected, marker="o", markersize=3)
        line.set_gid("history")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=min(0.0, *values))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if mark:
            axes.axhline(mark[1], color=IMAGE.muted, linestyle="--", label=f"{mark[0]} = {mark[1]:,.6g}")
            axes.legend()

    return _image(title, HISTORY_IN, paint)


def _image(title: str, height_in: float, paint: Callable[[Axes], None]) -> str:
    def paint_titled(axes: Axes) -> None:
        axes.set_title(title)
        paint(axes)

    data = base64.b64encode(draw_svg(SCREEN_IN, height_in, paint_titled, IMAGE)).decode()
    name = "".join(c for c in title if c not in "[]()\\\n")
    return f"![{name}](data:image/svg+xml;base64,{data})"
