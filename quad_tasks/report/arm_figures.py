"""Draw the arms: influence within each, when each was pulled, and where each lies on the map.

Shapes: K arms, N documents, G groups of rounds, 5 quantiles, 2 coordinates.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import MaxNLocator

from quad_tasks.report.figures import BASELINE, INK, MUTED, SELECTED, Array, bare, draw, legend
from quad_tasks.runtime.plot_style import HIGH, MIDDLE, ROW_IN, label_rows, label_rows_that_fit

GOLDEN = 0.618034
"""Share of the colour circle between the hues of neighbouring arms."""
LABELLED_ARMS = 8
LABEL_SHARE = (0.08, 0.06)
"""Width and height of an arm's number, as shares of the map's larger side."""
PULLS_IN, XAXIS_IN = 3.2, 0.6
"""Height of the chart of pulls, and of what stands below its rows."""


def quantile_rows(
    name: str, description: str, labels: Sequence[str], quantiles_K5: Array, threshold: float | None
) -> Markup:
    """Draw a row an arm: a line from the 5 to the 95 % quantile of influence, a bar of the middle half, the median.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        labels: one per arm, top first.
        quantiles_K5: [K, 5] influence per token at 5, 25, 50, 75 and 95 %.
        threshold: influence per token that a document had to pass, if one is known.

    Returns:
        An ``<svg>`` element.
    """
    rows = np.arange(len(labels))
    low, first, median, third, high = np.asarray(quantiles_K5, dtype=np.float64).T

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label="threshold τ")
        axes.hlines(rows, low, high, color=SELECTED, linewidth=1.2)
        axes.barh(rows, third - first, left=first, height=0.5, color=SELECTED, alpha=0.55)
        axes.plot(median, rows, "|", color=BASELINE, markersize=9, markeredgewidth=2.2, label="median")
        label_rows(axes, labels)
        axes.set_xlabel("influence per token")
        legend(axes)

    return draw(name, description, 0.95 + ROW_IN * len(labels), paint)


def band_over_rounds(name: str, description: str, low: Array, middle: Array, high: Array, ylabel: str) -> Markup:
    """Draw a line over all rounds within its band; NaN leaves a gap.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        low: [R] lower edge.
        middle: [R] the line.
        high: [R] upper edge.
        ylabel: the quantity, with its unit.

    Returns:
        An ``<svg>`` element.
    """
    rounds = np.arange(len(middle))

    def paint(axes: Axes) -> None:
        axes.fill_between(rounds, low, high, color=SELECTED, alpha=0.25, linewidth=0, label="lowest to highest")
        axes.vlines(rounds, low, high, color=SELECTED, alpha=0.25)  # a round between gaps has no band
        axes.plot(rounds, middle, color=SELECTED, linewidth=1.6, marker="o", markersize=3, label="median")
        axes.set_xlim(-0.5, len(middle) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}".replace("-", "−"))
        axes.set(xlabel="round", ylabel=ylabel)
        legend(axes)

    return draw(name, description, 2.4, paint)


def pull_chart(
    name: str, description: str, arms: Sequence[int], first_round: Sequence[int], documents_KG: Array
) -> Markup:
    """Draw which arm was pulled when: a row an arm, a column a group of rounds, the more documents the darker.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        arms: [K] numbers, most pulled first.
        first_round: [G] the first round of each group.
        documents_KG: [K, G] documents drawn.

    Returns:
        An ``<svg>`` element; the cells are one embedded image.
    """
    red, green, blue = to_rgb(HIGH)
    steps = [(red, green, blue, opacity) for opacity in (0.0, 0.45, 1.0)]
    clear = LinearSegmentedColormap.from_list("pulls", steps)

    def paint(axes: Axes) -> None:
        width = first_round[1] - first_round[0] if len(first_round) > 1 else 1
        extent = (first_round[0] - 0.5, first_round[-1] + width - 0.5, len(arms) - 0.5, -0.5)
        shown = axes.imshow(documents_KG, cmap=clear, aspect="auto", interpolation="nearest", extent=extent, vmin=0)
        shown.set_rasterized(True)
        label_rows_that_fit(axes, [str(arm) for arm in arms], PULLS_IN - XAXIS_IN)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(visible=False)
        axes.set(xlabel="round", ylabel="arm, most pulled first")

    return draw(name, description, PULLS_IN, paint)


def arm_map(
    name: str, description: str, points_N2: Array, arm_N: npt.NDArray[np.int64], labelled: Sequence[int]
) -> Markup:
    """Draw documents on their plane, a colour an arm, with the numbers of some arms at their middle.

    Args:
        name: prefix of the drawing's ids.
        description: what a screen reader says.
        points_N2: [N, 2] coordinates.
        arm_N: [N] each document's arm.
        labelled: arms whose numbers are written, `LABELLED_ARMS` of them at most; one that would cover the number of
            an earlier one is left out.

    Returns:
        An ``<svg>`` element; the points are one embedded image.
    """

    def paint(axes: Axes) -> None:
        x, y = points_N2.T
        axes.scatter(x, y, s=5, c=[arm_colour(int(arm)) for arm in arm_N], linewidths=0, rasterized=True)
        box = {"boxstyle": "round,pad=0.15", "facecolor": MIDDLE, "alpha": 0.28, "linewidth": 0}
        for arm, (middle_x, middle_y) in _middles_apart(points_N2, arm_N, labelled).items():
            axes.text(middle_x, middle_y, str(arm), color=INK, ha="center", va="center", weight="bold", bbox=box)
        bare(axes)

    return draw(name, description, 4.2, paint)


def _middles_apart(points_N2: Array, arm_N: npt.NDArray[np.int64], labelled: Sequence[int]) -> dict[int, Array]:
    """Return the median point of each arm that lies far enough from those of the arms before it."""
    apart_2 = np.array(LABEL_SHARE) * np.ptp(points_N2, axis=0).max()
    middles: dict[int, Array] = {}
    for arm in labelled:
        own = points_N2[arm_N == arm]
        middle_2 = np.median(own, axis=0) if len(own) else None
        if middle_2 is None or any((np.abs(middle_2 - other_2) < apart_2).all() for other_2 in middles.values()):
            continue
        middles[arm] = middle_2
        if len(middles) == LABELLED_ARMS:
            break
    return middles


def arm_colour(arm: int) -> tuple[float, float, float]:
    """Give an arm its colour: hues a golden section apart, of a lightness that reads on white and on black."""
    return colorsys.hls_to_rgb(arm * GOLDEN % 1.0, 0.45 + 0.1 * (arm % 3), 0.6)
