"""Outcomes: shares and scores worked by hand, and a checkpoint that training on it leaves as it was."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from quad_tasks.core.model import LlamaSize, fresh_llama
from quad_tasks.experiments import outcome


def test_the_gain_share_is_of_the_best_ones_gain_seed_by_seed():
    share = outcome.gain_share([5.0, 5.0], [4.5, 4.0], [4.0, 3.0])
    assert (share["mean"], share["low"], share["high"]) == pytest.approx((0.5, 0.5, 0.5))


def test_methods_are_compared_by_pairs():
    first, second = [1.0, 2.0, 3.0], [1.5, 2.4, 3.6]
    found = outcome.compare(first, second)
    assert found["mean"] == pytest.approx(-0.5)
    assert found["p"] == pytest.approx(ttest_rel(first, second).pvalue)
    assert found["low"] < -0.5 < found["high"] < 0


@pytest.mark.parametrize(("sign", "expected"), [(-1, 1.0), (1, -1.0)])
def test_the_datamodelling_score_is_one_where_more_influence_leaves_less_loss(sign, expected):
    influence = np.random.default_rng(0).normal(size=40)
    subsets = [np.random.default_rng(i).choice(40, 10, replace=False) for i in range(12)]
    losses = [5 + sign * float(influence[rows].sum()) for rows in subsets]
    found = outcome.datamodelling_score(influence, subsets, losses)
    assert found["mean"] == pytest.approx(expected)
    assert (found["low"], found["high"]) == pytest.approx((expected, expected))


def test_training_leaves_the_checkpoint_and_lowers_the_loss():
    model = fresh_llama(LlamaSize(16, 1, 2, 2, 32), 32, 16, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    documents = [[1, 2, 3, 4, 5, 6]] * 40
    trained = outcome.continue_training(model, documents, 1e-2, 16, 32, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert outcome.loss_per_token(trained, documents, 16, 64) < outcome.loss_per_token(model, documents, 16, 64)


def test_the_table_has_the_lowest_loss_first_and_differences_from_random_within_repeats():
    method = {"other_domains_bpb": [2.0, 2.0], "scored_share": 0.1, "time_s": 3.0}
    losses = {"random": [6.0, 5.2], "a": [5.0, 4.2], "b": [4.0, 4.0]}
    laid_out = outcome.table({name: {**method, "reference_loss": loss} for name, loss in losses.items()})
    assert laid_out.index("| b |") < laid_out.index("| a |") < laid_out.index("| random |")
    assert "| a | 10.0% | 4.600 | -1.000 ± 0.000 | 2.000 | +0.000 ± 0.000 | 3 s |" in laid_out
    assert "| random | 10.0% | 5.600 |  | 2.000 |  | 3 s |" in laid_out


def test_without_other_domains_nothing_is_said_of_them():
    methods = {"random": {"other_domains_bpb": [None, None]}, "quad": {"other_domains_bpb": [None, None]}}
    assert outcome.mean_and_difference(methods, "quad", "other_domains_bpb") == ("", "")
