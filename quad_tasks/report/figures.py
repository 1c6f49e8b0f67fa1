"""Draw the report's figures: matplotlib, written as inline SVG that follows the page's colours.

Static SVG rather than a JavaScript chart (plotly.min.js alone weighs 4.8 MB, Bokeh draws on canvas): it needs no
script, prints, keeps its text as text, and takes its colours from CSS variables, so that light and dark are one file.
Owns no numbers and no wording beyond axis labels.

Shapes: K arms, N documents, 2 coordinates.
"""

import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from quad_tasks.runtime.plot_style import (
    HIGH,
    LOW,
    MIDDLE,
    PAGE,
    PAGE_VARIABLES,
    PANEL_IN,
    ROW_IN,
    draw_svg,
    label_rows,
)

Array = npt.NDArray[np.float64]

INK, MUTED, SELECTED, BASELINE = PAGE.ink, PAGE.muted, PAGE.selected, PAGE.baseline

SVG = "http://www.w3.org/2000/svg"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"


def draw(name: str, description: str, height_in: float, paint: Callable[[Axes], None]) -> Markup:
    """Draw one panel.

    Args:
        name: prefix of every id in the drawing, unique on the page.
        description: what a screen reader says.
        height_in: height, inches, at a width of `PANEL_IN`.
        paint: draws on the axes.

    Returns:
        An ``<svg>`` element.
    """
    return to_svg(draw_svg(PANEL_IN, height_in, paint, PAGE, name), name, description)


def to_svg(document: bytes, name: str, description: str) -> Markup:
    """Make matplotlib's SVG document an element that can stand many times in one page.

    Args:
        document: the SVG file.
        name: prefix for its ids.
        description: becomes its ``<title>``.

    Returns:
        The element: ids prefixed, size left to CSS, stand-in colours replaced by ``var(--...)``.
    """
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(document)
    for child in root.findall(f"{{{SVG}}}metadata"):
        root.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            element.attrib["href" if key == XLINK_HREF else key] = _page_value(key, value, name)
        element.attrib.pop(XLINK_HREF, None)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    title = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def dot_pairs(
    name: str,
    description: str,
    labels: Sequence[str],
    pairs: Sequence[tuple[float, float]],
    names: tuple[str, str],
    xlabel: str,
) -> Markup:
    """Draw two values per row on one axis, joined by a line: open for the baseline, filled for the selection.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        labels: one per row, top first.
        pairs: (baseline, selection) per row, in the axis's unit.
        names: legend of baseline and selection.
        xlabel: the axis, with its unit.

    Returns:
        An ``<svg>`` element.
    """
    baseline, selection = np.asarray(pairs, dtype=np.float64).T
    rows = np.arange(len(labels))

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.hlines(rows, baseline, selection, color=MUTED, linewidth=1, alpha=0.6)
        axes.plot(baseline, rows, "o", color=BASELINE, markerfacecolor="none", markeredgewidth=1.6, label=names[0])
        axes.plot(selection, rows, "o", color=SELECTED, label=names[1])
        label_rows(axes, labels)
        axes.set_xlabel(xlabel)
        legend(axes)

    return draw(name, description, 0.95 + ROW_IN * len(labels), paint)


def concentration(name: str, description: str, pool_K: Array, selected_K: Array) -> Markup:
    """Draw how the selection concentrates on arms: cumulative shares of tokens, arms in order of selected / pool.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        pool_K: [K] tokens of each arm in the pool, > 0.
        selected_K: [K] tokens of each arm in the selection.

    Returns:
        An ``<svg>`` element.
    """
    pool, selected = cumulative_shares(pool_K, selected_K)

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=BASELINE, linestyle="--", label="in proportion")
        axes.plot(100 * pool, 100 * selected, color=SELECTED, linewidth=2, label="selection")
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="pool tokens in these arms (%)", ylabel="selected tokens (%)")
        legend(axes)

    return draw(name, description, 2.8, paint)


def cumulative_shares(pool_K: Array, selected_K: Array) -> tuple[Array, Array]:
    """Add arms up from the most over-represented to the least.

    Args:
        pool_K: [K] tokens of each arm in the pool, > 0.
        selected_K: [K] tokens of each arm in the selection, not all 0.

    Returns:
        Two [K + 1] arrays from 0 to 1: share of the pool's tokens, share of the selection's.
    """
    order = np.argsort(-selected_K / pool_K, kind="stable")
    pool, selected = (np.concatenate([[0], np.cumsum(tokens[order])]) / tokens.sum() for tokens in (pool_K, selected_K))
    return pool, selected


def over_rounds(
    name: str,
    description: str,
    values: Sequence[float],
    pilot: Sequence[bool],
    stage_starts: Sequence[int],
    ylabel: str,
    ceiling: float | None = None,
) -> Markup:
    """Draw one quantity over all rounds of a run.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        values: one per round, in order.
        pilot: whether the round was a random pilot (drawn open).
        stage_starts: positions of the rounds that opened a later stage (a vertical line each).
        ylabel: the quantity, with its unit.
        ceiling: a limit to compare with, e.g. the budget, in the same unit.

    Returns:
        An ``<svg>`` element.
    """
    heights, is_pilot = np.asarray(values, dtype=np.float64), np.asarray(pilot, dtype=bool)
    rounds = np.arange(len(heights))

    def paint(axes: Axes) -> None:
        axes.plot(rounds, heights, color=SELECTED, linewidth=1.4)
        axes.plot(rounds[~is_pilot], heights[~is_pilot], "o", markersize=3.5, color=SELECTED)
        axes.plot(rounds[is_pilot], heights[is_pilot], "o", markersize=5, color=BASELINE, markerfacecolor="none")
        for start in stage_starts:
            axes.axvline(start - 0.5, color=MUTED, linewidth=1, linestyle=":")
        if ceiling is not None:
            axes.axhline(ceiling, color=BASELINE, linestyle="--")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}".replace("-", "−"))
        axes.set(xlabel="round", ylabel=ylabel)
        if np.nanmin(heights, initial=0) >= 0:
            axes.margins(y=0.06)
            axes.set_ylim(0, max(axes.get_ylim()[1], 1.06 * np.nanmax(heights, initial=0)) or 1)

    return draw(name, description, 2.4, paint)


