"""Multi-armed bandit over clusters: choose the arms to pull, update their statistics.

Pure functions on `BanditState`. Owns the Cluster Score of Zhang et al. 2025 (arXiv 2409.16986), here `ucb_scores`, and
three other policies over the same state. Each scores an arm by an optimistic or sampled value of its mean reward:

    paper        mean_i + α σ sqrt(2 ln(Σ_j T_j) / T_i)      UCB1 (Auer et al. 2002), σ making α free of reward's scale
    released     mean_i + α sqrt(2 ln(Σ_j T_j) / (T_i + 1))  the published code, rewards less τ, accounting corrected
    thompson     a sample of N(mean_i, σ² / T_i)             (Thompson 1933)
    contextual   m_i + α s_i sqrt(2 ln(Σ_j T_j))             m_i, s_i: posterior given arm features (`contextual.py`)

T_i is the number of pulls of arm i. A reward is a pull's mean influence per token; > 0: training on its documents
lowers the reference loss. Refuses to read or score documents and to decide when a run ends: callers do. An update sums
pulls in the order (arm, cursor), so the result does not depend on the order in which they were scored.

Shape suffixes: K arms, P pulls, M pairs (pull, neighbour), D arm features.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quad_tasks.core.contextual import arm_posterior
from quad_tasks.core.group_sums import add_group_sums
from quad_tasks.core.wasserstein import Neighbours, neighbour_pairs
from quad_tasks.plugins import load_plugin
from quad_tasks.records import BanditState, Pull

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Features = npt.NDArray[np.floating] | None
Propagation = Literal["none", "weights", "released"]

ARMS_PER_ROUND = 8
DOCUMENTS_PER_PULL = 16
PAPER_ALPHA = 1.0
"""The weight of UCB1 (Auer et al. 2002, figure 1), for rewards in units of their standard deviation."""
UNVISITED_PRIOR_PULLS = 1.0
"""Prior weight of an arm, in pulls, where not every arm can be visited: that of one pull."""
RELEASED_ALPHA = 1e-4  # alpha of the published code's Quad.py
RELEASED_ARMS_PER_ROUND = 50  # its batch
RELEASED_DOCUMENTS_PER_PULL = 10  # its batchsize
RELEASED_THRESHOLD = 2e-3  # its reward offset
RELEASED_BANDWIDTH = 0.2  # its threshold, of distances between arms
RELEASED_EXTRA_PULL = 1.0
"""What the published code adds to T_i in the bonus, which also gives an unvisited arm a finite score."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules by which arms are chosen and rewards are counted.

    Attributes:
        name: which score ranks the arms, one of `plugins.plugin_names("policies")`.
        alpha: weight of the exploration bonus, >= 0; `thompson` has none and ignores it.
        arms_per_round: k, arms chosen in a round.
        documents_per_pull: m, documents of a whole pull; a pull of which n were scored counts n / m.
        propagation: how a pull of arm i counts for a neighbour j: not at all, with weight w_ij in S and T, or with w_ij
            in S and 1 in T.
        scale_by_deviation: whether the bonus is multiplied by the pooled standard deviation of rewards.
        reward_offset: subtracted from every reward before it is counted, influence per token.
        prior_pulls: pulls at the mean reward of all arms with which each arm starts; 0 puts unvisited arms first.
        bonus_pulls: added to T_i in the bonus alone; above 0, an unvisited arm's score is finite.
        bandwidth: h of the neighbours' weights; None: chosen from the arms (`wasserstein.choose_bandwidth`).
    """

    name: str
    alpha: float
    arms_per_round: int
    documents_per_pull: int
    propagation: Propagation = "none"
    scale_by_deviation: bool = True
    reward_offset: float = 0.0
    prior_pulls: float = 0.0
    bonus_pulls: float = 0.0
    bandwidth: float | None = None


ScoreArms = Callable[[BanditState, Policy, np.random.Generator, Features], Float64]
"""A policy's score of every arm, [K]: the highest are pulled; `quad_tasks.testing.check_policy` is its contract."""


