"""Draw the bandit experiment's games from their summaries: lines with their intervals.

`regret`: cumulative regret by round, a panel a game. `exploited`: the share of pulls on the truly best tenth of the
arms. `bound`: UCB1 under its bound. Bands are Student's 95 per cent intervals over seeds.
"""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quad_tasks.core.evaluation.statistics import Band
from quad_tasks.experiments.bandit_games import UCB1, BoundedSummary, GameSummary
from quad_tasks.experiments.lab import plots

COLOURS = {
    "uniform": plots.GREY,
    "greedy": plots.SKY,
    "paper": plots.BLACK,
    "propagated": plots.PURPLE,
    "released": plots.ORANGE,
    "thompson": plots.GREEN,
    "contextual": plots.RED,
    UCB1: plots.BLUE,
}
PANEL_IN, LEGEND_IN = 2.45, 0.6
COLUMNS = 2

Paint = Callable[[Axes, GameSummary], None]


def draw_bandit(games: Sequence[GameSummary]) -> dict[str, Figure]:
    """Draw every figure, by name."""
    bounded = [game for game in games if UCB1 in game.policies]
    others = [game for game in games if UCB1 not in game.policies]
    return {
        "regret": _figure(others, _paint_regret),
        "exploited": _figure(others, _paint_exploited),
        "bound": _figure(bounded, _paint_bound),
    }


def _figure(games: Sequence[GameSummary], paint: Paint) -> Figure:
    columns = min(COLUMNS, len(games))
    rows = -(-len(games) // columns)
    figure, panels = plots.page_figure(PANEL_IN * rows + LEGEND_IN, columns, rows)
    for axes, game in zip(panels, games, strict=False):
        paint(axes, game)
        axes.set_title(f"{game.title}\n{game.seeds} seeds", fontsize=plots.TICK_PT)
    for axes in panels[len(games) :]:
        axes.remove()
    plots.legend_below(figure, panels[0])
    return figure


def _paint_regret(axes: Axes, game: GameSummary) -> None:
    _paint_bands(axes, game, {name: policy.history for name, policy in game.policies.items()})
    plots.label(axes, _round_label(game), "cumulative regret (reward)")
    axes.set_ylim(bottom=0)


def _paint_exploited(axes: Axes, game: GameSummary) -> None:
    _paint_bands(axes, game, {name: policy.exploited for name, policy in game.policies.items()})
    plots.label(axes, _round_label(game), "share of pulls on best tenth")
    axes.set_ylim(0, 1.02)


def _paint_bound(axes: Axes, game: GameSummary) -> None:
    ucb1 = game.policies[UCB1]
    if isinstance(ucb1, BoundedSummary):
        axes.plot(
            game.recorded_rounds, ucb1.bound, color=COLOURS[UCB1], linestyle="--", linewidth=1.2, label="bound of ucb1"
        )
    _paint_regret(axes, game)  # after the bound, so that the scale holds it


def _paint_bands(axes: Axes, game: GameSummary, bands: Mapping[str, Band]) -> None:
    for name, band in bands.items():
        axes.plot(game.recorded_rounds, band.mean, color=COLOURS[name], linewidth=1.2, label=name)
        axes.fill_between(game.recorded_rounds, band.low, band.high, color=COLOURS[name], alpha=0.2, linewidth=0)


def _round_label(game: GameSummary) -> str:
    pulls = game.arms_per_round
    return f"round ({pulls} pull{'s' if pulls > 1 else ''} each)"
