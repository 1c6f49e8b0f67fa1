"""Costs are shares of scoring the pool exactly; a scorer is taken where it ranks as exact scoring does."""

import numpy as np
import pytest

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import flops
from quad_tasks.experiments.lab.scorer_cost import document_costs, find_scorer, pool_flops, reading_cost


def test_costs_are_shares_of_scoring_the_pool_exactly(tiny_testbed):
    size = flops.model_size(tiny_testbed.model, find_blocks(tiny_testbed.model))
    exact, forward = flops.exact_flops(size), flops.forward_flops(size)
    n = tiny_testbed.n_tokens.astype(float)
    exact_N = exact.token * n + exact.target * (n - 1) + exact.pair * n**2
    np.testing.assert_allclose(document_costs(tiny_testbed), exact_N / exact_N.sum())
    assert pool_flops(tiny_testbed) == pytest.approx(exact_N.sum())
    forward_N = forward.token * n + forward.target * (n - 1) + forward.pair * n**2
    assert reading_cost(tiny_testbed) == pytest.approx(forward_N.sum() / exact_N.sum())


def test_the_scorer_found_ranks_as_exact_scoring_does_or_exact_scoring_goes_on(tiny_testbed):
    found = find_scorer(tiny_testbed.workspace, tiny_testbed.key, 100.0)
    assert found.scorer in ("forward_only", "low_rank")
    assert found.spearman >= 0.999
    assert 0 < found.cost < 1.2
    assert found.trial_cost > 0
    poor = find_scorer(tiny_testbed.workspace, tiny_testbed.key, 0.01)  # too little to try anything
    assert (poor.scorer, poor.cost, poor.trial_cost) == ("exact", 1.0, 0.0)


def test_the_scorer_asked_for_is_tried_in_the_models_precision(tiny_testbed):
    where = tiny_testbed.workspace, tiny_testbed.key, 100.0
    low_rank, exact = find_scorer(*where, "low_rank"), find_scorer(*where, "exact")
    assert low_rank.scorer in ("low_rank", "exact")
    assert (exact.scorer, exact.trial_cost) == ("exact", 0.0)
    assert find_scorer(*where, "forward_only", "bfloat16").trial_cost > 0