def paper_policy(
    alpha: float = PAPER_ALPHA,
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
    propagation: Propagation = "none",
    visit_every_arm: bool = True,
) -> Policy:
    """Build the paper's policy: the Cluster Score, each arm once first.

    Args:
        alpha: weight of the bonus.
        arms_per_round: k.
        documents_per_pull: m.
        propagation: how pulls count for neighbours.
        visit_every_arm: False where there are more arms than pulls to spend: each arm then starts with one pull at
            the mean reward of all.
    """
    prior_pulls = 0.0 if visit_every_arm else UNVISITED_PRIOR_PULLS
    return Policy("paper", alpha, arms_per_round, documents_per_pull, propagation, prior_pulls=prior_pulls)


def released_policy(
    alpha: float = RELEASED_ALPHA,
    arms_per_round: int = RELEASED_ARMS_PER_ROUND,
    documents_per_pull: int = RELEASED_DOCUMENTS_PER_PULL,
    propagation: Propagation = "released",
    threshold: float = RELEASED_THRESHOLD,
) -> Policy:
    """Build the published code's policy: rewards centred by the threshold, no σ, T + 1 in the bonus."""
    return Policy(
        "released",
        alpha,
        arms_per_round,
        documents_per_pull,
        propagation,
        scale_by_deviation=False,
        reward_offset=threshold,
        bonus_pulls=RELEASED_EXTRA_PULL,
        bandwidth=RELEASED_BANDWIDTH,
    )


def centre_rewards(policy: Policy, threshold: float) -> Policy:
    """Return a policy whose rewards are counted less τ, as the published code does; others stay as they are."""
    return dataclasses.replace(policy, reward_offset=threshold) if policy.name == "released" else policy


def thompson_policy(
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
    propagation: Propagation = "none",
) -> Policy:
    """Build the Thompson sampling policy: each arm's mean is drawn from its posterior, each arm once first."""
    return Policy("thompson", 0.0, arms_per_round, documents_per_pull, propagation)


def contextual_policy(
    alpha: float = PAPER_ALPHA,
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
) -> Policy:
    """Build the policy that predicts arms not yet pulled from arm features, which replace propagation."""
    return Policy("contextual", alpha, arms_per_round, documents_per_pull)


def named_policy(
    name: str,
    alpha: float = PAPER_ALPHA,
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
    propagation: Propagation = "none",
) -> Policy:
    """Build the policy of an extension, which scores arms by the function of that name."""
    return Policy(name, alpha, arms_per_round, documents_per_pull, propagation)


def initial_state(n_documents_K: npt.ArrayLike) -> BanditState:
    """Create the state before the first pull.

    Args:
        n_documents_K: [K] documents in each arm, >= 0.

    Returns:
        The state before round 0.
    """
    n_documents = np.array(n_documents_K, dtype=np.int64)
    zeros = np.zeros(len(n_documents))
    return BanditState(
        n_documents=n_documents,
        cursor=np.zeros_like(n_documents),
        pulls=zeros,
        reward_sum=zeros.copy(),
        reward_moments=np.zeros(3),
        round=0,
    )


def exhausted_arms(state: BanditState) -> npt.NDArray[np.bool_]:
    """Find the arms that have no document left, [K] bool."""
    return state.cursor >= state.n_documents


def mean_rewards(state: BanditState) -> Float64:
    """Compute each arm's mean reward ``S / T``.

    Returns:
        [K] influence per token, less the policy's offset; NaN for an arm without pulls.
    """
    mean_K = np.full(len(state.pulls), np.nan)
    np.divide(state.reward_sum, state.pulls, out=mean_K, where=state.pulls > 0)
    return mean_K


def reward_deviation(state: BanditState) -> float:
    """Compute σ, the population standard deviation of all rewards, propagated ones excluded; 0 before the second."""
    count, total, squares = state.reward_moments
    if count <= 0:
        return 0.0
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


def ucb_scores(state: BanditState, policy: Policy) -> Float64:
    """Compute the paper's Cluster Score of every arm.

    Args:
        state: statistics of all arms.
        policy: gives α, whether σ scales the bonus, and the prior and bonus pulls.

    Returns:
        [K] scores; -inf for an exhausted arm; +inf for an unvisited one, unless ``prior_pulls`` or ``bonus_pulls``
        make it finite: its mean is then the mean reward of all arms, or 0 as in the published code.
    """
    # Mean reward, with the prior pulls at the mean of all arms: [K]
    pulls_K = state.pulls + policy.prior_pulls
    sums_K = state.reward_sum + policy.prior_pulls * _pooled_mean(state)
    mean_K = np.divide(sums_K, pulls_K, out=np.zeros(len(pulls_K)), where=pulls_K > 0)
    # Exploration bonus α σ sqrt(2 ln ΣT / T): [K]
    scale = policy.alpha * (reward_deviation(state) if policy.scale_by_deviation else 1.0)
    scores_K: Float64 = mean_K + scale * np.sqrt(_exploration(state)) * _inverse_root(pulls_K + policy.bonus_pulls)
    # Unvisited arms first, exhausted arms never
    scores_K[pulls_K + policy.bonus_pulls <= 0] = np.inf
    scores_K[exhausted_arms(state)] = -np.inf
    return scores_K


