"""What a run would choose, where a document's influence is known beforehand and a run's scoring is a look-up.

The product's own policies, draws, regression, threshold and budget (`quad_tasks.core`), without ledger or storage, so
that many configurations can be tried in the time of one.

Shape suffixes: N documents, D features, K arms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quad_tasks.config import BanditConfig, SelectionConfig
from quad_tasks.core.bandit import Policy, choose_arms, initial_state, paper_policy, update
from quad_tasks.core.prediction import active_draw, fit_predictor, predict, selection_cut
from quad_tasks.core.redundancy import near_duplicates
from quad_tasks.core.selection import Candidates, Mode, select
from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.records import Pull
from quad_tasks.state import REFIT_GROWTH

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


RUN = BanditConfig()
SELECTION = SelectionConfig.model_fields
ACTIVE = int(RUN.active_share * RUN.documents_per_pull)


def run_policy() -> Policy:
    """Build a run's default policy; its pulls draw at random what active draws leave."""
    return paper_policy(arms_per_round=RUN.arms_per_round, documents_per_pull=RUN.documents_per_pull - ACTIVE)


@dataclass(frozen=True)
class Rules:
    """How a run spends its scores; what is left unsaid is a run's default.

    Attributes:
        policy: chooses arms; its `documents_per_pull` are those drawn at random by a pull.
        active_documents: drawn near the cut for each pull.
        scored_share: of the pool, at most.
        pilot_documents: scored at random first.
        mode: who is eligible.
        threshold_quantile: the pilot's quantile that becomes τ.
        threshold: τ itself, where it is given.
        neighbours: of the arms, where the policy propagates.
        near_duplicate_cosine: a document this similar to a better one of its arm is dropped; None: none is.
        general_share: of the budget, drawn from the rest of the pool.
    """

    policy: Policy = field(default_factory=run_policy)
    active_documents: int = ACTIVE
    scored_share: float = 0.1
    pilot_documents: int = RUN.pilot_documents
    mode: Mode = "predicted"
    threshold_quantile: float = RUN.threshold_quantile
    threshold: float | None = None
    neighbours: Neighbours | None = None
    near_duplicate_cosine: float | None = SELECTION["near_duplicate_cosine"].default
    general_share: float = SELECTION["general_share"].default


@dataclass(frozen=True)
class Known:
    """What spending scores told.

    Attributes:
        measured: [N] influence per token, NaN where not scored.
        estimate: [N] predicted, NaN where nothing is.
        threshold: τ.
    """

    measured: Float64
    estimate: Float64
    threshold: float


@dataclass(frozen=True)
class Choice:
    """What a run on looked-up scores came to.

    Attributes:
        rows: [B] documents chosen, best first.
        scored: [N] bool.
        estimate: [N] influence per token, measured where scored, else predicted; NaN where neither.
        threshold: τ.
    """

    rows: Int64
    scored: npt.NDArray[np.bool_]
    estimate: Float64
    threshold: float


Influence = Float64 | Callable[[Int64], Float64]
"""Of all documents, [N] per token, or a function that scores rows."""


def choose(
    influence_N: Influence,
    arm_N: npt.NDArray[np.int32],
    n_tokens_N: Int64,
    features_ND: Float64,
    budget_tokens: int,
    rules: Rules | None = None,
    seed: int = 0,
    embedding_ND: npt.NDArray[np.float32] | None = None,
) -> Choice:
    """Spend scores as a run does, then select as it does.

    Args:
        influence_N: only what is scored is looked at.
        arm_N: [N] arm of each document, numbered from 0.
        n_tokens_N: [N].
        features_ND: [N, D] what the regression predicts from.
        budget_tokens: of the selection.
        rules: how scores are spent.
        seed: of every draw.
        embedding_ND: [N, D] unit vectors near-duplicates are told by; None: none is dropped.
    """
    rules = rules or Rules()
    known = spend_scores(influence_N, arm_N, n_tokens_N, features_ND, budget_tokens, rules, seed)
    return select_known(known, arm_N, n_tokens_N, budget_tokens, rules, embedding_ND, seed)


