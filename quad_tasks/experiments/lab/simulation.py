"""Simulate what a run would select, in memory, where every document's influence is known beforehand.

The product's own policies, draws, regression, threshold and budget (`quad_tasks.core`), without ledger or storage:
scoring a document is reading its known influence, so that many configurations are tried in the time of one run.

Shape suffixes: N documents, D features or embedding, K arms, B selected documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import BanditConfig, SelectionConfig
from quad_tasks.core.bandit import Policy, choose_arms, initial_state, paper_policy, update
from quad_tasks.core.group_sums import group_means
from quad_tasks.core.selection.features import FeatureMatrix
from quad_tasks.core.selection.in_memory_selection import Candidates, Mode, SelectionSettings, select
from quad_tasks.core.selection.near_duplicates import near_duplicates_by_embedding
from quad_tasks.core.selection.prediction import fit_predictor, nearest_to_cut, predict, selection_cut
from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.experiments.lab.testbed import Testbed
from quad_tasks.records import Pull
from quad_tasks.stages.bandit.ledger import REFIT_GROWTH
from quad_tasks.stages.bandit.round_settings import pull_sizes

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

Influence = Float64 | Callable[[Int64], Float64]
"""Of all documents, [N] per token, or a function that scores rows."""

RUN = BanditConfig()
PULL = pull_sizes(RUN)
SELECTION = SelectionConfig.model_fields
ACTIVE = PULL.documents_per_pull - PULL.random_documents


def run_policy() -> Policy:
    """Build a run's default policy; its pulls draw at random what active draws leave."""
    return paper_policy(arms_per_round=PULL.arms_per_round, documents_per_pull=PULL.random_documents)


@dataclass(frozen=True)
class Rules:
    """Rules by which a simulated run spends its scores and selects; every default is a run's.

    Attributes:
        policy: chooses arms; its `documents_per_pull` are those drawn at random by a pull.
        active_documents: documents drawn near the selection's cut for each pull.
        scored_share: largest share of the pool that is scored, where no cost limits it.
        cost_share: model FLOPs that scoring may take, as a share of scoring the whole pool exactly; None: no limit.
        scorer_cost: FLOPs of scoring a document after the pilot, as a share of scoring it exactly.
        trial_cost: FLOPs of trying scorers on the pilot, as a share of scoring the whole pool exactly.
        pilot_documents: documents scored at random before the first round.
        mode: which documents are eligible.
        threshold_quantile: the pilot's quantile that becomes τ.
        threshold: τ itself; None: from the pilot.
        neighbours: of the arms, where the policy propagates.
        near_duplicate_cosine: a document this similar to a better one of its arm is dropped; None: none is.
        general_share: share of the budget drawn from the rest of the pool.
    """

    policy: Policy = field(default_factory=run_policy)
    active_documents: int = ACTIVE
    scored_share: float = 0.1
    cost_share: float | None = None
    scorer_cost: float = 1.0
    trial_cost: float = 0.0
    pilot_documents: int = RUN.pilot_documents
    mode: Mode = "predicted"
    threshold_quantile: float = RUN.threshold_quantile
    threshold: float | None = None
    neighbours: Neighbours | None = None
    near_duplicate_cosine: float | None = SELECTION["near_duplicate_cosine"].default
    general_share: float = SELECTION["general_share"].default


@dataclass(frozen=True)
class Pool:
    """The documents a simulated run selects from.

    Attributes:
        arm: [N] arm of each document, numbered from 0.
        n_tokens: [N].
        features: [N, D] the regression predicts influence from them.
        budget_tokens: tokens of a selection at most.
        embedding: [N, D] unit vectors that near-duplicates are found by; None: no document is dropped.
        groups: columns of the features that the regression may drop together, by name; None: it uses all.
        cost: [N] FLOPs of scoring a document exactly, as a share of scoring all; None: every document counts alike.
    """

    arm: Int32
    n_tokens: Int64
    features: Float64
    budget_tokens: int
    embedding: npt.NDArray[np.float32] | None = None
    groups: Mapping[str, slice] | None = None
    cost: Float64 | None = None


