"""Drawings of arms: labels never overlap, colours tell neighbours apart."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from quad_tasks.report import arm_figures
from quad_tasks.report.figures import SVG
from quad_tasks.runtime.plot_style import TEXT_PT


def tick_heights(drawing: str) -> dict[str, float]:
    """Return where the labels of the vertical axis stand, in points from the top."""
    heights = {}
    for group in ElementTree.fromstring(drawing).iter(f"{{{SVG}}}g"):
        if re.search(r"-ytick_\d+$", group.get("id", "")):
            text = next(group.iter(f"{{{SVG}}}text"))
            placed = re.search(r"translate\(\S+ (\S+)\)", text.get("transform", ""))
            heights[text.text] = float(placed[1] if placed else text.get("y"))
    return heights


@pytest.mark.parametrize("n_arms", [1, 14, 15, 30])
def test_arms_of_the_picture_of_pulls_are_labelled_as_far_as_they_fit(n_arms):
    documents_KG = np.ones((n_arms, 3))
    drawing = arm_figures.pull_chart("pulls", "described", range(100, 100 + n_arms), [0, 1, 2], documents_KG)
    heights = tick_heights(drawing)
    assert next(iter(heights)) == "100"
    assert len(heights) >= min(n_arms, 8)
    assert n_arms > 14 or len(heights) == n_arms
    assert all(gap >= TEXT_PT for gap in np.diff(list(heights.values())))


def test_numbers_on_the_map_do_not_cover_one_another():
    points_N2 = np.array([[0.0, 0.0], [0.01, 0.01], [10.0, 10.0], [5.0, 0.1]])
    drawing = arm_figures.arm_map("map", "described", points_N2, np.arange(4), [0, 1, 2, 3])
    texts = {text.text for text in ElementTree.fromstring(drawing).iter(f"{{{SVG}}}text")}
    assert texts >= {"0", "2", "3"}
    assert "1" not in texts


def test_neighbouring_arms_differ_in_colour():
    colours = np.array([arm_figures.arm_colour(arm) for arm in range(50)])
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 0.3
