"""Drawings as inline SVG: labels are text and never mathematics, ids and colours belong to the page."""

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from quad_tasks.report import figures
from quad_tasks.runtime.plot_style import PAGE_VARIABLES, one_line


def pairs(labels, name="drawing"):
    return figures.dot_pairs(name, "described", labels, [(0.0, 1.0)] * len(labels), ("random", "selected"), "bits")


def ids(drawing):
    return re.findall(r'\bid="([^"]+)"', drawing)


@pytest.mark.parametrize("label", ["$\\frac{$", "<b>&amp;", "漢字 العربية", "two\nlines\x07", ""], ids=ascii)
def test_any_label_is_drawn_as_text(label):
    texts = [text.text for text in ElementTree.fromstring(pairs([label])).iter(f"{{{figures.SVG}}}text")]
    assert not label or one_line(label) in texts


def test_two_drawings_share_no_id():
    assert not set(ids(pairs(["a"], "first"))) & set(ids(pairs(["a"], "second")))


def test_colours_are_left_to_the_page():
    drawing = pairs(["a"])
    assert not any(colour in drawing for colour in PAGE_VARIABLES)
    assert {"var(--ink)", "var(--selected)", "var(--baseline)"} <= set(re.findall(r"var\(--\w+\)", drawing))


def test_a_drawing_is_described_and_sized_by_the_page():
    root = ElementTree.fromstring(pairs(["a"]))
    assert root[0].text == "described"
    assert root.attrib["aria-labelledby"] == root[0].attrib["id"]
    assert "width" not in root.attrib


def test_the_users_own_matplotlib_settings_change_nothing():
    expected = pairs(["a"])
    with matplotlib.rc_context({"text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert pairs(["a"]) == expected


def test_points_are_one_image_whose_size_does_not_follow_their_number():
    generator = np.random.default_rng(0)
    sizes = []
    for n in (1_000, 20_000):
        drawing = figures.influence_map("m", "map", generator.normal(size=(n, 2)), generator.normal(size=n))
        sizes.append(len(drawing))
        assert drawing.count("<image") == 2  # the points, the colour bar
    assert sizes[1] < 5 * sizes[0]


def test_cumulative_shares_start_with_the_most_over_represented_arm():
    pool, selected = figures.cumulative_shares(np.array([50.0, 30.0, 20.0]), np.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(pool, [0, 0.3, 0.8, 1])
    np.testing.assert_allclose(selected, [0, 0.75, 1, 1])
