"""The bandit experiment's drawings, from its summaries alone: SVG and PNG, lines with their intervals.

`regret`: cumulative regret by round, a panel a game. `exploited`: the share of pulls on the truly best tenth of the
arms. `bound`: UCB1 under its bound. Bands are Student's 95 per cent intervals over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.experiments import drawing

COLOURS = {
    "uniform": drawing.GREY,
    "greedy": drawing.SKY,
    "paper": drawing.BLACK,
    "propagated": drawing.PURPLE,
    "released": drawing.ORANGE,
    "thompson": drawing.GREEN,
    "contextual": drawing.RED,
    "ucb1": drawing.BLUE,
}
PANEL_IN, LEGEND_IN = 2.45, 0.6
COLUMNS = 2

Paint = Callable[[Axes, Mapping[str, Any]], None]


def draw_bandit(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw every figure, by name.

    Args:
        result: the body of `result.json`.
    """
    bounded = [game for game in result["games"] if "ucb1" in game["policies"]]
    others = [game for game in result["games"] if "ucb1" not in game["policies"]]
    return {
        "regret": _figure(others, _paint_regret),
        "exploited": _figure(others, _paint_exploited),
        "bound": _figure(bounded, _paint_bound),
    }


def _figure(games: Sequence[Mapping[str, Any]], paint: Paint) -> Figure:
    columns = min(COLUMNS, len(games))
    rows = -(-len(games) // columns)
    figure, panels = drawing.page_figure(PANEL_IN * rows + LEGEND_IN, columns, rows)
    for axes, game in zip(panels, games, strict=False):
        paint(axes, game)
        axes.set_title(f"{game['title']}\n{game['seeds']} seeds", fontsize=drawing.TICK_PT)
    for axes in panels[len(games) :]:
        axes.remove()
    drawing.legend_below(figure, panels[0])
    return figure


def _paint_regret(axes: Axes, game: Mapping[str, Any]) -> None:
    _paint_courses(axes, game, "course")
    drawing.label(axes, _round_label(game), "cumulative regret (reward)")
    axes.set_ylim(bottom=0)


def _paint_exploited(axes: Axes, game: Mapping[str, Any]) -> None:
    _paint_courses(axes, game, "exploited")
    drawing.label(axes, _round_label(game), "share of pulls on best tenth")
    axes.set_ylim(0, 1.02)


def _paint_bound(axes: Axes, game: Mapping[str, Any]) -> None:
    bound = np.array(game["policies"]["ucb1"]["bound"])
    axes.plot(
        game["recorded_rounds"], bound, color=COLOURS["ucb1"], linestyle="--", linewidth=1.2, label="bound of ucb1"
    )
    _paint_regret(axes, game)  # which fixes the scale


def _paint_courses(axes: Axes, game: Mapping[str, Any], key: str) -> None:
    for name, policy in game["policies"].items():
        mean, low, high = (np.array(policy[key][end]) for end in ("mean", "low", "high"))
        axes.plot(game["recorded_rounds"], mean, color=COLOURS[name], linewidth=1.2, label=name)
        axes.fill_between(game["recorded_rounds"], low, high, color=COLOURS[name], alpha=0.2, linewidth=0)


def _round_label(game: Mapping[str, Any]) -> str:
    pulls = game["arms_per_round"]
    return f"round ({pulls} pull{'s' if pulls > 1 else ''} each)"
