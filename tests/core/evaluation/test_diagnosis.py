"""Each failure planted and found, a healthy run left in peace,."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pydantic import BaseModel

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.diagnosis import (
    Finding,
    Measured,
    OverlapCounts,
    PullSize,
    arms_not_homogeneous,
    bandit_collapsed,
    budget_not_reached,
    diagnose,
    held_out_overlap,
    stale_influence,
    too_little_diversity,
    too_much_compute,
)
from quad_tasks.core.evaluation.homogeneity import homogeneity
from quad_tasks.core.evaluation.training_findings import gain_not_shown, too_few_steps, training_harmed

N_ARMS, ARMS_PER_ROUND, DOCUMENTS_PER_PULL = 100, 8, 16
PULL = PullSize(drawn=DOCUMENTS_PER_PULL, configured=DOCUMENTS_PER_PULL)
RANDOM = {"effective_arms": 80.0, "vendi_score": 20.0}
BROAD = {"effective_arms": 30.0, "vendi_score": 12.0}
NARROW = {"effective_arms": 3.0, "vendi_score": 9.0}


def pulls(arms_of_round: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arm and round of every document drawn, a pilot over all arms as round 0."""
    arm = [np.arange(N_ARMS), *(np.repeat(arms, DOCUMENTS_PER_PULL) for arms in arms_of_round)]
    return np.concatenate(arm), np.repeat(np.arange(len(arm)), [len(a) for a in arm])


def influence(arm: np.ndarray, between: float, within: float, seed: int = 0) -> np.ndarray:
    """Draw influence from the random-effects model itself."""
    generator = np.random.default_rng(seed)
    return generator.normal(0, between, arm.max() + 1)[arm] + generator.normal(0, within, len(arm))


def healthy_run() -> Measured:
    """A bandit that tries each arm once and then pulls the best ten, over 60 rounds."""
    exploring = np.array_split(np.random.default_rng(1).permutation(N_ARMS), 13)
    exploiting = [np.arange(8) + i % 3 for i in range(47)]
    arm, rounds = pulls([*exploring, *exploiting])
    values = influence(arm, between=1, within=1.3)  # the pilot's arms: 38 per cent of the variance
    return Measured(
        selected_tokens=99_500,
        budget_tokens=100_000,
        pool_tokens=2_000_000,
        scored_tokens=300_000,
        time_s={"score pulls": 50.0, "fit factors": 20.0},
        influence_N=values,
        arm_N=arm,
        pull_arm_P=arm,
        pull_round_P=rounds,
        n_arms=N_ARMS,
        pull=PULL,
        selected=BROAD,
        random=RANDOM,
        reference_change=-0.036,
        heldout_changes={"code": 0.01, "legal": 0.006},
        rescored=(values, values + influence(arm, between=0.1, within=0.1)),
    )