def pool_of(
    testbed: Testbed, features: FeatureMatrix, arm_N: Int32 | None = None, cost_N: Float64 | None = None
) -> Pool:
    """Take a testbed's documents as the pool.

    Args:
        testbed: holds the documents.
        features: of the regression (`testbed.prediction_features`).
        arm_N: [N] other arms than the testbed's own; None: its own.
        cost_N: [N] as `Pool.cost`.
    """
    arm_N = testbed.arm if arm_N is None else arm_N
    budget = testbed.size.budget_tokens
    return Pool(arm_N, testbed.n_tokens, features.values_NC, budget, testbed.embedding, features.groups, cost_N)


@dataclass(frozen=True)
class Scores:
    """Scores that a run has spent, and its predictions from them.

    Attributes:
        measured: [N] influence per token, NaN where not scored.
        estimate: [N] predicted influence per token, NaN where nothing is predicted.
        threshold: τ.
        at_random: [N] whether a document belongs to the random sample of its arm that pulls drew.
        cost_share: FLOPs of scoring, as a share of scoring the whole pool exactly.
    """

    measured: Float64
    estimate: Float64
    threshold: float
    at_random: Bool
    cost_share: float


@dataclass(frozen=True)
class Selection:
    """A simulated run's selection.

    Attributes:
        rows: [B] documents, best first.
        scored: [N] whether a document was scored.
        estimate: [N] influence per token, measured where scored, else predicted; NaN where neither.
        threshold: τ.
        cost_share: FLOPs of scoring, as a share of scoring the whole pool exactly.
    """

    rows: Int64
    scored: Bool
    estimate: Float64
    threshold: float
    cost_share: float


def simulate_selection(influence_N: Influence, pool: Pool, rules: Rules | None = None, seed: int = 0) -> Selection:
    """Spend scores as a run does, then select as it does.

    Args:
        influence_N: read only for the documents that are scored.
        pool: the documents.
        rules: how scores are spent; None: a run's defaults.
        seed: of every draw.
    """
    rules = rules or Rules()
    return select_from_scores(spend_scores(influence_N, pool, rules, seed), pool, rules, seed)


class _Drawn(NamedTuple):
    """Documents of one arm that a round draws: the arm's cursor before, and rows."""

    cursor: int
    rows: Int64


@dataclass
class _Purse:
    """What may still be spent on scores.

    Attributes:
        cost_N: [N] FLOPs of scoring a document exactly, as a share of scoring all.
        left: documents, or FLOPs as a share of scoring all exactly.
        counts_documents: whether `left` is documents.
        scorer_cost: FLOPs of scoring a document now, as a share of scoring it exactly.
        spent: FLOPs so far, as a share of scoring all exactly.
        is_empty: whether something could not be paid, or nothing is left.
    """

    cost_N: Float64
    left: float
    counts_documents: bool
    scorer_cost: float = 1.0
    spent: float = 0.0
    is_empty: bool = False

    def buy(self, rows: Int64, scored_N: Bool) -> Int64:
        """Pay for documents in their order as far as it goes, mark them as scored, return them; scores are kept."""
        cost_R = np.where(scored_N[rows], 0.0, self.scorer_cost * self.cost_N[rows])
        price_R = np.cumsum(~scored_N[rows] if self.counts_documents else cost_R)
        bought = rows[: np.searchsorted(price_R, self.left, side="right")]
        if len(bought):
            self.left -= float(price_R[len(bought) - 1])
            self.spent += float(cost_R[: len(bought)].sum())
        self.is_empty |= len(bought) < len(rows) or self.left <= 0
        scored_N[bought] = True
        return bought

    def end_pilot(self, rules: Rules) -> None:
        """Pay for the scorer's trial; from here on it scores."""
        self.spent += rules.trial_cost
        self.left -= 0.0 if self.counts_documents else rules.trial_cost
        self.is_empty |= self.left <= 0
        self.scorer_cost = rules.scorer_cost


def _fill_purse(pool: Pool, rules: Rules) -> _Purse:
    n = len(pool.arm)
    cost_N = np.full(n, 1 / n) if pool.cost is None else pool.cost
    by_count = rules.cost_share is None
    return _Purse(cost_N, int(rules.scored_share * n) if by_count else rules.cost_share or 0.0, by_count)


