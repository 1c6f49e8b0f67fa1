"""Failure signatures: what goes wrong in a run, measured, with what to do about it (method: "What goes wrong").

Owns one pure function per signature, each giving a `Finding` or nothing, and `diagnose`, which collects them. A
healthy run has none. Refuses to judge what was not measured or what too few documents tell.

Thresholds stand below with their reason. The homogeneity of arms is the intraclass correlation ICC(1) of one-way
random-effects analysis of variance (Shrout and Fleiss 1979), for arms of unequal size (Donner 1986).

Shapes: N scored documents, M documents scored twice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from quad_tasks.core.diversity import effective_arms

Severity = Literal["warning", "severe"]
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

FEWEST_DOCUMENTS = 30
"""Below it a correlation's standard error is near 0.2, and nothing is said."""
NARROW_SHARE = 0.2
"""Of a random selection's effective arms or Vendi score. The best eighth of a pool by influence keeps about a third of
the arms and half the Vendi score; one domain of fourteen keeps less than a fifth of either."""
HELDOUT_RISE = 0.02
"""Relative rise of the mean held-out loss. In the pilot plain top influence lowered the reference loss by 3.6 per cent
and raised the others' by 0.8; to pay more than twice that is no longer a small price."""
COSTLY_RATIO = 10.0
"""Scored tokens per selected token. Scoring a token costs about what training on it does, three forward passes, so
that above it choosing costs ten passes of training over what was chosen; scoring a whole pool to take a tenth does."""
RUINOUS_RATIO = 30.0
COLLAPSED_SHARE = 0.1
"""Of the arms that could have been pulled by half time. Exploring each of 100 arms once and pulling the best ten for
700 more pulls, which is what a bandit is for, leaves 0.18."""
ERROR_SHARE = 0.5
"""Wanted standard error of a pull's mean reward, in standard deviations between arms: two such arms are then two
standard errors apart."""
HOPELESS_FACTOR = 8.0
"""Needed over configured documents of a pull above which a larger pull is no remedy."""
STALE_CORRELATION = 0.8
"""Where influence is normally distributed, choosing by a score that has rank correlation ρ with the true one keeps
about ρ of its gain: below this, a fifth is lost."""
USELESS_CORRELATION = 0.5
SHORT_SHARE = 0.99
"""Of the token budget: documents are taken whole, so that the last few tokens may stay unspent."""
FAR_SHORT_SHARE = 0.9


@dataclass(frozen=True)
class Finding:
    """A failure signature that applies.

    Attributes:
        signature: its name, that of the function that found it.
        severity: `severe` where the run's result should not be used as it is.
        evidence: what was measured, by name; numbers are finite.
        remedy: what to change, naming configuration keys.
    """

    signature: str
    severity: Severity
    evidence: dict[str, float | str]
    remedy: str


@dataclass(frozen=True)
class Homogeneity:
    """How alike influence is within arms.

    Attributes:
        intraclass_correlation: share of the variance of influence that lies between arms, 0 to 1.
        between_variance: variance of arms' true means, influence per token squared.
        within_variance: variance within an arm.
    """

    intraclass_correlation: float
    between_variance: float
    within_variance: float


@dataclass(frozen=True)
class Measured:
    """What a run measured of itself; None or empty where it did not.

    Attributes:
        selected_tokens: tokens selected.
        budget_tokens: tokens wanted.
        pool_tokens: tokens of the pool.
        scored_tokens: tokens scored, all stages and rounds.
        time_s: seconds by step.
        influence_N: influence per token of the scored documents of one stage.
        arm_N: their arms.
        round_N: the rounds that scored them; 0 is the random pilot.
        n_arms: arms that have documents.
        documents_per_pull: documents of a whole pull.
        selected: diversity profile of the selection.
        random: diversity profile of as many random documents.
        reference_change: relative change of the reference loss by training on the selection.
        heldout_changes: the same by other domain.
        rescored: influence per token of the same documents in two stages, old and new [M] each.
    """

    selected_tokens: int
    budget_tokens: int
    pool_tokens: int
    scored_tokens: int
    time_s: Mapping[str, float]
    influence_N: FloatArray
    arm_N: IntArray
    round_N: IntArray
    n_arms: int
    documents_per_pull: int
    selected: Mapping[str, float]
    random: Mapping[str, float]
    reference_change: float | None
    heldout_changes: Mapping[str, float]
    rescored: tuple[FloatArray, FloatArray] | None = None


