"""Diagnose a run: detect known failures from its measurements and name remedies.

Owns one pure function per failure, each returning a `Finding` or None, and `diagnose`, which collects them. A healthy
run has no findings. Refuses to judge what was not measured, or measured on too few documents.
Each threshold below states its reason.

Shape suffixes: N scored documents, M documents scored twice, P pulls.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from quad_tasks.core.evaluation.diversity import effective_arms
from quad_tasks.core.evaluation.homogeneity import (
    ArmSpread,
    Homogeneity,
    documents_for_error,
    homogeneity,
    spread_homogeneity,
)
from quad_tasks.core.evaluation.training_findings import gain_not_shown, too_few_steps, training_harmed
from quad_tasks.records import Finding

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

FEWEST_DOCUMENTS = 30
"""With fewer, the standard error of a correlation is about 0.2 or more, and nothing is reported."""
NARROW_SHARE = 0.2
"""Smallest acceptable share of a random selection's effective arms or Vendi score. The best eighth of a pool by
influence keeps a third of the arms and half the Vendi score; one domain of fourteen keeps less than a fifth of both."""
HELDOUT_LOSS_INCREASE = 0.02
"""Largest acceptable relative increase of the mean held-out loss. In the pilot, plain top influence lowered the
reference loss by 3.6 per cent and raised the other losses by 0.8; more than twice that is no longer small."""
COSTLY_RATIO = 10.0
"""Largest acceptable ratio of scored to selected tokens. Scoring a token costs about as much as training on it, three
forward passes, so this is ten epochs of training on the selection: a whole pool scored to take a tenth of it."""
RUINOUS_RATIO = 30.0
"""Scored tokens per selected token from which the finding is severe."""
COLLAPSED_SHARE = 0.1
"""Smallest share of effective arms among those that could have been pulled in the first half of the rounds. A bandit
that explores each of 100 arms once and gives 700 more pulls to the best ten, as it should, is at 0.18."""
ERROR_SHARE = 0.5
"""Wanted standard error of a pull's mean reward, in standard deviations between arms: two arms one standard deviation
apart are then two standard errors apart."""
HOPELESS_FACTOR = 8.0
"""Ratio of needed to configured documents per pull above which a larger pull is no remedy."""
STALE_CORRELATION = 0.8
"""If influence is normally distributed, a selection by a score of rank correlation ρ with the true one keeps about ρ of
its gain: below this correlation a fifth is lost."""
USELESS_CORRELATION = 0.5
"""Correlation below which the finding is severe: half the gain is lost."""
SHORT_SHARE = 0.99
"""Share of the token budget that counts as reached: documents are taken whole, so a few tokens may stay unspent."""
FAR_SHORT_SHARE = 0.9
"""Share of the token budget below which the finding is severe."""


@dataclass(frozen=True)
class OverlapCounts:
    """How many documents hold held-out text.

    Attributes:
        documents: of the pool.
        verbatim: of these, documents that hold all of a held-out one, or are all held-out text.
        pool_documents: documents of the pool.
        reference_documents: documents of the reference that hold text of its measured part.
    """

    documents: int = 0
    verbatim: int = 0
    pool_documents: int = 0
    reference_documents: int = 0


@dataclass(frozen=True)
class PullSize:
    """Documents of a whole pull.

    Attributes:
        drawn: drawn at random from the pulled arm: these alone give its mean.
        configured: `bandit.documents_per_pull`, which counts those drawn for their prediction too.
    """

    drawn: int
    configured: int


@dataclass(frozen=True)
class Measured:
    """A run's measurements; None or empty where something was not measured.

    Attributes:
        selected_tokens: tokens selected.
        budget_tokens: tokens wanted.
        pool_tokens: tokens of the pool.
        scored_tokens: tokens scored in all stages and rounds.
        time_s: seconds by step.
        influence_N: [N] influence per token of one stage's documents drawn at random.
        arm_N: [N] their arms.
        pull_arm_P: [P] the arm of every pull of that stage.
        pull_round_P: [P] the pulls' rounds; 0 is the random pilot.
        n_arms: arms that have documents.
        pull: documents of a whole pull.
        selected: diversity profile of the selection.
        random: diversity profile of as many random documents.
        reference_change: relative change of the reference loss after training on the selection.
        heldout_changes: the same of each other domain's loss, by domain.
        rescored: influence per token of the same documents in two stages, old [M] and new [M].
        overlap: how many documents hold held-out text.
        changes_from_start: relative change of every domain's loss from the starting checkpoint to the last trained one.
        training: fewest optimizer steps of a training on a selection, and a step's target tokens; None: by a command.
        gain: interval of what the reference loss is lower by than after random tokens, in the last stage.
    """

    selected_tokens: int
    budget_tokens: int
    pool_tokens: int
    scored_tokens: int
    time_s: Mapping[str, float]
    influence_N: FloatArray
    arm_N: IntArray
    pull_arm_P: IntArray
    pull_round_P: IntArray
    n_arms: int
    pull: PullSize
    selected: Mapping[str, float]
    random: Mapping[str, float]
    reference_change: float | None
    heldout_changes: Mapping[str, float]
    rescored: tuple[FloatArray, FloatArray] | None = None
    overlap: OverlapCounts = OverlapCounts()
    changes_from_start: Mapping[str, float] | None = None
    training: tuple[int, int] | None = None
    gain: tuple[float, float] | None = None


def diagnose(run: Measured) -> list[Finding]:
    """Diagnose a finished run: collect its findings, severe ones first."""
    findings = [
        budget_not_reached(run.selected_tokens, run.budget_tokens, run.pool_tokens),
        too_little_diversity(run.selected, run.random, run.reference_change, run.heldout_changes),
        too_much_compute(run.scored_tokens, run.selected_tokens, run.time_s),
        bandit_collapsed(run.pull_arm_P, run.pull_round_P, run.n_arms),
        arms_not_homogeneous(homogeneity(run.influence_N, run.arm_N), len(run.influence_N), run.pull),
        stale_influence(*run.rescored) if run.rescored is not None else None,
        held_out_overlap(run.overlap),
        training_harmed(run.changes_from_start or {}),
        too_few_steps(*run.training) if run.training is not None else None,
        gain_not_shown(*run.gain) if run.gain is not None else None,
    ]
    return sorted((f for f in findings if f is not None), key=lambda finding: finding.severity != "severe")


def diagnose_rounds(
    spread: ArmSpread,
    pull_arm_P: IntArray,
    pull_round_P: IntArray,
    n_arms: int,
    pull: PullSize,
    scored_tokens: int,
    budget_tokens: int,
) -> list[Finding]:
    """Diagnose a stage by its rounds so far, before anything is selected.

    Args:
        spread: influence of the documents drawn at random so far, by arm.
        pull_arm_P: [P] the arm of every pull so far.
        pull_round_P: [P] the pulls' rounds; 0 is the random pilot.
        n_arms: arms that have documents.
        pull: documents of a whole pull.
        scored_tokens: tokens scored so far, by any draw.
        budget_tokens: tokens the stage will select.
    """
    findings = [
        bandit_collapsed(pull_arm_P, pull_round_P, n_arms),
        arms_not_homogeneous(spread_homogeneity(spread), int(spread.n_K.sum()), pull),
        too_much_compute(scored_tokens, budget_tokens, {}),
    ]
    return [finding for finding in findings if finding is not None]


def budget_not_reached(selected_tokens: int, budget_tokens: int, pool_tokens: int) -> Finding | None:
    """Detect a selection that falls short of its token budget."""
    share = selected_tokens / budget_tokens
    if share >= SHORT_SHARE:
        return None
    evidence: dict[str, float | str] = {"selected_tokens": selected_tokens, "budget_tokens": budget_tokens}
    evidence |= {"pool_tokens": pool_tokens, "share_of_budget": share}
    if pool_tokens < budget_tokens:
        remedy = "The pool holds fewer tokens than the budget: add data to it or lower selection.budget_tokens."
    else:
        remedy = (
            "Too few documents passed the threshold before the run stopped: lower bandit.threshold_quantile, raise "
            "bandit.max_rounds or bandit.max_cost_share, or lower selection.budget_tokens."
        )
    return Finding("budget_not_reached", "severe" if share < FAR_SHORT_SHARE else "warning", evidence, remedy)


def too_little_diversity(
    selected: Mapping[str, float],
    random: Mapping[str, float],
    reference_change: float | None,
    heldout_changes: Mapping[str, float],
) -> Finding | None:
    """Detect a selection of too little diversity, or one that raises the loss of other domains; severe when both.

    Args:
        selected: diversity profile of the selection (`diversity.diversity_profile`).
        random: the same of as many random documents of the pool.
        reference_change: relative change of the reference loss after training on the selection (-0.03: three per cent
            lower); None: not measured.
        heldout_changes: the same of each other domain's loss, by domain.
    """
    compared = [name for name in ("effective_arms", "vendi_score") if name in selected and name in random]
    shares = {f"{name}_share": selected[name] / random[name] for name in compared}
    narrow = any(share < NARROW_SHARE for share in shares.values())
    loss_increase = float(np.mean(list(heldout_changes.values()))) if heldout_changes else 0.0
    improved = reference_change is not None and reference_change < 0
    harmful = improved and loss_increase > HELDOUT_LOSS_INCREASE
    if not narrow and not harmful:
        return None
    evidence: dict[str, float | str] = dict(shares)
    if reference_change is not None and heldout_changes:
        worst = max(heldout_changes, key=lambda domain: heldout_changes[domain])
        evidence |= {"reference_change": reference_change, "heldout_change": loss_increase}
        evidence |= {"worst_domain": worst, "worst_domain_change": heldout_changes[worst]}
    remedy = (
        "Good scores can make a poor model: lower bandit.threshold_quantile, raise bandit.alpha or "
        "selection.general_share, or widen the reference set by what the model must not unlearn."
    )
    return Finding("too_little_diversity", "severe" if narrow and harmful else "warning", evidence, remedy)


def too_much_compute(scored_tokens: int, selected_tokens: int, time_s: Mapping[str, float]) -> Finding | None:
    """Detect a run that scored too many tokens for what it selected."""
    ratio = scored_tokens / max(selected_tokens, 1)
    if ratio <= COSTLY_RATIO:
        return None
    evidence: dict[str, float | str] = {
        "scored_tokens": scored_tokens,
        "selected_tokens": selected_tokens,
        "scored_per_selected_token": ratio,
    }
    if time_s:
        slowest = max(time_s, key=lambda step: time_s[step])
        evidence |= {"slowest_step": slowest, "slowest_step_share": time_s[slowest] / sum(time_s.values())}
    remedy = (
        "Score less: a smaller bandit.documents_per_pull, fewer clustering.arms (each is tried), a lower "
        "bandit.max_cost_share or bandit.oversample; or score more cheaply, by a scorer that passes calibration."
    )
    return Finding("too_much_compute", "severe" if ratio > RUINOUS_RATIO else "warning", evidence, remedy)


def bandit_collapsed(pull_arm_P: IntArray, pull_round_P: IntArray, n_arms: int) -> Finding | None:
    """Detect a bandit that stopped exploring early: in the first half of the rounds few arms had nearly all pulls.

    Args:
        pull_arm_P: [P] the arm of every pull of one stage.
        pull_round_P: [P] the pulls' rounds; round 0, the random pilot, does not count.
        n_arms: arms that have documents.
    """
    halfway = math.ceil(int(pull_round_P.max(initial=0)) / 2)
    early_P = (pull_round_P >= 1) & (pull_round_P <= halfway)
    # A round pulls an arm once; a pull is a round and an arm in one number: [pulls]
    n = int(pull_arm_P.max(initial=0)) + 1
    pulls = np.unique(pull_round_P[early_P].astype(np.int64) * n + pull_arm_P[early_P])
    n_pulls = len(pulls)
    if n_pulls == 0:
        return None
    effective = effective_arms(np.bincount(pulls % n))
    reachable = min(n_arms, n_pulls)
    if effective >= COLLAPSED_SHARE * reachable:
        return None
    evidence: dict[str, float | str] = {"rounds": halfway, "pulls": n_pulls}
    evidence |= {"effective_arms": effective, "reachable_arms": reachable}
    remedy = "The bandit stopped exploring too early: raise bandit.alpha, or set bandit.propagation."
    return Finding("bandit_collapsed", "warning", evidence, remedy)


def arms_not_homogeneous(variances: Homogeneity | None, documents: int, pull: PullSize) -> Finding | None:
    """Detect pulls that are too small to tell arms apart by their mean reward.

    A pull is judged by the documents it draws at random; the remedy names the whole pull that would draw enough.

    Args:
        variances: of scored documents, drawn at random within their arms; None where they tell none.
        documents: how many they are.
        pull: documents of a whole pull.
    """
    if variances is None or documents < FEWEST_DOCUMENTS:
        return None
    wanted = ERROR_SHARE * math.sqrt(variances.between_variance)
    needed = documents_for_error(variances.within_variance, wanted) if wanted > 0 else None
    if needed is not None and needed <= pull.drawn:
        return None
    evidence: dict[str, float | str] = {
        "intraclass_correlation": variances.intraclass_correlation,
        "between_arms_deviation": math.sqrt(variances.between_variance),
        "within_arms_deviation": math.sqrt(variances.within_variance),
        "wanted_standard_error": wanted,
        "documents_per_pull": pull.drawn,
        "documents_needed": needed if needed is not None else "no number: arms do not differ",
    }
    hopeless = needed is None or needed > HOPELESS_FACTOR * pull.drawn
    remedy = "Arms' means tell little about their documents: raise clustering.arms or try another embedding.method"
    remedy += (
        "."
        if hopeless or needed is None
        else f", or raise bandit.documents_per_pull to {-(-needed * pull.configured // pull.drawn)}."
    )
    return Finding("arms_not_homogeneous", "severe" if hopeless else "warning", evidence, remedy)


def stale_influence(old_M: FloatArray, new_M: FloatArray) -> Finding | None:
    """Detect stale influence: scores at the newest checkpoint rank documents differently than when they were scored.

    Args:
        old_M: [M] influence per token when the documents were scored first.
        new_M: [M] influence of the same documents at the newest checkpoint.
    """
    if len(old_M) < FEWEST_DOCUMENTS or np.ptp(old_M) == 0 or np.ptp(new_M) == 0:
        return None
    correlation = float(spearmanr(old_M, new_M).statistic)
    if correlation >= STALE_CORRELATION:
        return None
    evidence: dict[str, float | str] = {"rank_correlation": correlation, "documents": len(old_M)}
    remedy = "Influence moved with the model: use more, shorter training.stages, each refitted and gated."
    return Finding("stale_influence", "severe" if correlation < USELESS_CORRELATION else "warning", evidence, remedy)


def held_out_overlap(found: OverlapCounts) -> Finding | None:
    """Detect held-out text in the pool, or measured text in the reference that the direction is made from."""
    if not found.documents and not found.reference_documents:
        return None
    evidence: dict[str, float | str] = {
        "documents": found.documents,
        "share": found.documents / found.pool_documents if found.pool_documents else 0.0,
        "verbatim": found.verbatim,
        "reference_documents": found.reference_documents,
    }
    remedy = (
        "These documents are set aside and change no result: take them out of pool.inputs and reference.inputs, or "
        "measure on other documents (heldout.inputs). `quad inspect ID` names the held-out document that one holds; "
        "heldout.overlap_words sets how long a shared sequence must be."
    )
    return Finding("held_out_overlap", "warning", evidence, remedy)
