"""A training that raises most domains' loss, or is too short, is found; the price of a narrow selection is not."""

import pytest

from quad_tasks.core.evaluation.training_findings import FEWEST_STEPS, gain_not_shown, too_few_steps, training_harmed


def test_most_domains_worse_than_at_the_start_is_found_with_the_worst_named():
    found = training_harmed({"code": 0.05, "legal": 0.02, "fiction": -0.1, "math": 0.011})
    assert found is not None
    assert found.severity == "warning"
    assert found.evidence["domains"] == 4
    assert found.evidence["worse_domains"] == 3
    assert found.evidence["mean_change"] == pytest.approx((0.05 + 0.02 - 0.1 + 0.011) / 4)
    assert (found.evidence["worst_domain"], found.evidence["worst_domain_change"]) == ("code", 0.05)
    for key in ("training.learning_rate", "selection.budget_tokens", "selection.general_share"):
        assert key in found.remedy


def test_a_ruined_model_is_severe():
    found = training_harmed({"code": 0.4, "legal": 0.1})
    assert found is not None
    assert found.severity == "severe"


@pytest.mark.parametrize(
    "changes",
    [{}, {"code": 0.009, "legal": 0.008}, {"code": 0.3, "legal": -0.01}, {"code": -0.05, "legal": -0.02, "math": 0.5}],
)
def test_half_of_the_domains_or_a_small_rise_is_no_finding(changes):
    assert training_harmed(changes) is None


def test_a_training_shorter_than_its_optimizers_memory_is_found_and_of_one_step_is_severe():
    found = too_few_steps(FEWEST_STEPS - 1, 4096)
    assert found is not None
    assert (found.signature, found.severity, found.evidence["steps"]) == ("too_few_steps", "warning", 9)
    assert too_few_steps(1, 4096).severity == "severe"
    assert too_few_steps(FEWEST_STEPS, 4096) is None


@pytest.mark.parametrize(
    ("low", "high", "severity"),
    [(0.001, 0.2, None), (0.0, 0.2, "warning"), (-0.04, 0.02, "warning"), (-0.2, -0.1, "severe")],
)
def test_a_gain_is_shown_where_its_whole_interval_is_above_none(low, high, severity):
    found = gain_not_shown(low, high)
    assert (found and found.severity) == severity
    assert found is None or found.evidence == {"gain_low": low, "gain_high": high}
