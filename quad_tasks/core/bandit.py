"""Which arms to pull next, and what their pulls teach: pure functions on `BanditState` (method: "The bandit").

Owns the Cluster Score of Zhang et al. 2025 (arXiv 2409.16986), here ``ucb_score``, and three other policies over the
same state. All score an arm by what its mean reward may be:

    paper        mean_i + α σ sqrt(2 ln(Σ_j T_j) / T_i)      UCB1 (Auer et al. 2002), σ making α free of reward's scale
    released     mean_i + α sqrt(2 ln(Σ_j T_j) / (T_i + 1))  the published code, rewards less τ, its accounting mended
    thompson     a draw from N(mean_i, σ² / T_i)             (Thompson 1933)
    contextual   m_i + α s_i sqrt(2 ln(Σ_j T_j))             m_i, s_i: posterior given arm features (`contextual.py`)

Refuses to draw documents or score them, and to say when a run is over: callers do. Every update sums pulls in the
order (arm, cursor), so that the order in which they were scored cannot be seen in the result.

Shape suffixes: K arms, P pulls, M pairs of neighbours, D arm features.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quad_tasks.core.contextual import arm_posterior
from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.records import BanditState, Pull

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
PolicyName = Literal["paper", "released", "thompson", "contextual"]
Propagation = Literal["none", "weights", "released"]

ARMS_PER_ROUND = 8
DOCUMENTS_PER_PULL = 16
PAPER_ALPHA = 1.0
"""UCB1's own weight (Auer et al. 2002, figure 1), rewards being measured in their standard deviation."""
UNVISITED_PRIOR_PULLS = 1.0
"""What an arm counts as known by where not every arm can be visited: as much as one pull tells."""
RELEASED_ALPHA = 1e-4
RELEASED_ARMS_PER_ROUND = 50
RELEASED_DOCUMENTS_PER_PULL = 10
RELEASED_THRESHOLD = 2e-3
RELEASED_BANDWIDTH = 0.2
"""The five of the published code's `Quad.py`: alpha, batch, batchsize, what it takes off a reward, threshold."""
RELEASED_EXTRA_PULL = 1.0
"""What the published code adds to T_i in the bonus, which also gives an unvisited arm a finite score."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How arms are chosen and how rewards are counted.

    Attributes:
        name: which score ranks the arms.
        alpha: weight of the exploration bonus, >= 0; `thompson` has none and ignores it.
        arms_per_round: k, arms chosen in a round.
        documents_per_pull: m, documents of a whole pull; a pull of n documents counts n / m.
        propagation: what neighbours hear of a pull: nothing, weight w_ij in S and T, or w_ij in S and 1 in T.
        scale_by_deviation: whether the bonus is measured in the pooled standard deviation of rewards.
        reward_offset: taken off every reward before it is counted, influence per token.
        prior_pulls: pulls at the mean reward of all arms with which each arm starts; 0 puts unvisited arms first.
        bonus_pulls: added to T_i in the bonus alone; above 0, an unvisited arm's score is finite.
        bandwidth: h of the neighbours' weights; None: chosen from the arms (`wasserstein.choose_bandwidth`).
    """

    name: PolicyName
    alpha: float
    arms_per_round: int
    documents_per_pull: int
    propagation: Propagation = "none"
    scale_by_deviation: bool = True
    reward_offset: float = 0.0
    prior_pulls: float = 0.0
    bonus_pulls: float = 0.0
    bandwidth: float | None = None


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
        propagation: what neighbours hear.
        visit_every_arm: False where there are more arms than pulls to spend: each arm then starts with one pull at
            the mean reward of all.

    Returns:
        The policy.
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


def thompson_policy(
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
    propagation: Propagation = "none",
) -> Policy:
    """Build the policy that draws each arm's mean from its posterior, each arm once first."""
    return Policy("thompson", 0.0, arms_per_round, documents_per_pull, propagation)


def contextual_policy(
    alpha: float = PAPER_ALPHA,
    arms_per_round: int = ARMS_PER_ROUND,
    documents_per_pull: int = DOCUMENTS_PER_PULL,
) -> Policy:
    """Build the policy in which arm features tell of arms not yet pulled; its features replace propagation."""
    return Policy("contextual", alpha, arms_per_round, documents_per_pull)


