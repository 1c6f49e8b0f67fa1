"""Find scores by position, round after round: a round sorts its own documents and copies what is known, once.

Rows count the documents scored along one direction in the ledger's order. Sums over some of them go by row, so that
they do not depend on how the index was made.

Shape suffixes: S documents scored, N documents of a round.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class ScoreIndex(NamedTuple):
    """Documents scored along one direction, by position.

    Attributes:
        position_S: [S] their positions, ascending.
        row_S: [S] row of each.
        influence_S: [S] its influence per target token.
        n_targets_S: [S] its target tokens.
    """

    position_S: Int64
    row_S: Int64
    influence_S: Float64
    n_targets_S: Int64


def empty_index() -> ScoreIndex:
    """Return the index of no score."""
    none = np.empty(0, dtype=np.int64)
    return ScoreIndex(none, none, np.empty(0), none)


def add_scores(index: ScoreIndex, scores: pa.Table) -> ScoreIndex:
    """Add a round's scores to an index; a position is scored along a direction once."""
    position_N, influence_N, n_targets_N = (scores[name].to_numpy() for name in ("position", "influence", "n_targets"))
    order = np.argsort(position_N, kind="stable")
    at = np.searchsorted(index.position_S, position_N[order])
    new = (position_N, len(index.row_S) + np.arange(len(order)), influence_N, n_targets_N)
    return ScoreIndex(*(np.insert(old, at, own[order]) for old, own in zip(index, new, strict=True)))


def scores_within(index: ScoreIndex, first: int, end: int) -> tuple[Float64, Int64]:
    """Return influence and target tokens of the documents scored at positions [first, end), in order of their rows."""
    own = slice(*np.searchsorted(index.position_S, [first, end]))
    order = np.argsort(index.row_S[own])
    return index.influence_S[own][order], index.n_targets_S[own][order]


def is_among(ascending_S: Int64, position_N: Int64) -> npt.NDArray[np.bool_]:
    """Tell which positions are among ascending ones, [N]."""
    if not len(ascending_S):
        return np.zeros(len(position_N), dtype=np.bool_)
    near = np.minimum(np.searchsorted(ascending_S, position_N), len(ascending_S) - 1)
    among_N: npt.NDArray[np.bool_] = ascending_S[near] == position_N
    return among_N


def insert_positions(ascending_S: Int64, position_N: Int64) -> Int64:
    """Insert positions into ascending ones, each once."""
    new = np.unique(position_N)
    new = new[~is_among(ascending_S, new)]
    if not len(new):
        return ascending_S
    return np.insert(ascending_S, np.searchsorted(ascending_S, new), new)