def diagnose(run: Measured) -> list[Finding]:
    """Collect the findings that apply to a run, severe ones first."""
    findings = [
        budget_not_reached(run.selected_tokens, run.budget_tokens, run.pool_tokens),
        too_little_diversity(run.selected, run.random, run.reference_change, run.heldout_changes),
        too_much_compute(run.scored_tokens, run.selected_tokens, run.time_s),
        bandit_collapsed(run.arm_N, run.round_N, run.n_arms),
        arms_not_homogeneous(run.influence_N, run.arm_N, run.documents_per_pull),
        stale_influence(*run.rescored) if run.rescored is not None else None,
    ]
    return sorted((f for f in findings if f is not None), key=lambda finding: finding.severity != "severe")


def diagnose_rounds(
    influence_N: FloatArray,
    arm_N: IntArray,
    round_N: IntArray,
    n_arms: int,
    documents_per_pull: int,
    scored_tokens: int,
    budget_tokens: int,
) -> list[Finding]:
    """Collect the findings that a stage's rounds tell before anything is selected.

    Args:
        influence_N: influence per token of the documents drawn at random so far.
        arm_N: their arms.
        round_N: the rounds that drew them; 0 is the random pilot.
        n_arms: arms that have documents.
        documents_per_pull: documents a whole pull draws at random.
        scored_tokens: tokens scored so far, however drawn.
        budget_tokens: tokens the stage is to select.
    """
    findings = [
        bandit_collapsed(arm_N, round_N, n_arms),
        arms_not_homogeneous(influence_N, arm_N, documents_per_pull),
        too_much_compute(scored_tokens, budget_tokens, {}),
    ]
    return [finding for finding in findings if finding is not None]


def budget_not_reached(selected_tokens: int, budget_tokens: int, pool_tokens: int) -> Finding | None:
    """Find that fewer tokens were selected than wanted."""
    share = selected_tokens / budget_tokens
    if share >= SHORT_SHARE:
        return None
    evidence: dict[str, float | str] = {
        "selected_tokens": selected_tokens,
        "budget_tokens": budget_tokens,
        "pool_tokens": pool_tokens,
        "share_of_budget": share,
    }
    if pool_tokens < budget_tokens:
        remedy = "The pool holds fewer tokens than the budget: add data to it or lower selection.budget_tokens."
    else:
        remedy = (
            "Too few documents passed the threshold before the run stopped: lower bandit.threshold_quantile, raise "
            "bandit.max_rounds or bandit.max_scored_share, or lower selection.budget_tokens."
        )
    return Finding("budget_not_reached", "severe" if share < FAR_SHORT_SHARE else "warning", evidence, remedy)


def too_little_diversity(
    selected: Mapping[str, float],
    random: Mapping[str, float],
    reference_change: float | None,
    heldout_changes: Mapping[str, float],
) -> Finding | None:
    """Find a narrow selection, or one that pays for the reference with the other domains; severe when both.

    Args:
        selected: diversity profile of the selection (`diversity.diversity_profile`).
        random: the same of as many random documents of the pool.
        reference_change: relative change of the reference loss by training on the selection (-0.03: three per cent
            lower); None: not measured.
        heldout_changes: the same by other domain.
    """
    compared = [name for name in ("effective_arms", "vendi_score") if name in selected and name in random]
    shares = {f"{name}_share": selected[name] / random[name] for name in compared}
    narrow = any(share < NARROW_SHARE for share in shares.values())
    rise = float(np.mean(list(heldout_changes.values()))) if heldout_changes else 0.0
    paid = reference_change is not None and reference_change < 0 and rise > HELDOUT_RISE
    if not narrow and not paid:
        return None
    evidence: dict[str, float | str] = dict(shares)
    if reference_change is not None and heldout_changes:
        worst = max(heldout_changes, key=lambda domain: heldout_changes[domain])
        evidence |= {"reference_change": reference_change, "heldout_change": rise}
        evidence |= {"worst_domain": worst, "worst_domain_change": heldout_changes[worst]}
    remedy = (
        "Good scores can make a poor model: lower bandit.threshold_quantile, raise bandit.alpha or "
        "selection.general_share, or widen the reference set by what the model must not unlearn."
    )
    return Finding("too_little_diversity", "severe" if narrow and paid else "warning", evidence, remedy)


def too_much_compute(scored_tokens: int, selected_tokens: int, time_s: Mapping[str, float]) -> Finding | None:
    """Find that choosing cost too much for what was chosen."""
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
        "bandit.max_scored_share or bandit.oversample; or score more cheaply, by a scorer that passes calibration."
    )
    return Finding("too_much_compute", "severe" if ratio > RUINOUS_RATIO else "warning", evidence, remedy)