def choose_arms(
    state: BanditState,
    policy: Policy,
    generator: np.random.Generator,
    features_KD: npt.NDArray[np.floating] | None = None,
) -> Int64:
    """Choose the arms of the next round: the k best that are not exhausted, best first.

    Args:
        state: statistics of all arms; not changed.
        policy: gives the score, and k.
        generator: breaks ties, and samples the means of `thompson`.
        features_KD: [K, D] arm features (`contextual.arm_features`); for `contextual` only.

    Returns:
        At most k distinct arm numbers, fewer once fewer are left, none when every arm is exhausted.

    Raises:
        ValueError: `contextual` without features, or features of another number of arms.
    """
    scores_K = _arm_scores(state, policy, generator, features_KD)
    count = min(policy.arms_per_round, int(np.count_nonzero(scores_K > -np.inf)))
    return _top_arms(scores_K, count, generator)


def update(
    state: BanditState, pulls: Sequence[Pull], policy: Policy, neighbours: Neighbours | None = None
) -> BanditState:
    """Update the arms' statistics with a round's pulls.

    A pull of which n documents were scored counts n / m pulls. A pull without targets has no reward: it only moves the
    cursor.

    Args:
        state: the state before the round; not changed.
        pulls: the round's pulls, in any order; those of one arm must follow on each other.
        policy: gives m, the reward offset and the propagation.
        neighbours: the arms' neighbours; needed where the policy propagates.

    Returns:
        The state after the round.

    Raises:
        ValueError: a pull that does not start at its arm's cursor, runs past its end or has no finite reward, or
            propagation without neighbours.
    """
    # Order by (arm, cursor), check and move the cursors: [K]
    ordered = sorted(pulls, key=lambda pull: (pull.arm, pull.cursor))
    cursor_K = _advance_cursors(state, ordered)
    # Arms, weights (scored documents) / m and centred rewards of the pulls that have targets: [P] each
    counted = [pull for pull in ordered if pull.n_targets > 0]
    arm_P = np.array([pull.arm for pull in counted], dtype=np.int64)
    share_P = np.array([_n_scored(pull) for pull in counted], dtype=np.float64) / policy.documents_per_pull
    reward_P = np.array([pull.reward for pull in counted], dtype=np.float64) - policy.reward_offset
    # Add T and S of the pulled arms: [K]
    pulls_K = add_group_sums(state.pulls, share_P, arm_P)
    reward_sum_K = add_group_sums(state.reward_sum, share_P * reward_P, arm_P)
    if policy.propagation != "none":
        if neighbours is None:
            raise ValueError(f"neighbours: expected neighbour lists for propagation {policy.propagation!r}, got None")
        # Add weighted T and S of their neighbours, pair by pair: [M] onto [K]
        pair_M, target_M, weight_M = neighbour_pairs(arm_P, neighbours)
        share_M = share_P[pair_M] * (weight_M if policy.propagation == "weights" else 1.0)
        pulls_K = add_group_sums(pulls_K, share_M, target_M)
        reward_sum_K = add_group_sums(reward_sum_K, weight_M * (share_P * reward_P)[pair_M], target_M)
    # Count, sum and sum of squares of all rewards, for σ
    moments = np.array([share_P.sum(), share_P @ reward_P, share_P @ reward_P**2])
    return dataclasses.replace(
        state,
        cursor=cursor_K,
        pulls=pulls_K,
        reward_sum=reward_sum_K,
        reward_moments=state.reward_moments + moments,
        round=state.round + 1,
    )


def _arm_scores(state: BanditState, policy: Policy, generator: np.random.Generator, features_KD: Features) -> Float64:
    score: ScoreArms = load_plugin("policies", policy.name)
    scores_K = np.asarray(score(state, policy, generator, features_KD), dtype=np.float64)
    if scores_K.shape != state.pulls.shape or np.isnan(scores_K).any():
        raise ValueError(
            f"policy {policy.name!r}: expected a score for each of {len(state.pulls)} arms, none of them NaN"
        )
    return np.where(exhausted_arms(state), -np.inf, scores_K)