def initial_state(n_documents_K: npt.ArrayLike) -> BanditState:
    """Start with nothing drawn and nothing known.

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
    """Tell which arms have no document left, [K] bool."""
    return state.cursor >= state.n_documents


def mean_rewards(state: BanditState) -> Float64:
    """Compute each arm's mean reward ``S / T``.

    Returns:
        [K] influence per token, less the policy's offset; NaN where nothing is known.
    """
    mean_K = np.full(len(state.pulls), np.nan)
    np.divide(state.reward_sum, state.pulls, out=mean_K, where=state.pulls > 0)
    return mean_K


def reward_deviation(state: BanditState) -> float:
    """Compute σ, the population standard deviation of all own rewards; 0 before the second."""
    count, total, squares = state.reward_moments
    if count <= 0:
        return 0.0
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


def ucb_scores(state: BanditState, policy: Policy) -> Float64:
    """Compute the paper's Cluster Score of every arm.

    Args:
        state: what is known.
        policy: gives α, σ or none, and what is added to pulls.

    Returns:
        [K] scores; -inf for an exhausted arm; +inf for an unvisited one, unless ``prior_pulls`` or ``bonus_pulls``
        make it finite: its mean is then the mean reward of all arms, or 0 as in the published code.
    """
    pulls_K = state.pulls + policy.prior_pulls
    sums_K = state.reward_sum + policy.prior_pulls * _pooled_mean(state)
    mean_K = np.divide(sums_K, pulls_K, out=np.zeros(len(pulls_K)), where=pulls_K > 0)
    scale = policy.alpha * (reward_deviation(state) if policy.scale_by_deviation else 1.0)
    scores_K: Float64 = mean_K + scale * np.sqrt(_exploration(state)) * _inverse_root(pulls_K + policy.bonus_pulls)
    scores_K[pulls_K + policy.bonus_pulls <= 0] = np.inf
    scores_K[exhausted_arms(state)] = -np.inf
    return scores_K


def choose_arms(
    state: BanditState,
    policy: Policy,
    generator: np.random.Generator,
    features_KD: npt.NDArray[np.floating] | None = None,
) -> Int64:
    """Choose the arms of the next round: the best k that are not exhausted, best first.

    Args:
        state: what is known; not changed.
        policy: which score, and k.
        generator: breaks ties, and draws what `thompson` draws.
        features_KD: [K, D] features of the arms, of like scale (`contextual.arm_features`); for `contextual` only.

    Returns:
        At most k distinct arm numbers, fewer once fewer are left, none when every arm is exhausted.

    Raises:
        ValueError: `contextual` without features, or features of another number of arms.
    """
    scores_K = _scores(state, policy, generator, features_KD)
    count = min(policy.arms_per_round, int(np.count_nonzero(scores_K > -np.inf)))
    return _best(scores_K, count, generator)


def update(
    state: BanditState, pulls: Sequence[Pull], policy: Policy, neighbours: Neighbours | None = None
) -> BanditState:
    """Take a round's pulls into account.

    A pull of n documents counts n / m pulls. One without a single target tells nothing of its arm: only the cursor
    moves.

    Args:
        state: before the round; not changed.
        pulls: the round's, in any order; several from one arm must follow on each other.
        policy: gives m, the offset and the propagation.
        neighbours: the arms' neighbours; used, and needed, where the policy propagates.

    Returns:
        The state after the round.

    Raises:
        ValueError: a pull that does not start at its arm's cursor, runs past its end or has no finite reward, or
            propagation without neighbours.
    """
    ordered = sorted(pulls, key=lambda pull: (pull.arm, pull.cursor))
    cursor_K = _advance(state, ordered)
    counted = [pull for pull in ordered if pull.n_targets > 0]
    arm_P = np.array([pull.arm for pull in counted], dtype=np.int64)
    share_P = np.array([pull.n_documents for pull in counted], dtype=np.float64) / policy.documents_per_pull
    reward_P = np.array([pull.reward for pull in counted], dtype=np.float64) - policy.reward_offset
    pulls_K, reward_sum_K = state.pulls.copy(), state.reward_sum.copy()
    np.add.at(pulls_K, arm_P, share_P)
    np.add.at(reward_sum_K, arm_P, share_P * reward_P)
    if policy.propagation != "none":
        if neighbours is None:
            raise ValueError(f"neighbours: expected neighbour lists for propagation {policy.propagation!r}, got None")
        pair_P, target_M, weight_M = _heard(arm_P, neighbours)
        np.add.at(reward_sum_K, target_M, weight_M * (share_P * reward_P)[pair_P])
        np.add.at(pulls_K, target_M, share_P[pair_P] * (weight_M if policy.propagation == "weights" else 1.0))
    moments = np.array([share_P.sum(), share_P @ reward_P, share_P @ reward_P**2])
    return dataclasses.replace(
        state,
        cursor=cursor_K,
        pulls=pulls_K,
        reward_sum=reward_sum_K,
        reward_moments=state.reward_moments + moments,
        round=state.round + 1,
    )


def discount(state: BanditState, gamma: float) -> BanditState:
    """Let what was learned at an older checkpoint count less: ``S, T <- γ S, γ T``, and the moments with them.

    Means and σ stay; confidence falls. Cursors stay: a document is drawn once.

    Args:
        state: at the end of a stage; not changed.
        gamma: γ in [0, 1]; 0 forgets.

    Returns:
        The state the next stage starts from.

    Raises:
        ValueError: γ outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a share in [0, 1], got {gamma}")
    return dataclasses.replace(
        state,
        pulls=gamma * state.pulls,
        reward_sum=gamma * state.reward_sum,
        reward_moments=gamma * state.reward_moments,
    )


