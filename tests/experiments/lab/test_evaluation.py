"""Datamodelling scores of influence that is the truth, claims by their limits, and tables worked by hand."""

import numpy as np
import pytest

from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.lab import evaluation


@pytest.mark.parametrize(("sign", "expected"), [(-1, 1.0), (1, -1.0)])
def test_the_datamodelling_score_is_one_where_more_influence_leaves_less_loss(sign, expected):
    influence = np.random.default_rng(0).normal(size=40)
    subsets = [np.random.default_rng(i).choice(40, 10, replace=False) for i in range(12)]
    losses = [5 + sign * float(influence[rows].sum()) for rows in subsets]
    found = evaluation.datamodelling_score(influence, subsets, losses)
    assert found.mean == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx((expected, expected))


def test_the_difference_of_two_scores_is_theirs():
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 40))
    subsets = [generator.choice(40, 10, replace=False) for _ in range(30)]
    losses = [-float(first[rows].sum()) for rows in subsets]
    difference = evaluation.datamodelling_difference(first, second, subsets, losses)
    alone = [evaluation.datamodelling_score(each, subsets, losses).mean for each in (first, second)]
    assert difference.mean == pytest.approx(alone[0] - alone[1])
    assert alone[0] == pytest.approx(1.0)
    assert evaluation.datamodelling_difference(first, first, subsets, losses) == Interval(0.0, 0.0, 0.0)


def test_a_claim_holds_by_its_mean_and_is_certain_by_its_whole_interval():
    found = Interval(0.9, 0.8, 1.0)
    holds = [evaluation.claim_least("share", found, limit) for limit in (0.7, 0.85, 0.95)]
    assert [(claim.holds, claim.certain) for claim in holds] == [(True, True), (True, False), (False, False)]
    most = [evaluation.claim_most("share", found, limit) for limit in (1.1, 0.95, 0.85)]
    assert [(claim.holds, claim.certain) for claim in most] == [(True, True), (True, False), (False, False)]
    assert holds[1].limit == ">= 0.85"


def test_the_table_has_the_lowest_loss_first_and_differences_from_random_within_repeats():
    losses = {"random": [6.0, 5.2], "a": [5.0, 4.2], "b": [4.0, 4.0]}
    others, costs = [2.0, 2.0], {"random": None, "a": 0.05, "b": 1.0}
    laid_out = evaluation.table(
        {name: evaluation.Outcome(loss, others, 0.1, 3.0, costs[name]) for name, loss in losses.items()}
    )
    assert laid_out.index("| b |") < laid_out.index("| a |") < laid_out.index("| random |")
    assert "| a | 5.0% | 10.0% | 4.600 | -1.000 ± 0.000 | 2.000 | +0.000 ± 0.000 |" in laid_out
    assert "| random |  | 10.0% | 5.600 |  | 2.000 |  |" in laid_out


def test_without_other_domains_nothing_is_said_of_them():
    assert evaluation.mean_and_difference([None, None], [None, None]) == ("", "")
    assert evaluation.measured_only([1.0, None]) is None
    assert evaluation.measured_only([1.0, 2.0]) == [1.0, 2.0]
