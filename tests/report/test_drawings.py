"""What the page draws is what the report holds: added up, in order, with gaps where nothing is known."""

import numpy as np
import pytest
from fake_report import fake_report

from quad_tasks.report import drawings
from quad_tasks.report.model import Report, Round


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the figures, by their name."""
    drawn = {}
    for module, function in (("figures", "over_rounds"), ("arm_figures", "band_over_rounds"), ("figures", "dot_pairs")):
        monkeypatch.setattr(
            f"quad_tasks.report.{module}.{function}",
            lambda name, _, values, *rest: drawn.update({name: (values, rest)}) or "",
        )
    return drawn


def test_accepted_tokens_of_the_rounds_are_added_up(drawn):
    drawings.rounds(Report.model_validate(fake_report()), "accepted_tokens", "accepted tokens so far", "described")
    values, rest = drawn["rounds-accepted-tokens"]
    assert values == [3_700.0 * (position + 1) for position in range(14)]
    assert rest == ([True] * 2 + [False] * 12, [], "accepted tokens so far", 50_000)


def test_the_curve_of_gain_is_what_is_not_left_by_what_it_cost(monkeypatch):
    seen = {}
    monkeypatch.setattr("quad_tasks.report.figures.curve", lambda name, _, *values: seen.update({name: values}) or "")
    rounds = [Round(cost_share=0.02, left=0.5, left_low=0.25, left_high=0.75), Round(cost_share=0.04, left=0.1)]
    drawings.gain_curve(rounds, "described")
    cost, middle, low, high, _ = seen["gain-curve"]
    assert cost == [2, 4]
    assert middle.tolist() == [50, 90]
    assert (low[0], high[0]) == (25, 75)
    assert np.isnan(low[1])


def test_a_later_stage_starts_where_the_earlier_ended(drawn):
    report = fake_report()
    report["stages"].append(report["stages"][0] | {"stage": 1})
    drawings.rounds(Report.model_validate(report), "effective_arms", "effective number of arms", "described")
    values, (pilot, starts, _, ceiling) = drawn["rounds-effective-arms"]
    assert values == [20.0 - position for position in range(14)] * 2
    assert starts == [14]
    assert sum(pilot) == 4
    assert ceiling is None


def test_rounds_without_scores_are_gaps(drawn):
    drawings.ucb_scores(Report.model_validate(fake_report()).pulls, "described")
    low, (median, high, _) = drawn["ucb-score"]
    assert np.isnan(low[:2]).all()
    assert np.isnan(high[:2]).all()
    np.testing.assert_allclose(median[2:], [0.2 + position / 50 for position in range(12)])
