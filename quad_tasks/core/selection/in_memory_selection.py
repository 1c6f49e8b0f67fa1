"""Select from a pool held in memory: what tests and experiments use, and what a run's selection must equal.

A run selects block by block (`stages.selection.select_documents`); change both, tests compare them.

Owns the budget's exactness: a selection never exceeds it, and no eligible document that was left out would still fit,
so the shortfall is less than one document. Refuses to score or predict: influence per target token comes measured
(`core.influence`) or predicted (`prediction.py`). Influence > 0: training on it lowers the reference loss.

Which documents are eligible, and in which order, depends on the mode:

    instance   scored documents above τ, by influence (the paper)
    cluster    those first; then the unscored documents of arms whose mean is above τ, by that mean, in arm order (the
               published code takes an accepted arm's next documents unseen)
    predicted  documents above τ, by influence measured or predicted

A `general_share` of the budget may go to the rest of the pool instead, each arm in proportion to its tokens. It
protects the other domains while the reference improves (in the pilot, half the budget halved their loss increase).

Equal documents are ordered by id, so no result depends on the order of rows, except where `cluster` follows an arm's.

Shape suffixes: N candidates, K arms, D embedding, B documents selected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from quad_tasks.core.random_order import systematic_places, uniform_hash
from quad_tasks.core.seeds import draw_seed
from quad_tasks.core.selection.fill_budget import (
    LOOKAHEAD,
    FindNearDuplicates,
    Ids,
    fill_budget,
    fill_budget_by_arm,
    targeted_budget,
)
from quad_tasks.core.selection.redundancy import select_diverse

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Mode = Literal["instance", "cluster", "predicted"]

ReadEmbeddings = Callable[[Ids], npt.NDArray[np.float32]]
"""Given ids, returns their unit embeddings, [N, D]."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Documents that may be selected, as parallel arrays.

    Attributes:
        id: [N] int64, unique: positions.
        arm: [N] int32.
        n_tokens: [N] int64, > 0, in the run's tokenizer.
        influence: [N] float64 per target token, measured or predicted; NaN where neither.
        scored: [N] bool, whether the influence was measured.
    """

    id: Ids
    arm: npt.NDArray[np.int32]
    n_tokens: npt.NDArray[np.int64]
    influence: npt.NDArray[np.float64]
    scored: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """Rules by which documents are selected.

    Attributes:
        threshold: τ, influence per target token that a document (or an arm's mean) must exceed.
        mode: which documents are eligible, and in which order.
        per_arm_share: largest share of the targeted budget that one arm may fill, in (0, 1]; None: no limit.
        general_share: share of the budget, in [0, 1], drawn from the rest of the pool; it also fills what the targeted
            part could not.
        redundancy: penalty for resembling a selected document, >= 0 (`redundancy.select_diverse`); 0: none.
    """

    threshold: float
    mode: Mode = "instance"
    per_arm_share: float | None = None
    general_share: float = 0.0
    redundancy: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: an unknown mode, or a share or penalty out of its range.
        """
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: expected 'instance', 'cluster' or 'predicted', got {self.mode!r}")
        if self.per_arm_share is not None and not 0 < self.per_arm_share <= 1:
            raise ValueError(f"per_arm_share: expected a share in (0, 1], got {self.per_arm_share}")
        if not 0 <= self.general_share <= 1:
            raise ValueError(f"general_share: expected a share in [0, 1], got {self.general_share}")
        if self.redundancy < 0:
            raise ValueError(f"redundancy: expected >= 0, got {self.redundancy}")


def select(
    candidates: Candidates,
    budget_tokens: int,
    settings: SelectionSettings,
    *,
    arm_mean_K: Float64 | None = None,
    generator: np.random.Generator | None = None,
    find_near_duplicates: FindNearDuplicates | None = None,
    read_embeddings: ReadEmbeddings | None = None,
) -> Int64:
    """Select documents above the threshold, best first, until the token budget is full.

    Args:
        candidates: documents not selected before.
        budget_tokens: most tokens to select, >= 0.
        settings: threshold, mode, shares and penalty.
        arm_mean_K: [K] mean influence of each arm, NaN where unknown; needed in mode `cluster`.
        generator: draws the seed of the general part's order, by which ids are hashed; needed where there is one.
        find_near_duplicates: near-duplicates it reports are left out, and others take their place; None: all may stay.
        read_embeddings: needed for a `redundancy` above 0.

    Returns:
        [B] row numbers: the targeted documents in the order selected, then the general part. They hold fewer tokens
        than the budget only where no further eligible document fits.

    Raises:
        ValueError: a negative budget, or an argument missing that the settings need.
    """
    # Targeted part: rank the eligible rows, then fill all but the general share.
    targeted = _fill_without_duplicates(
        candidates.id,
        rank(candidates, settings.threshold, settings.mode, arm_mean_K),
        targeted_budget(budget_tokens, settings.general_share),
        lambda order, tokens: _fill_targeted(candidates, order, tokens, settings, arm_mean_K, read_embeddings),
        find_near_duplicates,
    )
    if settings.general_share == 0:
        return targeted
    if generator is None:
        raise ValueError(f"generator: expected one to draw a general share of {settings.general_share}, got None")
    # General part: the other rows, arms in proportion to their tokens, fill what is left.
    rest = np.setdiff1d(np.arange(len(candidates.id)), targeted, assume_unique=True)
    uniform = _fill_without_duplicates(
        candidates.id,
        _proportional_order(candidates, rest, draw_seed(generator)),
        budget_tokens - int(candidates.n_tokens[targeted].sum()),
        lambda order, tokens: fill_budget(order, candidates.n_tokens, tokens),
        find_near_duplicates,
        targeted,
    )
    return np.concatenate((targeted, uniform))


def rank(candidates: Candidates, threshold: float, mode: Mode = "instance", arm_mean_K: Float64 | None = None) -> Int64:
    """List the eligible rows, best first.

    Args:
        candidates: documents not selected before.
        threshold: τ, influence per target token.
        mode: which documents are eligible.
        arm_mean_K: [K] mean influence of each arm; needed in mode `cluster`.

    Raises:
        ValueError: mode `cluster` without arm means.
    """
    if mode == "predicted":
        return _by_influence(candidates, candidates.influence > threshold)
    scored_order = _by_influence(candidates, candidates.scored & (candidates.influence > threshold))
    if mode == "instance":
        return scored_order
    if arm_mean_K is None:
        raise ValueError("arm_mean_K: expected the arms' means for mode 'cluster', got None")
    return np.concatenate((scored_order, _by_arm_mean(candidates, threshold, arm_mean_K)))


def random_control(
    n_tokens_N: Int64,
    budget_tokens: int,
    generator: np.random.Generator,
    rows: Int64 | None = None,
    find_near_duplicates: FindNearDuplicates | None = None,
) -> Int64:
    """Draw a random control selection: documents drawn uniformly, without replacement, until the budget is full.

    Args:
        n_tokens_N: [N] tokens of each document, > 0.
        budget_tokens: most tokens to select, >= 0.
        generator: draws the seed of the order, by which row numbers are hashed.
        rows: those that may be drawn; None: all.
        find_near_duplicates: as for `select`, of row numbers.

    Returns:
        [B] row numbers in the order drawn; the budget is filled as exactly as by `select`.

    Raises:
        ValueError: a negative budget.
    """
    everything = np.arange(len(n_tokens_N))
    return _fill_without_duplicates(
        everything,
        _random_order(everything if rows is None else rows, draw_seed(generator)),
        budget_tokens,
        lambda order, tokens: fill_budget(order, n_tokens_N, tokens),
        find_near_duplicates,
    )


def _fill_targeted(
    candidates: Candidates,
    order: Int64,
    budget_tokens: int,
    settings: SelectionSettings,
    arm_mean_K: Float64 | None,
    read_embeddings: ReadEmbeddings | None,
) -> Int64:
    """Fill the targeted budget by the settings: diverse, limited by arm, or plain."""
    if settings.redundancy > 0:
        if read_embeddings is None:
            raise ValueError(f"read_embeddings: expected a reader for a redundancy of {settings.redundancy}, got None")
        return _fill_diverse(candidates, order, budget_tokens, settings, arm_mean_K, read_embeddings)
    if settings.per_arm_share is None:
        return fill_budget(order, candidates.n_tokens, budget_tokens)
    return fill_budget_by_arm(order, candidates.n_tokens, candidates.arm, budget_tokens, settings.per_arm_share)


def _fill_diverse(
    candidates: Candidates,
    order: Int64,
    budget_tokens: int,
    settings: SelectionSettings,
    arm_mean_K: Float64 | None,
    read_embeddings: ReadEmbeddings,
) -> Int64:
    """Fill a budget with diverse documents from the best of a few budgets (`redundancy.select_diverse`)."""
    n_tokens = candidates.n_tokens[order]
    best = order[np.cumsum(n_tokens) <= LOOKAHEAD * budget_tokens + n_tokens.max(initial=0)]
    arm, influence = candidates.arm[best], candidates.influence[best]
    if arm_mean_K is not None:  # a document neither scored nor predicted counts as its arm's mean
        influence = np.where(np.isnan(influence), arm_mean_K[arm], influence)
    selected_B = select_diverse(
        np.arange(len(best)),
        influence,
        candidates.n_tokens[best],
        read_embeddings(candidates.id[best]),
        arm,
        budget_tokens,
        settings.redundancy,
        settings.per_arm_share,
    )
    return np.take(best, selected_B)


def _fill_without_duplicates(
    id_N: Ids,
    order: Int64,
    budget_tokens: int,
    fill: Callable[[Int64, int], Int64],
    find_near_duplicates: FindNearDuplicates | None,
    before: Int64 | None = None,
) -> Int64:
    """Fill a budget, drop near-duplicates of selected documents or of those `before`, and fill again until none is."""
    before = np.empty(0, dtype=np.int64) if before is None else before
    while True:
        selected = fill(order, budget_tokens)
        if find_near_duplicates is None or len(selected) == 0:
            return selected
        duplicates = find_near_duplicates(id_N[np.concatenate((before, selected))])
        if not np.isin(id_N[selected], duplicates).any():
            return selected
        order = order[~np.isin(id_N[order], duplicates)]


def _random_order(rows: Int64, seed: int) -> Int64:
    return rows[np.lexsort((rows, -uniform_hash(seed, rows)))]


def _proportional_order(candidates: Candidates, rows: Int64, seed: int) -> Int64:
    """Order rows at random so that every prefix holds each arm in proportion to its tokens."""
    id_M = candidates.id[rows]
    return rows[np.lexsort((id_M, systematic_places(id_M, candidates.n_tokens[rows], candidates.arm[rows], seed)))]


def _by_influence(candidates: Candidates, eligible_N: npt.NDArray[np.bool_]) -> Int64:
    rows = np.flatnonzero(eligible_N)
    return rows[np.lexsort((candidates.id[rows], -candidates.influence[rows]))]


def _by_arm_mean(candidates: Candidates, threshold: float, arm_mean_K: Float64) -> Int64:
    mean_N = arm_mean_K[candidates.arm]
    rows = np.flatnonzero(~candidates.scored & (mean_N > threshold))
    return rows[np.lexsort((rows, candidates.arm[rows], -mean_N[rows]))]
