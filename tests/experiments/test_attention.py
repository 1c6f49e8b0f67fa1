"""Steps and subsets are measured from the checkpoint, and judged over the same resamples."""

import pytest

from quad_tasks.experiments.attention import draw, lay_out, step_losses, validate_influence
from quad_tasks.experiments.lab.corpus_sample import SCORES


def test_a_step_on_text_like_the_reference_leaves_less_loss(tiny_testbed):
    sea = [row for row, text in enumerate(tiny_testbed.texts.pool) if text.startswith("the captain")]
    law = [row for row, text in enumerate(tiny_testbed.texts.pool) if text.startswith("section")]
    near, far = step_losses(tiny_testbed.workspace, tiny_testbed.key, [sea[:8], law[:8]])
    assert near < far
    assert step_losses(tiny_testbed.workspace, tiny_testbed.key, [sea[:8]]) == [near]


def test_a_step_is_measured_as_training_on_its_batch_alone(tiny_testbed):
    place = (tiny_testbed.workspace, tiny_testbed.key)
    together = step_losses(*place, [[0, 1, 2], [3, 4, 5]])
    assert together == [*step_losses(*place, [[0, 1, 2]]), *step_losses(*place, [[3, 4, 5]])]


def test_every_kind_is_judged_on_the_same_subsets(tiny_testbed):
    result = validate_influence(tiny_testbed, n_subsets=6, n_steps=8)
    assert set(result.lds) == set(result.one_step) == set(SCORES)
    found = result.lds_of("joint")
    assert found.low <= found.mean == result.lds["joint"] <= found.high
    assert [claim.limit for claim in result.shows] == [">= 0", ">= -0.01", ">= 0", ">= 0", ">= 0"]
    assert result.shows[0].measured == pytest.approx(result.lds["joint"] - result.lds["split"])
    assert all(lay_out(result).values())
    assert set(draw(result)) == {"validity"}