def _scores(
    state: BanditState,
    policy: Policy,
    generator: np.random.Generator,
    features_KD: npt.NDArray[np.floating] | None,
) -> Float64:
    if policy.name == "thompson":
        return _thompson_scores(state, generator)
    if policy.name == "contextual":
        return _contextual_scores(state, policy, features_KD)
    return ucb_scores(state, policy)


def _thompson_scores(state: BanditState, generator: np.random.Generator) -> Float64:
    """Draw every arm's mean reward; +inf where nothing is known, -inf where nothing is left."""
    error_K = reward_deviation(state) * _inverse_root(state.pulls)
    draws_K: Float64 = mean_rewards(state) + error_K * generator.standard_normal(len(error_K))
    draws_K[state.pulls <= 0] = np.inf
    draws_K[exhausted_arms(state)] = -np.inf
    return draws_K


def _contextual_scores(state: BanditState, policy: Policy, features_KD: npt.NDArray[np.floating] | None) -> Float64:
    """Upper confidence bounds under the posterior given arm features."""
    if features_KD is None or len(features_KD) != len(state.pulls):
        got = "None" if features_KD is None else f"{len(features_KD)} rows"
        raise ValueError(f"features_KD: expected features of {len(state.pulls)} arms, got {got}")
    mean_K, deviation_K = arm_posterior(features_KD, state.pulls, state.reward_sum, reward_deviation(state) ** 2)
    scores_K: Float64 = mean_K + policy.alpha * np.sqrt(_exploration(state)) * deviation_K
    scores_K[exhausted_arms(state)] = -np.inf
    return scores_K


def _exploration(state: BanditState) -> float:
    """``2 ln(Σ_j T_j)``, 0 until the first whole pull."""
    return float(2 * np.log(max(state.pulls.sum(), 1.0)))


def _pooled_mean(state: BanditState) -> float:
    """Mean of all own rewards; 0 before the first."""
    count, total, _ = state.reward_moments
    return float(total / count) if count > 0 else 0.0


def _inverse_root(pulls_K: Float64) -> Float64:
    """``1 / sqrt(T)``, 0 where T is 0: callers say what an unvisited arm scores."""
    root_K = np.zeros(len(pulls_K))
    np.divide(1.0, np.sqrt(pulls_K), out=root_K, where=pulls_K > 0)
    return root_K


def _best(scores_K: Float64, count: int, generator: np.random.Generator) -> Int64:
    """Positions of the `count` highest scores, highest first, ties in an order drawn from the generator."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    cut = np.partition(scores_K, len(scores_K) - count)[len(scores_K) - count]
    above = np.flatnonzero(scores_K > cut)
    tied = generator.permutation(np.flatnonzero(scores_K == cut))[: count - len(above)]
    chosen = np.concatenate((generator.permutation(above), tied))
    return chosen[np.argsort(-scores_K[chosen], kind="stable")].astype(np.int64)


def _advance(state: BanditState, ordered: Sequence[Pull]) -> Int64:
    """Move the cursors over pulls sorted by arm and cursor, checking each."""
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


def _heard(arm_P: Int64, neighbours: Neighbours) -> tuple[Int64, Int64, Float64]:
    """For each pair (pull, neighbour of its arm): the pull's position, the neighbour, the weight."""
    start_P, stop_P = neighbours.indptr[arm_P], neighbours.indptr[arm_P + 1]
    length_P = stop_P - start_P
    pair_P = np.repeat(np.arange(len(arm_P)), length_P)
    first_P = np.cumsum(length_P) - length_P
    position_M = np.arange(len(pair_P)) - first_P[pair_P] + start_P[pair_P]
    return (
        pair_P,
        neighbours.indices[position_M].astype(np.int64),
        neighbours.weights[position_M].astype(np.float64),
    )