def score_by_ucb(
    state: BanditState, policy: Policy, generator: np.random.Generator, features_KD: Features = None
) -> Float64:
    """Score arms as `ucb_scores` does; the policies `paper` and `released`."""
    return ucb_scores(state, policy)


def score_by_thompson(
    state: BanditState, policy: Policy, generator: np.random.Generator, features_KD: Features = None
) -> Float64:
    """Sample every arm's mean reward; +inf for an unvisited arm, -inf for an exhausted one, [K]."""
    error_K = reward_deviation(state) * _inverse_root(state.pulls)
    samples_K: Float64 = mean_rewards(state) + error_K * generator.standard_normal(len(error_K))
    samples_K[state.pulls <= 0] = np.inf
    samples_K[exhausted_arms(state)] = -np.inf
    return samples_K


def score_by_context(
    state: BanditState, policy: Policy, generator: np.random.Generator, features_KD: Features = None
) -> Float64:
    """Compute upper confidence bounds under the posterior given arm features, [K].

    Raises:
        ValueError: no features, or those of another number of arms.
    """
    if features_KD is None or len(features_KD) != len(state.pulls):
        got = "None" if features_KD is None else f"{len(features_KD)} rows"
        raise ValueError(f"features_KD: expected features of {len(state.pulls)} arms, got {got}")
    mean_K, deviation_K = arm_posterior(features_KD, state.pulls, state.reward_sum, reward_deviation(state) ** 2)
    scores_K: Float64 = mean_K + policy.alpha * np.sqrt(_exploration(state)) * deviation_K
    scores_K[exhausted_arms(state)] = -np.inf
    return scores_K


def _exploration(state: BanditState) -> float:
    """Compute ``2 ln(Σ_j T_j)``; 0 until the first whole pull."""
    return float(2 * np.log(max(state.pulls.sum(), 1.0)))


def _pooled_mean(state: BanditState) -> float:
    """Compute the mean of all rewards, propagated ones excluded; 0 before the first."""
    count, total, _ = state.reward_moments
    return float(total / count) if count > 0 else 0.0


def _inverse_root(pulls_K: Float64) -> Float64:
    """Compute ``1 / sqrt(T)``, 0 where T is 0: callers score unvisited arms themselves, [K]."""
    root_K = np.zeros(len(pulls_K))
    np.divide(1.0, np.sqrt(pulls_K), out=root_K, where=pulls_K > 0)
    return root_K


def _top_arms(scores_K: Float64, count: int, generator: np.random.Generator) -> Int64:
    """Find the arms of the `count` highest scores, highest first, ties in random order."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # The lowest score that is chosen; arms above it are in, arms equal to it share the places left
    cut = np.partition(scores_K, len(scores_K) - count)[len(scores_K) - count]
    above = np.flatnonzero(scores_K > cut)
    tied = generator.permutation(np.flatnonzero(scores_K == cut))[: count - len(above)]
    chosen = np.concatenate((generator.permutation(above), tied))
    return chosen[np.argsort(-scores_K[chosen], kind="stable")].astype(np.int64)


def _advance_cursors(state: BanditState, ordered: Sequence[Pull]) -> Int64:
    """Move the cursors past pulls sorted by arm and cursor, checking each pull, [K]."""
    cursor_K = state.cursor.copy()
    for pull in ordered:
        if pull.cursor != cursor_K[pull.arm]:
            raise ValueError(f"arm {pull.arm}: expected a pull from cursor {cursor_K[pull.arm]}, got {pull.cursor}")
        left = state.n_documents[pull.arm] - pull.cursor
        if not 0 < pull.n_documents <= left:
            raise ValueError(f"arm {pull.arm}: expected a pull of 1 to {left} documents, got {pull.n_documents}")
        if pull.n_targets > 0 and not np.isfinite(pull.reward):
            raise ValueError(f"arm {pull.arm}: expected a finite reward at cursor {pull.cursor}, got {pull.reward}")
        cursor_K[pull.arm] += pull.n_documents
    return cursor_K


def _n_scored(pull: Pull) -> int:
    return pull.n_documents if pull.n_scored is None else pull.n_scored