def bandit_collapsed(arm_N: IntArray, round_N: IntArray, n_arms: int) -> Finding | None:
    """Find that in the first half of the rounds few arms had nearly all the pulls.

    Args:
        arm_N: arms of the scored documents of one stage.
        round_N: rounds that scored them; round 0, the random pilot, does not count.
        n_arms: arms that have documents.
    """
    halfway = math.ceil(int(round_N.max(initial=0)) / 2)
    early_N = (round_N >= 1) & (round_N <= halfway)
    pulls = np.unique(np.stack([round_N[early_N], arm_N[early_N]]), axis=1)
    n_pulls = pulls.shape[1]
    if n_pulls == 0:
        return None
    effective = effective_arms(np.bincount(pulls[1]))
    reachable = min(n_arms, n_pulls)
    if effective >= COLLAPSED_SHARE * reachable:
        return None
    evidence: dict[str, float | str] = {"rounds": halfway, "pulls": n_pulls}
    evidence |= {"effective_arms": effective, "reachable_arms": reachable}
    remedy = "The bandit stopped exploring too early: raise bandit.alpha, or set bandit.propagation."
    return Finding("bandit_collapsed", "warning", evidence, remedy)


def arms_not_homogeneous(influence_N: FloatArray, arm_N: IntArray, documents_per_pull: int) -> Finding | None:
    """Find that a pull's mean reward says too little about its arm.

    Args:
        influence_N: influence per token of scored documents, drawn at random within their arms.
        arm_N: their arms.
        documents_per_pull: documents of a whole pull.
    """
    spread = homogeneity(influence_N, arm_N)
    if spread is None or len(influence_N) < FEWEST_DOCUMENTS:
        return None
    wanted = ERROR_SHARE * math.sqrt(spread.between_variance)
    needed = documents_for_error(spread.within_variance, wanted) if wanted > 0 else None
    if needed is not None and needed <= documents_per_pull:
        return None
    evidence: dict[str, float | str] = {
        "intraclass_correlation": spread.intraclass_correlation,
        "between_arms_deviation": math.sqrt(spread.between_variance),
        "within_arms_deviation": math.sqrt(spread.within_variance),
        "wanted_standard_error": wanted,
        "documents_per_pull": documents_per_pull,
        "documents_needed": needed if needed is not None else "no number: arms do not differ",
    }
    hopeless = needed is None or needed > HOPELESS_FACTOR * documents_per_pull
    remedy = "Arms' means tell little about their documents: raise clustering.arms or try another embedding.method"
    remedy += "." if hopeless else f", or raise bandit.documents_per_pull to {needed}."
    return Finding("arms_not_homogeneous", "severe" if hopeless else "warning", evidence, remedy)


def stale_influence(old_M: FloatArray, new_M: FloatArray) -> Finding | None:
    """Find that the influence which chose the documents no longer ranks them.

    Args:
        old_M: influence per token when the documents were chosen.
        new_M: of the same documents at the newest checkpoint.
    """
    if len(old_M) < FEWEST_DOCUMENTS or np.ptp(old_M) == 0 or np.ptp(new_M) == 0:
        return None
    correlation = float(spearmanr(old_M, new_M).statistic)
    if correlation >= STALE_CORRELATION:
        return None
    evidence: dict[str, float | str] = {"rank_correlation": correlation, "documents": len(old_M)}
    remedy = "Influence moved with the model: use more, shorter training.stages, each refitted and gated."
    severity: Severity = "severe" if correlation < USELESS_CORRELATION else "warning"
    return Finding("stale_influence", severity, evidence, remedy)


def homogeneity(influence_N: FloatArray, arm_N: IntArray) -> Homogeneity | None:
    """Split the variance of influence into between and within arms.

    Args:
        influence_N: influence per token of documents drawn at random within their arms.
        arm_N: their arms; sizes may differ.

    Returns:
        None where there are fewer than two arms, or no arm has two documents.
    """
    _, group_N, size_A = np.unique(arm_N, return_inverse=True, return_counts=True)
    n, n_arms = len(arm_N), len(size_A)
    if n_arms < 2 or n == n_arms:
        return None
    centred_N = np.asarray(influence_N, np.float64) - np.mean(influence_N)
    mean_A = np.bincount(group_N, centred_N) / size_A
    within = float(np.square(centred_N - mean_A[group_N]).sum() / (n - n_arms))
    between_square = float((size_A * np.square(mean_A)).sum() / (n_arms - 1))
    typical_size = (n - np.square(size_A).sum() / n) / (n_arms - 1)
    between = max((between_square - within) / float(typical_size), 0.0)
    total = between + within
    return Homogeneity(between / total if total > 0 else 0.0, between, within)


def documents_for_error(within_variance: float, standard_error: float) -> int:
    """Return the documents of a pull whose mean has this standard error: variance / error², rounded up.

    Args:
        within_variance: variance of influence within an arm.
        standard_error: wanted, in the unit of influence, above 0.
    """
    return max(1, math.ceil(within_variance / standard_error**2))