def present(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def test_a_healthy_run_has_no_finding() -> None:
    assert diagnose(healthy_run()) == []


def test_what_was_not_measured_is_not_judged() -> None:
    nothing = np.zeros(0)
    run = replace(
        healthy_run(),
        influence_N=nothing,
        arm_N=nothing.astype(int),
        pull_arm_P=nothing.astype(int),
        pull_round_P=nothing.astype(int),
        selected={},
        random={},
        reference_change=None,
        heldout_changes={},
        rescored=None,
        time_s={},
    )
    assert diagnose(run) == []


def test_every_planted_failure_is_found_the_severe_ones_first() -> None:
    arm, rounds = pulls([np.arange(8)] * 60)
    run = replace(
        healthy_run(),
        selected_tokens=80_000,
        scored_tokens=1_000_000,
        selected=NARROW,
        arm_N=arm,
        pull_arm_P=arm,
        pull_round_P=rounds,
        influence_N=influence(arm, between=0.3, within=1.5),
        rescored=(np.arange(100.0), np.random.default_rng(0).permutation(np.arange(100.0))),
        overlap=OverlapCounts(12, 8, 1000, 3),
        changes_from_start={"code": 0.04, "legal": 0.02, "math": 0.001},
        training=(3, 4096),
        gain=(-0.04, 0.02),
    )
    findings = diagnose(run)
    assert {f.signature for f in findings} == {
        "budget_not_reached",
        "too_little_diversity",
        "too_much_compute",
        "bandit_collapsed",
        "arms_not_homogeneous",
        "stale_influence",
        "held_out_overlap",
        "training_harmed",
        "too_few_steps",
        "gain_not_shown",
    }
    severities = [f.severity for f in findings]
    assert severities == sorted(severities, key=["severe", "warning"].index)
    json.dumps([f.evidence for f in findings], allow_nan=False)


def test_remedies_name_configuration_keys_that_exist() -> None:
    rows, flat = np.arange(60) % 6, np.random.default_rng(0).standard_normal(60)
    findings = [
        budget_not_reached(1, 100, 1000),
        budget_not_reached(1, 100, 10),
        too_little_diversity(NARROW, RANDOM, None, {}),
        too_much_compute(100, 1, {}),
        bandit_collapsed(*pulls([np.arange(8)] * 60), N_ARMS),
        arms_not_homogeneous(homogeneity(flat, rows), 60, PullSize(1, 1)),
        stale_influence(np.arange(40.0), -np.arange(40.0)),
        held_out_overlap(OverlapCounts(1, 1, 10, 0)),
        training_harmed({"code": 0.04}),
        too_few_steps(1, 4096),
        gain_not_shown(-0.1, 0.1),
    ]
    keys = {key for f in findings for key in re.findall(r"\b[a-z]+\.[a-z_]+\b", present(f).remedy)}
    assert len(keys) >= 8
    for key in keys:
        section, field = key.split(".")
        annotation = RunConfig.model_fields[section].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        assert field in annotation.model_fields


@pytest.mark.parametrize(("selected", "severity"), [(99_000, None), (98_000, "warning"), (89_000, "severe")])
def test_a_budget_is_reached_up_to_the_last_documents(selected: int, severity: str | None) -> None:
    finding = budget_not_reached(selected, 100_000, 10**6)
    assert (finding.severity if finding else None) == severity


def test_a_pool_smaller_than_the_budget_is_named_as_the_cause() -> None:
    assert "add data" in present(budget_not_reached(50, 100, 60)).remedy
    assert "threshold" in present(budget_not_reached(50, 100, 600)).remedy


@pytest.mark.parametrize("measure", ["effective_arms", "vendi_score"])
def test_a_selection_narrow_in_either_measure_is_found(measure: str) -> None:
    finding = present(too_little_diversity({**BROAD, measure: 1.0}, RANDOM, None, {}))
    assert finding.severity == "warning"
    assert finding.evidence[f"{measure}_share"] == pytest.approx(1 / RANDOM[measure])


def test_heldout_losses_that_rise_while_the_reference_falls_are_found() -> None:
    changes = {"code": 0.01, "legal": 0.09}
    finding = present(too_little_diversity(BROAD, RANDOM, -0.1, changes))
    assert (finding.severity, finding.evidence["worst_domain"]) == ("warning", "legal")
    assert finding.evidence["heldout_change"] == pytest.approx(0.05)
    assert present(too_little_diversity(NARROW, RANDOM, -0.1, changes)).severity == "severe"


def test_losses_that_all_rise_are_another_failure() -> None:
    assert too_little_diversity(BROAD, RANDOM, 0.1, {"code": 0.2}) is None


@pytest.mark.parametrize(("ratio", "severity"), [(10, None), (11, "warning"), (31, "severe")])
def test_scored_tokens_per_selected_token_are_bounded(ratio: int, severity: str | None) -> None:
    finding = too_much_compute(1000 * ratio, 1000, {"score": 3.0, "fit": 1.0})
    assert (finding.severity if finding else None) == severity
    if finding:
        assert finding.evidence["scored_per_selected_token"] == ratio
        assert (finding.evidence["slowest_step"], finding.evidence["slowest_step_share"]) == ("score", 0.75)


def test_scoring_much_and_selecting_nothing_is_found() -> None:
    assert present(too_much_compute(10**6, 0, {})).severity == "severe"


def test_a_bandit_that_repeats_the_same_arms_has_collapsed() -> None:
    finding = present(bandit_collapsed(*pulls([np.arange(8)] * 60), N_ARMS))
    assert finding.evidence == {
        "rounds": 30,
        "pulls": 240,
        "effective_arms": pytest.approx(8),
        "reachable_arms": N_ARMS,
    }


@pytest.mark.parametrize("n_rounds", [0, 1, 10])
def test_few_rounds_cannot_have_collapsed(n_rounds: int) -> None:
    assert bandit_collapsed(*pulls([np.arange(8)] * n_rounds), N_ARMS) is None


def test_collapsing_late_is_what_a_bandit_is_for() -> None:
    everywhere = [np.arange(8) + 8 * (i % 12) for i in range(30)]
    assert bandit_collapsed(*pulls([*everywhere, *([np.arange(8)] * 30)]), N_ARMS) is None


def test_mixed_arms_are_found_with_the_pull_they_would_need() -> None:
    arm = np.repeat(np.arange(300), 30)
    finding = present(arms_not_homogeneous(homogeneity(influence(arm, between=1, within=3), arm), len(arm), PULL))
    needed = finding.evidence["documents_needed"]
    assert finding.severity == "warning"
    assert needed == pytest.approx(4 * 9, rel=0.25)
    assert f"raise bandit.documents_per_pull to {needed}" in finding.remedy
    assert finding.evidence["wanted_standard_error"] == pytest.approx(0.5, rel=0.15)


def test_a_pull_is_judged_by_the_documents_it_draws_at_random() -> None:
    """Ten documents tell these arms apart: a pull of 16 does if all are random, not if 4 are; 40 would then draw 10."""
    arm = np.repeat(np.arange(300), 30)
    found = homogeneity(influence(arm, between=1, within=1.6), arm)
    assert arms_not_homogeneous(found, len(arm), PullSize(drawn=16, configured=16)) is None
    finding = present(arms_not_homogeneous(found, len(arm), PullSize(drawn=4, configured=16)))
    needed = finding.evidence["documents_needed"]
    assert needed == pytest.approx(1.6**2 / 0.5**2, rel=0.25)
    assert f"raise bandit.documents_per_pull to {4 * int(needed)}" in finding.remedy


def test_arms_that_do_not_differ_need_other_arms_not_more_documents() -> None:
    arm = np.repeat(np.arange(20), 10)
    values = np.tile(np.arange(10.0), 20)
    finding = present(arms_not_homogeneous(homogeneity(values, arm), len(arm), PULL))
    assert finding.severity == "severe"
    assert isinstance(finding.evidence["documents_needed"], str)
    assert "documents_per_pull" not in finding.remedy


@pytest.mark.parametrize(("correlation", "severity"), [(0.95, None), (0.65, "warning"), (0.1, "severe")])
def test_influence_is_stale_when_its_ranking_changed(correlation: float, severity: str | None) -> None:
    generator = np.random.default_rng(0)
    old, noise = generator.standard_normal((2, 4000))
    new = correlation * old + math.sqrt(1 - correlation**2) * noise
    finding = stale_influence(old, np.exp(new))  # only ranks count
    assert (finding.severity if finding else None) == severity
    if finding:
        assert finding.evidence["rank_correlation"] == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize("new", [np.zeros(40), -np.arange(10.0)], ids=["constant", "too few"])
def test_a_ranking_that_cannot_be_compared_is_not_stale(new: np.ndarray) -> None:
    assert stale_influence(np.arange(float(len(new))), new) is None


def test_held_out_text_is_found_in_the_pool_or_in_the_reference_alone() -> None:
    assert held_out_overlap(OverlapCounts(pool_documents=500)) is None
    finding = present(held_out_overlap(OverlapCounts(5, 2, 500, 0)))
    assert finding.severity == "warning"
    assert finding.evidence == {"documents": 5, "share": 0.01, "verbatim": 2, "reference_documents": 0}
    assert present(held_out_overlap(OverlapCounts(reference_documents=1))).evidence["share"] == 0
