"""Draw the next documents of arms: which a pull covers, passes over, and still has to score.

An arm's documents stand in a random order and its cursor says how many pulls have covered. A document is open to a
stage unless an earlier stage chose it, or it was scored along another direction than the stage's: neither can be
measured for this stage's choice. A pull covers documents from the cursor on until it holds as many open ones as
wanted, so that these are a uniform sample of the arm's open documents beyond the cursor. Those of them that an active
draw has scored along the stage's direction belong to the sample; leaving them out would leave out those predicted to
be good.

Shape suffixes: K arms, C documents that are closed, S documents scored.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.records import Stage
from quad_tasks.stages.bandit.cost import Room
from quad_tasks.stages.bandit.ledger import LedgerState, load_arms, read_choice, read_chosen
from quad_tasks.stages.bandit.score_index import insert_positions
from quad_tasks.stages.influence.find_overlap import overlap_positions, read_overlap
from quad_tasks.storage.keys import choice_key
from quad_tasks.storage.positions import nth_open
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Draw(NamedTuple):
    """One pull before it is scored: the next `n_documents` of an arm, those passed over among them."""

    arm: int
    cursor: int
    n_documents: int


@dataclass(frozen=True)
class OpenDocuments:
    """What a stage may still draw.

    Attributes:
        first_K: [K] position of each arm's first document.
        cursor_K: [K] documents of each arm that pulls have covered.
        end_K: [K] position after each arm's last document.
        closed_C: [C] positions of documents that are not open, ascending.
        scored_S: [S] positions of documents scored in any round, ascending.

    What is known of single documents is a list of those few, so that a round's cost does not follow the pool's size.
    """

    first_K: Int64
    cursor_K: Int64
    end_K: Int64
    closed_C: Int64
    scored_S: Int64


def closed_positions(store: Store, stage: Stage) -> Int64:
    """List what a stage may not select, ascending: documents an earlier stage chose, or that hold held-out text."""
    choices = [choice_key(stage.run, number, "selected") for number in range(stage.number)]
    overlap = read_overlap(store, stage.run)
    digests = (*(read_choice(store, choice).sha256 for choice in choices), overlap.sha256 if overlap else "")
    return _read_closed(store, stage.run, stage.number, digests)


@functools.lru_cache(maxsize=2)
def _read_closed(store: Store, run: str, stages: int, digests: tuple[str, ...]) -> Int64:
    """Read them once for what has these digests: the choices of a run's first stages, and the overlap."""
    chosen = read_chosen(store, run, stages)["position"].to_numpy()
    return np.union1d(chosen, overlap_positions(store, run))


def find_open_documents(store: Store, stage: Stage, ledger: LedgerState) -> OpenDocuments:
    """Find the documents that are open to a stage."""
    along_another = ledger.along_another_S if ledger.direction == stage.direction else ledger.scored_S
    first_K = load_arms(store, stage.version)["position"].to_numpy()
    return OpenDocuments(
        first_K=first_K,
        cursor_K=ledger.state.cursor,
        end_K=first_K + ledger.state.n_documents,
        closed_C=insert_positions(closed_positions(store, stage), along_another),
        scored_S=ledger.scored_S,
    )


def _open_before(documents: OpenDocuments, position: Int64) -> Int64:
    """Count the open documents before each position."""
    return position - np.searchsorted(documents.closed_C, position)


def count_open(documents: OpenDocuments) -> Int64:
    """Count each arm's open documents beyond its cursor, [K]."""
    return _open_before(documents, documents.end_K) - _open_before(documents, documents.first_K + documents.cursor_K)


def draw_next(documents: OpenDocuments, arm: int, n_open: int) -> Draw:
    """Draw an arm's next `n_open` open documents; the whole rest of an arm that has no more."""
    cursor, end = int(documents.cursor_K[arm]), int(documents.end_K[arm])
    start = int(documents.first_K[arm]) + cursor
    before_start, before_end = _open_before(documents, np.array([start, end])).tolist()
    wanted = before_start + n_open
    if wanted >= before_end:
        return Draw(arm, cursor, end - start)
    # The pull ends after the open document of that number: this many open ones, and the closed ones among them
    return Draw(arm, cursor, int(nth_open(documents.closed_C, np.array([wanted - 1]))[0]) + 1 - start)


def covered_positions(first_K: Int64, draw: Draw) -> Int64:
    """Return the positions that a draw covers, [n_documents], of the position of each arm's first document."""
    covered: Int64 = np.arange(draw.n_documents) + first_K[draw.arm] + draw.cursor
    return covered


def unscored_positions(documents: OpenDocuments, draw: Draw) -> Int64:
    """Return the positions of a draw that are still to be scored."""
    covered = covered_positions(documents.first_K, draw)
    first, end = documents.first_K[draw.arm] + draw.cursor, documents.first_K[draw.arm] + draw.cursor + len(covered)
    left = np.ones(len(covered), dtype=np.bool_)
    for ascending in (documents.closed_C, documents.scored_S):
        here = slice(*np.searchsorted(ascending, [first, end]))
        left[ascending[here] - first] = False
    unscored: Int64 = covered[left]
    return unscored


def cut_draws(
    documents: OpenDocuments, draws: Sequence[Draw], room: Room, costs: Callable[[Int64], Float64]
) -> tuple[list[Draw], Room]:
    """Cut draws, earlier ones last, so that what all of them have to score fits a room.

    Args:
        documents: what may be drawn.
        draws: in the order in which they may spend.
        room: documents and FLOPs that may be spent.
        costs: returns the FLOPs of scoring the documents at positions; it is asked once, for all draws.

    Returns:
        The draws that cover anything, and the room they leave.
    """
    kept, asked_of = [], [unscored_positions(documents, draw) for draw in draws]
    cost_N = costs(np.concatenate([np.empty(0, dtype=np.int64), *asked_of]))
    ends = np.cumsum([len(asked) for asked in asked_of], dtype=np.int64)
    for draw, asked, end in zip(draws, asked_of, ends.tolist(), strict=True):
        cost_M = cost_N[end - len(asked) : end]
        fitting = int(np.searchsorted(np.cumsum(cost_M), room.flops, side="right"))
        n = min(len(asked), room.documents, fitting)
        if n < len(asked):
            draw = draw._replace(n_documents=int(asked[n] - documents.first_K[draw.arm]) - draw.cursor)
        if draw.n_documents > 0:
            kept.append(draw)
        room = Room(room.documents - n, room.flops - float(cost_M[:n].sum()))
    return kept, room