def spend_scores(influence_N: Influence, pool: Pool, rules: Rules, seed: int) -> Scores:
    """Score a random pilot, then rounds of pulls with draws near the cut beside them; arguments as above."""
    score = influence_N if callable(influence_N) else influence_N.__getitem__
    generator = np.random.default_rng(seed)
    size_K = np.bincount(pool.arm)
    order_K = [generator.permutation(np.flatnonzero(pool.arm == arm)) for arm in range(len(size_K))]
    rank_N = np.empty(len(pool.arm), dtype=np.int64)  # of each document in its arm's random order
    for order in order_K:
        rank_N[order] = np.arange(len(order))
    state, scored_N = initial_state(size_K), np.zeros(len(pool.arm), dtype=bool)
    measured_N, estimate_N = np.full(len(pool.arm), np.nan), np.full(len(pool.arm), np.nan)
    purse, n_fitted, cut = _fill_purse(pool, rules), 0, 0.0
    predicting = rules.mode == "predicted" or rules.active_documents > 0
    threshold, is_pilot = rules.threshold, True
    # the pilot: documents at random
    count_K = generator.multivariate_hypergeometric(size_K, _pilot_documents(pool, rules), method="marginals")
    while True:
        # draw: each pulled arm's next documents, then unscored ones near the cut
        drawn = _draw_from_arms(count_K, order_K, state.cursor, scored_N, purse)
        if rules.active_documents and n_fitted:
            unscored = np.flatnonzero(~scored_N)
            generator.permutation(len(unscored))  # the random stream stays that of the published results
            near = nearest_to_cut(estimate_N[unscored], cut, len(drawn) * rules.active_documents)
            purse.buy(unscored[near], scored_N)
        # score what was drawn; only pulls reward their arms
        new = np.flatnonzero(scored_N & np.isnan(measured_N))
        measured_N[new] = score(new)
        pulls = [_pull(arm, cursor, measured_N[rows]) for arm, (cursor, rows) in drawn.items()]
        if is_pilot:
            purse.end_pilot(rules)
            is_pilot = False
        if threshold is None:
            threshold = float(np.quantile(measured_N[scored_N], rules.threshold_quantile))
        state = update(state, pulls, rules.policy, rules.neighbours)
        done = purse.is_empty or not pulls
        # refit the regression once scores have grown enough, and at the end
        if predicting and (done or scored_N.sum() >= REFIT_GROWTH * n_fitted):
            n_fitted = int(scored_N.sum())
            estimate_N, cut = _predict(pool, measured_N, rank_N < state.cursor[pool.arm], generator)
        if done:
            at_random_N = rank_N < state.cursor[pool.arm]
            plausible_N = _plausible(estimate_N, measured_N, pool.arm, threshold)
            return Scores(measured_N, plausible_N, threshold, at_random_N, purse.spent)
        # choose the next round's arms
        chosen = choose_arms(state, rules.policy, generator)
        count_K = np.zeros_like(size_K)
        count_K[chosen] = np.minimum(rules.policy.documents_per_pull, (size_K - state.cursor)[chosen])


