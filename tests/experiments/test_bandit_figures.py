"""Drawings are the same every time, and their scale holds what they show."""

from experiments.bandit_small import BOUNDED, SMOOTH, play

from quad_tasks.experiments.bandit_figures import draw_bandit
from quad_tasks.experiments.lab.plots import encode


def test_drawings_are_svg_and_png_and_the_same_every_time():
    first, second = (draw_bandit([play(BOUNDED), play(SMOOTH)]) for _ in range(2))
    assert set(first) == {"regret", "exploited", "bound"}
    for name, figure in first.items():
        assert encode(figure, "svg") == encode(second[name], "svg")
    assert b"<svg" in encode(first["regret"], "svg")
    assert encode(first["bound"], "png").startswith(b"\x89PNG")


def test_the_bound_is_inside_its_drawing():
    (axes,) = draw_bandit([play(BOUNDED), play(SMOOTH)])["bound"].axes
    assert axes.get_ylim()[1] >= max(play(BOUNDED).policies["ucb1"].bound)