def histogram(
    name: str, description: str, edges: Array, scored: Array, selected: Array, threshold: float | None
) -> Markup:
    """Draw the distribution of influence among scored documents and, in front, among selected ones.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        edges: [B + 1] bin edges, influence per token.
        scored: [B] documents scored.
        selected: [B] documents selected.
        threshold: influence per token that a document had to pass, if one is known.

    Returns:
        An ``<svg>`` element.
    """

    def paint(axes: Axes) -> None:
        axes.stairs(scored, edges, color=BASELINE, linewidth=1.4, label="scored")
        axes.stairs(selected, edges, color=SELECTED, fill=True, alpha=0.75, label="selected")
        axes.axvline(0, color=MUTED, linewidth=1)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label="threshold τ")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="influence per token", ylabel="documents", ylim=(0, None))
        legend(axes)

    return draw(name, description, 2.8, paint)


def curve(
    name: str, description: str, x: Sequence[float], middle: Array, low: Array, high: Array, labels: tuple[str, str]
) -> Markup:
    """Draw points with their intervals, joined by a line, on axes that begin at 0, with `labels` of x and y."""

    def paint(axes: Axes) -> None:
        axes.fill_between(x, low, high, color=SELECTED, alpha=0.2, linewidth=0, label="95 % interval")
        axes.plot(x, middle, "o-", color=SELECTED, label="estimate")
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, None), ylim=(0, None))
        legend(axes)

    return draw(name, description, 2.8, paint)


def influence_map(name: str, description: str, points_N2: Array, influence_N: Array) -> Markup:
    """Draw documents on their plane, coloured by influence; unscored ones (NaN) stay faint.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        points_N2: [N, 2] coordinates.
        influence_N: [N] influence per token, NaN where not scored.

    Returns:
        An ``<svg>`` element; the points are one embedded image, so that its size does not grow with N.
    """
    scored = np.isfinite(influence_N)
    reach = float(np.quantile(np.abs(influence_N[scored]), 0.98)) if scored.any() else 1.0
    colours = LinearSegmentedColormap.from_list("influence", [LOW, MIDDLE, HIGH])

    def paint(axes: Axes) -> None:
        x, y = points_N2[~scored].T
        axes.scatter(x, y, s=3, color=MIDDLE, alpha=0.25, linewidths=0, rasterized=True)
        x, y = points_N2[scored].T
        norm = CenteredNorm(halfrange=reach or 1.0)
        points = axes.scatter(x, y, s=6, c=influence_N[scored], cmap=colours, norm=norm, linewidths=0, rasterized=True)
        bar = axes.figure.colorbar(
            points,
            ax=axes,
            label="influence per token",
            extend="both",
            location="top",
            shrink=0.6,
            aspect=30,
            anchor=(0, 0),
        )
        bar.ax.collections[0].set_rasterized(True)
        bar.outline.set_visible(False)
        bare(axes)

    return draw(name, description, 4.2, paint)


def selection_map(name: str, description: str, points_N2: Array, selected_N: npt.NDArray[np.bool_]) -> Markup:
    """Draw documents on their plane, the selected ones in front.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        points_N2: [N, 2] coordinates.
        selected_N: [N] whether the document is in the selection.

    Returns:
        An ``<svg>`` element; the points are one embedded image.
    """

    def paint(axes: Axes) -> None:
        for chosen, colour, alpha, label in ((~selected_N, MIDDLE, 0.35, "pool"), (selected_N, HIGH, 0.9, "selected")):
            x, y = points_N2[chosen].T
            axes.scatter(x, y, s=5, color=colour, alpha=alpha, linewidths=0, rasterized=True, label=label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, markerscale=2.5)
        bare(axes)

    return draw(name, description, 4.2, paint)


def bars(name: str, description: str, labels: Sequence[str], values: Sequence[float], xlabel: str) -> Markup:
    """Draw one horizontal bar per row, top first, with `xlabel` naming the unit."""
    rows = np.arange(len(labels))

    def paint(axes: Axes) -> None:
        axes.barh(rows, values, height=0.62, color=SELECTED)
        label_rows(axes, labels)
        axes.set_xlabel(xlabel)

    return draw(name, description, 0.7 + ROW_IN * len(labels), paint)


def _page_value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key in (XLINK_HREF, "href"):
        return f"#{name}-{value[1:]}"
    for colour, variable in PAGE_VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return re.sub(r"url\(#", f"url(#{name}-", value)


def legend(axes: Axes) -> None:
    """Put a legend above the axes, at the right."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, handlelength=1.6)


def bare(axes: Axes) -> None:
    """Leave a map its points and the names of its directions."""
    axes.grid(visible=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="first direction (no unit)", ylabel="second direction (no unit)")
    axes.spines[["left", "bottom"]].set_visible(False)
