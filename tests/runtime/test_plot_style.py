"""One style for every drawing: labels on one line, as many as fit, and the same bytes every time."""

import itertools

import pytest
from matplotlib.figure import Figure

from quad_tasks.runtime.plot_style import IMAGE, PAGE, PAPER, draw_svg, label_rows_that_fit, one_line, rc


def test_a_long_label_is_cut_to_one_line():
    assert one_line("a" * 100) == "a" * 27 + "…"
    assert one_line(" two\nlines\x07 ") == "two lines"


@pytest.mark.parametrize(("n", "height_in", "labelled"), [(3, 2.6, 3), (15, 2.6, 15), (30, 2.6, 15), (31, 2.6, 11)])
def test_rows_are_labelled_at_equal_distances_as_far_as_they_fit(n, height_in, labelled):
    axes = Figure().subplots()
    label_rows_that_fit(axes, [str(row) for row in range(n)], height_in)
    places = axes.get_yticks()
    assert len(places) == labelled
    assert len({after - before for before, after in itertools.pairwise(places)}) == 1


@pytest.mark.parametrize("palette", [PAGE, IMAGE, PAPER])
def test_the_same_drawing_has_the_same_bytes_in_its_palettes_colours(palette):
    first, second = (draw_svg(2, 2, lambda axes: axes.plot([0, 1], color=palette.selected), palette) for _ in range(2))
    assert first == second
    assert palette.selected[:7].lower() in first.decode().lower()


def test_settings_are_changed_by_name():
    assert rc(PAPER, axes_grid=False)["axes.grid"] is False
