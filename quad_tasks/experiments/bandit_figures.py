"""The bandit experiment's drawings, from its summaries alone: SVG and PNG, lines with their intervals.

`regret`: cumulative regret by round, a panel a game. `exploited`: the share of pulls on the truly best tenth of the
arms. `bound`: UCB1 under its bound. Colours are those of Okabe and Ito (2008), told apart by the colour-blind.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "uniform": "#999999",
    "greedy": "#56B4E9",
    "paper": "#000000",
    "propagated": "#CC79A7",
    "released": "#E69F00",
    "thompson": "#009E73",
    "contextual": "#D55E00",
    "ucb1": "#0072B2",
}
PANEL_IN = (3.6, 2.6)
COLUMNS = 4
LEGEND_COLUMNS, LEGEND_IN = 4, 0.8
PNG_DPI = 150
SALT = "quad"
"""Makes the ids in an SVG the same every time."""

Paint = Callable[[Axes, Mapping[str, Any]], None]


def draw_figures(games: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Draw every figure and return its bytes by file name.

    Args:
        games: as `bandit.summarise` gives them.
    """
    bounded = [game for game in games if "ucb1" in game["policies"]]
    others = [game for game in games if "ucb1" not in game["policies"]]
    files = {}
    for name, paint, panels in (
        ("regret", _paint_regret, others),
        ("exploited", _paint_exploited, others),
        ("bound", _paint_bound, bounded),
    ):
        figure = _figure(panels, paint)
        for suffix in ("svg", "png"):
            files[f"{name}.{suffix}"] = _encode(figure, suffix)
    return files


def _figure(games: Sequence[Mapping[str, Any]], paint: Paint) -> Figure:
    columns = min(COLUMNS, len(games))
    rows = -(-len(games) // columns)
    figure = Figure((PANEL_IN[0] * max(columns, 2), PANEL_IN[1] * rows + LEGEND_IN), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(len(games))]
    for panel, game in zip(axes, games, strict=True):
        paint(panel, game)
        panel.set_title(game["title"], fontsize=7.5)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    lines, labels = axes[0].get_legend_handles_labels()
    title = f"mean over {' or '.join(sorted({str(game['seeds']) for game in games}))} seeds"
    figure.legend(
        lines,
        labels,
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        fontsize=8,
        frameon=False,
        title=title,
        title_fontsize=8,
    )
    return figure


def _paint_regret(axes: Axes, game: Mapping[str, Any]) -> None:
    rounds = game["recorded_rounds"]
    for name, policy in game["policies"].items():
        course = policy["course"]
        axes.plot(rounds, course["mean"], color=COLOURS[name], linewidth=1.2, label=name)
        axes.fill_between(rounds, course["low"], course["high"], color=COLOURS[name], alpha=0.2, linewidth=0)
    axes.set_xlabel(_round_label(game), fontsize=8)
    axes.set_ylabel("cumulative regret, 95 % interval", fontsize=8)
    axes.set_ylim(bottom=0)


def _paint_exploited(axes: Axes, game: Mapping[str, Any]) -> None:
    for name, policy in game["policies"].items():
        axes.plot(game["recorded_rounds"], policy["exploited"], color=COLOURS[name], linewidth=1.2, label=name)
    axes.set_xlabel(_round_label(game), fontsize=8)
    axes.set_ylabel("pulls on the best tenth of arms", fontsize=8)
    axes.set_ylim(0, 1.02)


def _paint_bound(axes: Axes, game: Mapping[str, Any]) -> None:
    _paint_regret(axes, game)
    bound = np.array(game["policies"]["ucb1"]["bound"])
    axes.plot(
        game["recorded_rounds"], bound, color=COLOURS["ucb1"], linestyle="--", linewidth=1.2, label="bound of ucb1"
    )


def _round_label(game: Mapping[str, Any]) -> str:
    pulls = game["arms_per_round"]
    return f"round ({pulls} pull{'s' if pulls > 1 else ''} each)"


def _encode(figure: Figure, suffix: str) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": SALT}):
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(file, format=suffix, dpi=PNG_DPI, metadata=metadata)
    return file.getvalue()
