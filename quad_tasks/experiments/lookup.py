"""What a run would choose, where every document's influence is known beforehand and a run's scoring is a look-up.

The product's own policies, draws, regression, threshold and budget (`quad_tasks.core`), without ledger or storage, so
that many configurations can be tried in the time of one.

Shape suffixes: N documents, D features, K arms.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quad_tasks.config import BanditConfig
from quad_tasks.core.bandit import Policy, choose_arms, initial_state, paper_policy, update
from quad_tasks.core.prediction import active_draw, fit_predictor, predict, selection_cut
from quad_tasks.core.selection import Candidates, Mode, select
from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.records import Pull
from quad_tasks.state import REFIT_GROWTH

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


RUN = BanditConfig()
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
    """

    policy: Policy = field(default_factory=run_policy)
    active_documents: int = ACTIVE
    scored_share: float = 0.1
    pilot_documents: int = RUN.pilot_documents
    mode: Mode = "predicted"
    threshold_quantile: float = RUN.threshold_quantile
    threshold: float | None = None
    neighbours: Neighbours | None = None


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


def choose(
    influence_N: Float64,
    arm_N: npt.NDArray[np.int32],
    n_tokens_N: Int64,
    features_ND: Float64,
    budget_tokens: int,
    rules: Rules | None = None,
    seed: int = 0,
) -> Choice:
    """Score as a run does: a random pilot, rounds of pulls with draws near the cut beside them; then select.

    Args:
        influence_N: [N] per token, of all documents; only what is scored is looked at.
        arm_N: [N] arm of each document, numbered from 0.
        n_tokens_N: [N].
        features_ND: [N, D] what the regression predicts from.
        budget_tokens: of the selection.
        rules: how scores are spent.
        seed: of every draw.
    """
    rules = rules or Rules()
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
        pulls = []
        for arm in np.flatnonzero(count_K).tolist():
            left = n_scored - int(scored_N.sum())
            cursor, n = int(state.cursor[arm]), min(int(count_K[arm]), left)
            if n <= 0:
                continue
            rows = arms[arm][cursor : cursor + n]
            scored_N[rows] = True
            pulls.append(Pull(arm, cursor, n, n, float(influence_N[rows].mean()), float(influence_N[rows].var())))
        if threshold is None:
            threshold = float(np.quantile(influence_N[scored_N], rules.threshold_quantile))
        if rules.active_documents and fitted:
            unscored = np.flatnonzero(~scored_N)
            n_active = int(np.clip(n_scored - scored_N.sum(), 0, len(pulls) * rules.active_documents))
            scored_N[unscored[active_draw(estimate_N[unscored], cut, n_active, 0.0, generator)[0]]] = True
        state = update(state, pulls, rules.policy, rules.neighbours)
        done = scored_N.sum() >= n_scored or not pulls
        if predicting and (done or scored_N.sum() >= REFIT_GROWTH * fitted):
            rows = np.flatnonzero(scored_N)
            fitted = len(rows)
            predictor = fit_predictor(features_ND[rows], influence_N[rows], arm_N[rows], len(size_K), generator)
            estimate_N = predict(predictor, features_ND, arm_N)
            cut = selection_cut(np.where(scored_N, influence_N, estimate_N), n_tokens_N, budget_tokens)
        if done:
            break
        count_K = np.zeros_like(size_K)
        chosen = choose_arms(state, rules.policy, generator)
        count_K[chosen] = np.minimum(rules.policy.documents_per_pull, (size_K - state.cursor)[chosen])
    estimate_N = np.where(scored_N, influence_N, estimate_N)
    count_K = np.bincount(arm_N[scored_N], minlength=len(size_K))
    total_K = np.bincount(arm_N[scored_N], weights=influence_N[scored_N], minlength=len(size_K))
    mean_K = np.where(count_K > 0, total_K / np.maximum(count_K, 1), np.nan)
    candidates = Candidates(np.arange(len(arm_N)), arm_N, n_tokens_N, estimate_N, scored_N)
    return Choice(select(candidates, budget_tokens, threshold, rules.mode, mean_K), scored_N, estimate_N, threshold)


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