def spend_scores(
    influence_N: Influence,
    arm_N: npt.NDArray[np.int32],
    n_tokens_N: Int64,
    features_ND: Float64,
    budget_tokens: int,
    rules: Rules,
    seed: int,
) -> Known:
    """Score a random pilot, then rounds of pulls with draws near the cut beside them; arguments as `choose`."""
    look_up = influence_N if callable(influence_N) else influence_N.__getitem__
    measured_N = np.full(len(arm_N), np.nan)
    generator = np.random.default_rng(seed)
    size_K = np.bincount(arm_N)
    arms = [generator.permutation(np.flatnonzero(arm_N == arm)) for arm in range(len(size_K))]
    state, scored_N = initial_state(size_K), np.zeros(len(arm_N), dtype=bool)
    n_scored, fitted, cut = int(rules.scored_share * len(arm_N)), 0, 0.0
    estimate_N = np.full(len(arm_N), np.nan)
    predicting = rules.mode == "predicted" or rules.active_documents > 0
    n_pilot = min(rules.pilot_documents, -(-n_scored // 2))
    count_K = generator.multivariate_hypergeometric(size_K, n_pilot, method="marginals")
    threshold = rules.threshold
    while True:
        drawn: dict[int, tuple[int, Int64]] = {}
        for arm in np.flatnonzero(count_K).tolist():
            left = n_scored - int(scored_N.sum())
            cursor, n = int(state.cursor[arm]), min(int(count_K[arm]), left)
            if n <= 0:
                continue
            rows = arms[arm][cursor : cursor + n]
            scored_N[rows] = True
            drawn[arm] = (cursor, rows)
        if rules.active_documents and fitted:
            unscored = np.flatnonzero(~scored_N)
            n_active = int(np.clip(n_scored - scored_N.sum(), 0, len(drawn) * rules.active_documents))
            scored_N[unscored[active_draw(estimate_N[unscored], cut, n_active, 0.0, generator)[0]]] = True
        new = np.flatnonzero(scored_N & np.isnan(measured_N))
        measured_N[new] = look_up(new)
        pulls = [_pull(arm, cursor, measured_N[rows]) for arm, (cursor, rows) in drawn.items()]
        if threshold is None:
            threshold = float(np.quantile(measured_N[scored_N], rules.threshold_quantile))
        state = update(state, pulls, rules.policy, rules.neighbours)
        done = scored_N.sum() >= n_scored or not pulls
        if predicting and (done or scored_N.sum() >= REFIT_GROWTH * fitted):
            rows = np.flatnonzero(scored_N)
            fitted = len(rows)
            predictor = fit_predictor(features_ND[rows], measured_N[rows], arm_N[rows], len(size_K), generator)
            estimate_N = predict(predictor, features_ND, arm_N)
            cut = selection_cut(np.where(scored_N, measured_N, estimate_N), n_tokens_N, budget_tokens)
        if done:
            break
        count_K = np.zeros_like(size_K)
        chosen = choose_arms(state, rules.policy, generator)
        count_K[chosen] = np.minimum(rules.policy.documents_per_pull, (size_K - state.cursor)[chosen])
    return Known(measured_N, _plausible(estimate_N, measured_N, arm_N, threshold), threshold)


def select_known(
    known: Known,
    arm_N: npt.NDArray[np.int32],
    n_tokens_N: Int64,
    budget_tokens: int,
    rules: Rules,
    embedding_ND: npt.NDArray[np.float32] | None,
    seed: int,
    taken: Int64 | None = None,
) -> Choice:
    """Select as a run does once its scores are spent (`quad_tasks.choose`); arguments as `choose`.

    Args:
        known: what the scores told.
        arm_N: see there.
        n_tokens_N: see there.
        budget_tokens: see there.
        rules: see there.
        embedding_ND: see there.
        seed: of the general share's draw.
        taken: rows chosen before, which are not chosen again, nor are their near-duplicates.
    """
    measured_N, threshold = known.measured, known.threshold
    taken = np.empty(0, dtype=np.int64) if taken is None else taken
    scored_N = ~np.isnan(measured_N)
    estimate_N = np.where(scored_N, measured_N, known.estimate)
    n_arms = int(arm_N.max()) + 1
    count_K = np.bincount(arm_N[scored_N], minlength=n_arms)
    total_K = np.bincount(arm_N[scored_N], weights=measured_N[scored_N], minlength=n_arms)
    mean_K = np.where(count_K > 0, total_K / np.maximum(count_K, 1), np.nan)
    left = np.setdiff1d(np.arange(len(arm_N)), taken)

    def find_likes(rows: Int64) -> Int64:
        if embedding_ND is None or rules.near_duplicate_cosine is None:
            return rows[:0]
        looked_at = np.concatenate([taken, left[rows]])
        return rows[near_duplicates(embedding_ND, arm_N, looked_at, rules.near_duplicate_cosine)[left[rows]]]

    mine = Candidates(left, arm_N[left], n_tokens_N[left], estimate_N[left], scored_N[left])
    rows = select(
        mine,
        budget_tokens,
        threshold,
        rules.mode,
        mean_K,
        general_share=rules.general_share,
        generator=np.random.default_rng([seed, len(taken)]),
        find_likes=find_likes,
    )
    return Choice(left[rows], scored_N, estimate_N, threshold)


def _pull(arm: int, cursor: int, rewards: Float64) -> Pull:
    return Pull(arm, cursor, len(rewards), len(rewards), float(rewards.mean()), float(rewards.var()))


def _plausible(estimate_N: Float64, measured_N: Float64, arm_N: npt.NDArray[np.int32], threshold: float) -> Float64:
    """Keep estimates in arms whose best scored document is above τ, or of which none was scored."""
    scored = np.flatnonzero(~np.isnan(measured_N))
    best_K = np.full(int(arm_N.max()) + 1, np.inf)
    best_K[arm_N[scored]] = -np.inf
    np.maximum.at(best_K, arm_N[scored], measured_N[scored])
    return np.where(best_K[arm_N] > threshold, estimate_N, np.nan)


def influence_share(rows: Int64, influence_N: Float64, n_tokens_N: Int64, budget_tokens: int) -> float:
    """Compute how much of the achievable influence a selection reaches: 0 is a random one's, 1 the best one's.

    Args:
        rows: [B] selected.
        influence_N: [N] per token.
        n_tokens_N: [N].
        budget_tokens: of the selection.
    """
    order = np.argsort(-influence_N, kind="stable")
    best = order[: int(np.searchsorted(np.cumsum(n_tokens_N[order]), budget_tokens, side="right"))]

    def mean(chosen: Int64) -> float:
        return float(np.average(influence_N[chosen], weights=n_tokens_N[chosen]))

    base = float(np.average(influence_N, weights=n_tokens_N))
    return (mean(rows) - base) / (mean(best) - base)
