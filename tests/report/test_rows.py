"""Which rows are shown, in which order."""

import pytest
from fake_report import fake_report

from quad_tasks.report import rows
from quad_tasks.report.model import Arm, ArmTexts, Finding, Report


def test_shares_by_source_are_right_by_hand():
    shares = {source.name: source for source in rows.source_shares(Report.model_validate(fake_report()))}
    assert list(shares) == ["stdlib_code", "hex_noise", "pydoc_topics"]
    topics, noise = shares["pydoc_topics"], shares["hex_noise"]
    assert (topics.pool_share, topics.share, topics.ratio) == pytest.approx((0.1, 0.8, 8.0))
    assert (noise.tokens, noise.share, noise.largest) == (0, 0.0, pytest.approx(0.2))


@pytest.mark.parametrize("side", ["pool", "selected"])
def test_sources_of_one_side_alone_are_not_compared(side):
    report = fake_report()
    report[side]["sources" if side == "pool" else "by_source"] = None
    assert rows.source_shares(Report.model_validate(report)) == ()


def test_the_first_and_the_last_rows_are_kept():
    assert rows.ends(range(5), 6) == (0, 1, 2, 3, 4)
    assert rows.ends(range(10), 4) == (0, 1, 8, 9)


def test_arms_are_ordered_by_reward_by_median_and_by_what_was_selected_of_them():
    arms = [
        Arm(arm=0, mean_reward=None, quantiles=None, selected_tokens=9, texts=ArmTexts()),
        Arm(arm=1, mean_reward=-1.0, quantiles=(0, 0, 3, 4, 5), selected_tokens=1000, texts=ArmTexts()),
        Arm(arm=2, mean_reward=2.0, quantiles=(0, 0, 4, 4, 5), selected_tokens=None, texts=ArmTexts()),
        Arm(arm=3, mean_reward=0.0, quantiles=(0, 0, 1, 4, 5), selected_tokens=4, texts=None),
    ]
    assert [arm.arm for arm in rows.arms_by_reward(arms)] == [2, 3, 1, 0]
    assert [arm.arm for arm in rows.arms_by_median(arms)] == [2, 1, 3]
    assert [arm.arm for arm in rows.arms_with_texts(arms)] == [1, 0, 2]
    assert rows.labelled_arms(arms) == (1, 0)  # 4 of 1,013 tokens are below the least share


def test_findings_of_unknown_severity_come_last():
    findings = [Finding(severity=severity) for severity in ("odd", "info", "severe", "warning")]
    assert [one.severity for one in rows.most_severe_first(findings)] == ["severe", "warning", "info", "odd"]


def test_facts_that_are_not_known_are_left_out():
    assert rows.known({"a": None, "b": 0, "c": {}, "d": (), "e": "", "f": False}) == {"b": 0, "f": False}


def test_the_median_of_an_arm_is_its_middle_quantile():
    assert rows.median_influence(Arm(quantiles=(0.0, 1.0, 2.0, 3.0, 4.0))) == 2.0
    assert rows.median_influence(Arm()) is None