def _pilot_documents(pool: Pool, rules: Rules) -> int:
    """Count the pilot's documents: at most half of all scores."""
    share = rules.scored_share if rules.cost_share is None else rules.cost_share
    return min(rules.pilot_documents, -(-int(share * len(pool.arm)) // 2))


def _draw_from_arms(
    count_K: Int64, order_K: Sequence[Int64], cursor_K: Int64, scored_N: Bool, purse: _Purse
) -> dict[int, _Drawn]:
    """Draw the next documents of every arm until the scores are spent; mark them in `scored_N`."""
    drawn = {}
    for arm in np.flatnonzero(count_K).tolist():
        cursor = int(cursor_K[arm])
        rows = purse.buy(order_K[arm][cursor : cursor + int(count_K[arm])], scored_N)
        if len(rows):
            drawn[arm] = _Drawn(cursor, rows)
    return drawn


def _pull(arm: int, cursor: int, rewards: Float64) -> Pull:
    return Pull(arm, cursor, len(rewards), len(rewards), float(rewards.mean()), float(rewards.var()))


def _predict(
    pool: Pool, measured_N: Float64, at_random_N: Bool, generator: np.random.Generator
) -> tuple[Float64, float]:
    """Fit the regression on the scored documents; return everyone's prediction and the selection's cut."""
    scored_N, n_arms = ~np.isnan(measured_N), int(pool.arm.max()) + 1
    rows = np.flatnonzero(scored_N)
    known = pool.features[rows], measured_N[rows], pool.arm[rows], n_arms, generator
    predictor = fit_predictor(*known, pool.groups, at_random_N[rows])
    estimate_N = predict(predictor, pool.features, pool.arm)
    best_known_N = np.where(scored_N, measured_N, estimate_N)
    return estimate_N, selection_cut(best_known_N, pool.n_tokens, pool.budget_tokens)


def _plausible(estimate_N: Float64, measured_N: Float64, arm_N: Int32, threshold: float) -> Float64:
    """Keep estimates in arms whose best scored document is above τ, or of which none was scored."""
    scored = np.flatnonzero(~np.isnan(measured_N))
    best_K = np.full(int(arm_N.max()) + 1, np.inf)
    best_K[arm_N[scored]] = -np.inf
    np.maximum.at(best_K, arm_N[scored], measured_N[scored])
    return np.where(best_K[arm_N] > threshold, estimate_N, np.nan)


def select_from_scores(scores: Scores, pool: Pool, rules: Rules, seed: int, taken: Int64 | None = None) -> Selection:
    """Select as a run does once its scores are spent (`stages.selection.select_documents`).

    Args:
        scores: what is measured and predicted.
        pool: the documents.
        rules: who is eligible, near-duplicates and the general share.
        seed: of the general share's draw.
        taken: rows selected before: neither they nor their near-duplicates are selected again.
    """
    taken = np.empty(0, dtype=np.int64) if taken is None else taken
    scored_N = ~np.isnan(scores.measured)
    estimate_N = np.where(scored_N, scores.measured, scores.estimate)
    left = np.setdiff1d(np.arange(len(pool.arm)), taken)

    def find_near_duplicates(rows: Int64) -> Int64:
        if pool.embedding is None or rules.near_duplicate_cosine is None:
            return rows[:0]
        compared = np.concatenate([taken, rows])
        alike_N = near_duplicates_by_embedding(pool.embedding, pool.arm, compared, rules.near_duplicate_cosine)
        return rows[alike_N[rows]]

    rows = select(
        Candidates(left, pool.arm[left], pool.n_tokens[left], estimate_N[left], scored_N[left]),
        pool.budget_tokens,
        SelectionSettings(scores.threshold, rules.mode, general_share=rules.general_share),
        arm_mean_K=_mean_by_arm(np.where(scores.at_random, scores.measured, np.nan), pool.arm),
        generator=np.random.default_rng([seed, len(taken), 1]),  # [seed, 0] would be the stream of the scores
        find_near_duplicates=find_near_duplicates,
    )
    return Selection(left[rows], scored_N, estimate_N, scores.threshold, scores.cost_share)


def _mean_by_arm(measured_N: Float64, arm_N: Int32) -> Float64:
    """Compute the mean of what is not NaN of every arm, [K], NaN where there is nothing."""
    scored = np.flatnonzero(~np.isnan(measured_N))
    return group_means(measured_N[scored], arm_N[scored], int(arm_N.max()) + 1)


def influence_share(rows: Int64, influence_N: Float64, n_tokens_N: Int64, budget_tokens: int) -> float:
    """Compute the share of the achievable influence that a selection reaches: 0 is a random one's, 1 the best one's.

    Args:
        rows: [B] selected documents.
        influence_N: [N] per token.
        n_tokens_N: [N].
        budget_tokens: tokens of the best selection at most.
    """
    order = np.argsort(-influence_N, kind="stable")
    best = order[: int(np.searchsorted(np.cumsum(n_tokens_N[order]), budget_tokens, side="right"))]

    def mean(chosen: Int64) -> float:
        return float(np.average(influence_N[chosen], weights=n_tokens_N[chosen]))

    base = float(np.average(influence_N, weights=n_tokens_N))
    return (mean(rows) - base) / (mean(best) - base)


def share_reached_in(testbed: Testbed, rows: Int64) -> float:
    """Compute the share of a testbed's achievable influence that a selection reaches (`influence_share`)."""
    return influence_share(rows, testbed.per_token(), testbed.n_tokens, testbed.size.budget_tokens)
