"""Gains, intervals and what other domains lost, by hand."""

import copy

import pytest
from fake_report import fake_report

from quad_tasks.report.model import Report
from quad_tasks.report.outcome import gain_interval, measure_outcome


def outcome_of(report):
    return measure_outcome(Report.model_validate(report))


def test_a_gain_is_random_less_selected_with_students_interval():
    # Gains .16 .15 .155: deviation .005; Student's t(2) = 4.302653.
    last = outcome_of(fake_report()).last
    assert last.gain == pytest.approx(0.155)
    half = 4.302653 * 0.005 / 3**0.5
    assert last.interval == pytest.approx((0.155 - half, 0.155 + half))
    assert last.seeds == 3


@pytest.mark.parametrize(("random", "selected"), [([5.0], [4.0]), ([5.0, 5.1], [4.0]), ([], [])])
def test_seeds_that_do_not_pair_or_are_fewer_than_two_give_no_interval(random, selected):
    assert gain_interval(random, selected) is None


def test_one_measured_document_gives_no_interval_however_many_the_seeds():
    report = fake_report()
    report["stages"][0]["gain"] = {"mean": 0.155, "low": None, "high": None, "documents": 1, "seeds": 3}
    last = outcome_of(report).last
    assert (last.interval, last.seeds) == (None, 3)
    assert last.gain == pytest.approx(0.155)
    assert last.without_interval == "one measured document, so without an interval"


def test_the_references_domain_comes_first_and_the_others_by_what_they_lost():
    domains = outcome_of(fake_report()).domains
    assert [domain.is_reference for domain in domains] == [True] + [False] * 5
    lost = [domain.loss_increase for domain in domains[1:]]
    assert lost == sorted(lost, reverse=True)
    assert lost == pytest.approx([0.05, 0.05, 0.05, 0.05, -0.01])
    assert outcome_of(fake_report()).mean_loss_increase == pytest.approx(0.038)


def test_the_scored_share_is_of_tokens():
    assert outcome_of(fake_report()).scored_share == pytest.approx(0.16)


def test_one_stage_without_control_leaves_no_comparison():
    report = fake_report()
    report["stages"].append(copy.deepcopy(report["stages"][0]))
    del report["stages"][1]["random"]
    outcome = outcome_of(report)
    assert outcome.stages == ()
    assert outcome.last is None
    assert outcome.domains == ()


def test_an_empty_report_has_no_outcome():
    outcome = outcome_of({})
    assert (outcome.last, outcome.domains, outcome.mean_loss_increase, outcome.scored_share) == (None, (), None, None)
