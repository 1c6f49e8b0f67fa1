"""Steps and subsets are measured from the checkpoint, and judged over the same resamples."""

import numpy as np
import pytest

from quad_tasks.experiments import outcome
from quad_tasks.experiments.attention import step_losses, validate_influence
from quad_tasks.experiments.sample import SCORES


def test_a_step_on_text_like_the_reference_leaves_less_loss(tiny_laboratory):
    sea = [row for row, text in enumerate(tiny_laboratory.texts.pool) if text.startswith("the captain")]
    law = [row for row, text in enumerate(tiny_laboratory.texts.pool) if text.startswith("section")]
    near, far = step_losses(tiny_laboratory.workspace, tiny_laboratory.key, [sea[:8], law[:8]])
    assert near < far
    assert step_losses(tiny_laboratory.workspace, tiny_laboratory.key, [sea[:8]]) == [near]


def test_every_kind_is_judged_on_the_same_subsets(tiny_laboratory):
    body = validate_influence(tiny_laboratory, subsets=6, steps=8)
    assert set(body["lds"]) == set(body["one_step"]) == set(SCORES)
    low, high = body["lds_interval"]["joint"]
    assert low <= body["lds"]["joint"] <= high
    assert [show["limit"] for show in body["shows"]] == [">= 0", ">= -0.01", ">= 0", ">= 0", ">= 0"]


def test_the_difference_of_two_scores_is_theirs():
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 40))
    subsets = [generator.choice(40, 10, replace=False) for _ in range(30)]
    losses = [-float(first[rows].sum()) for rows in subsets]
    difference = outcome.datamodelling_difference(first, second, subsets, losses)
    alone = [outcome.datamodelling_score(each, subsets, losses)["mean"] for each in (first, second)]
    assert difference["mean"] == pytest.approx(alone[0] - alone[1])
    assert alone[0] == pytest.approx(1.0)
    same = outcome.datamodelling_difference(first, first, subsets, losses)
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0}
