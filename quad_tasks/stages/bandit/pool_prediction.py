"""The prediction of a whole pool, kept in the workspace block by block: where a selection would end, what lies near it.

A block of positions is predicted by a worker, which writes influence and tokens; the driving process asks the blocks
for sums and for the few documents it draws, and holds no array over the pool. The cut is found by radix search
(`core.selection.ranking`). What it gives equals `prediction.selection_cut` and `prediction.nearest_to_cut` on all
predictions at once, to the bit, whatever the blocks.

Shape suffixes: N documents, B documents of a block, A arms with documents.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.core.selection import prediction, ranking
from quad_tasks.core.selection.ranking import Rows
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.predict import FeatureSource, predict_block
from quad_tasks.stages.bandit.score_index import is_among
from quad_tasks.storage import tables
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

BLOCK_DOCUMENTS = 2**17
"""Documents of a block: 2 MiB of predictions."""
READ_DOCUMENTS = 8192
"""Documents whose features are in a worker's memory at once."""
OFFERED = 8
"""Times the documents asked for that blocks offer at once, so that most rounds ask none."""


class Block(NamedTuple):
    """A block of predictions: its key and its positions [first, end)."""

    key: str
    first: int
    end: int


class Written(NamedTuple):
    """What a block holds: documents with a value, and how many were predicted."""

    open: int
    predicted: int


class Edge(NamedTuple):
    """A block's documents around a value: the earliest one at it, and the least value above.

    Attributes:
        position: of the block's first document at the value; -1 where there is none.
        tokens: of that document.
        above: least value above; infinite where there is none.
    """

    position: int
    tokens: int
    above: float


@dataclass
class PoolPrediction:
    """A prediction of the pool.

    Attributes:
        blocks: that hold it.
        cut: influence at which a selection by it would end; NaN where no document is open.
        offered: positions nearest the cut, nearest first, of documents that were not excluded when they were asked for.
        offered_tokens: tokens of each.
        excluded: ascending positions that were.
        complete: whether those offered are all there are.
    """

    blocks: list[Block]
    cut: float
    offered: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    offered_tokens: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    excluded: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    complete: bool = False


def predict_pool(
    store: Store,
    version: str,
    folder: str,
    n_documents: int,
    predictor: prediction.Predictor,
    features: FeatureSource,
    known: tuple[Int64, Float64],
    closed: Int64,
    budget_tokens: int,
) -> PoolPrediction:
    """Predict every document of a pool version and find where a selection by it would end.

    Args:
        store: the workspace.
        version: key of the pool version.
        folder: where the blocks are kept.
        n_documents: of the version.
        predictor: a fitted regression.
        features: what is read of a document.
        known: [M] positions of documents whose influence was measured, and [M] that.
        closed: positions of documents that may not be selected.
        budget_tokens: of the selection.
    """
    blocks, written = write_predictions(store, version, folder, n_documents, predictor, features, known, closed)
    cut = find_cut(store, blocks, budget_tokens) if sum(each.open for each in written) else float("nan")
    return PoolPrediction(blocks, cut)


def write_predictions(
    store: Store,
    version: str,
    folder: str,
    n_documents: int,
    predictor: prediction.Predictor,
    features: FeatureSource,
    known: tuple[Int64, Float64],
    closed: Int64,
    asked: tuple[Int64, Int64] | None = None,
) -> tuple[list[Block], list[Written]]:
    """Write the predictions of a pool version, block by block over Dask; return the blocks and what each holds.

    Args:
        store: the workspace.
        version: key of the pool version.
        folder: where the blocks are kept.
        n_documents: of the version.
        predictor: a fitted regression.
        features: what is read of a document.
        known: [M] positions of documents whose influence was measured, and [M] that.
        closed: positions of documents that may not be selected.
        asked: [A] first positions and [A] ends of ascending ranges: of these alone the documents are predicted that are
            neither known nor closed, the others are NaN; None: all are predicted.
    """
    order = np.argsort(known[0])
    position, influence, shut = known[0][order], known[1][order], np.sort(closed)
    blocks = cut_blocks(folder, n_documents)
    items = []
    for block in blocks:
        own = slice(*np.searchsorted(position, [block.first, block.end]))
        ranges = None if asked is None else _clip_ranges(*asked, block)
        items.append((store, version, block, features, position[own], influence[own], within(shut, block), ranges))
    return blocks, map_blocks(write_block, items, "predict", shared=[predictor])


def cut_blocks(folder: str, n_documents: int) -> list[Block]:
    """Cut a pool's positions into blocks of `BLOCK_DOCUMENTS`, kept in a folder."""
    return name_blocks(folder, [*range(0, n_documents, BLOCK_DOCUMENTS), n_documents])


def name_blocks(folder: str, bounds: Sequence[int]) -> list[Block]:
    """Name the blocks between ascending positions, kept in a folder."""
    return [Block(f"{folder}/block-{n:06d}.npy", *bound) for n, bound in enumerate(itertools.pairwise(bounds))]


def write_block(
    predictor: prediction.Predictor,
    store: Store,
    version: str,
    block: Block,
    features: FeatureSource,
    known_position: Int64,
    known_influence: Float64,
    closed: Int64,
    ranges: Int64 | None = None,
) -> Written:
    """Write a block's [2, B] influence, NaN where closed or not asked for, and tokens, on a worker."""
    rows, predicted = np.full((2, block.end - block.first), np.nan), 0
    asked_B = np.full(rows.shape[1], ranges is None)
    if ranges is not None:
        for first, end in (ranges - block.first).tolist():
            asked_B[first:end] = True
        asked_B[np.concatenate([known_position, closed]) - block.first] = False
    for first in range(block.first, block.end, READ_DOCUMENTS):
        positions = np.arange(first, min(first + READ_DOCUMENTS, block.end))
        asked = positions[asked_B[positions - block.first]]
        if len(asked):
            rows[0, asked - block.first] = predict_block(predictor, store, version, asked, features)
        rows[1, positions - block.first] = read_positions(store, version, positions, ["n_tokens"])[
            "n_tokens"
        ].to_numpy()
        predicted += len(asked)
    rows[0, known_position - block.first] = known_influence
    rows[0, closed - block.first] = np.nan
    tables.write_array(store, block.key, rows)
    return Written(open=int(np.count_nonzero(~np.isnan(rows[0]))), predicted=predicted)


def read_rows(store: Store, block: Block) -> Rows:
    """Read a block; what is closed or was not predicted is NaN."""
    value_B, tokens_B = tables.read_array(store, block.key)
    return Rows(np.arange(block.first, block.end), value_B, tokens_B.astype(np.int64))


def read_values(store: Store, blocks: Sequence[Block], positions: Int64) -> Float64:
    """Read the values of documents in blocks, [N], NaN where they have none."""
    order = np.argsort(positions, kind="stable")
    asked = [(block, own) for block in blocks if len(own := within(positions[order], block))]
    pieces = map_blocks(values_at, [(store, *one) for one in asked], "read predictions") if asked else []
    values = np.empty(len(positions))
    values[order] = np.concatenate([np.empty(0), *pieces])
    return values


def values_at(store: Store, block: Block, positions: Int64) -> Float64:
    """Read a block's values at positions, on a worker."""
    values: Float64 = read_rows(store, block).value_B[positions - block.first]
    return values


def find_cut(store: Store, blocks: Sequence[Block], budget_tokens: int) -> float:
    """Find the influence of the last document that fits a budget, best first, of equal ones the earlier first.

    It equals `prediction.selection_cut` of all the blocks' open documents.
    """

    def count(prefix: int, bits: int) -> list[ranking.Digits]:
        return map_blocks(count_tokens, [(store, block, prefix, bits) for block in blocks], "find the cut")

    found = ranking.find_last_value(count, budget_tokens)
    if found is None:
        return float("nan")
    value, left = found
    edges: list[Edge] = map_blocks(find_edge, [(store, block, value) for block in blocks], "find the cut")
    first = min((edge for edge in edges if edge.position >= 0), key=lambda edge: edge.position)
    above = min(edge.above for edge in edges)
    return value if first.tokens <= left or np.isinf(above) else above


def count_tokens(store: Store, block: Block, prefix: int, bits: int) -> ranking.Digits:
    """Sum a block's tokens by influence's next digit, of open documents whose first `bits` bits are `prefix`."""
    rows = read_rows(store, block)
    is_open = ~np.isnan(rows.value_B)
    return ranking.count_digits(ranking.take_rows(rows, is_open), prefix, bits)


def find_edge(store: Store, block: Block, value: float) -> Edge:
    """Find a block's first document at a value, and the least value above it."""
    influence_B, tokens_B = tables.read_array(store, block.key)
    rows = np.flatnonzero(influence_B == value)
    above = influence_B[influence_B > value].min(initial=np.inf)
    if len(rows) == 0:
        return Edge(-1, 0, float(above))
    return Edge(block.first + int(rows[0]), int(tokens_B[rows[0]]), float(above))


def draw_nearest(store: Store, predicted: PoolPrediction, excluded: Int64, n_documents: int) -> tuple[Int64, Int64]:
    """Draw the open documents predicted nearest the cut, nearest first; all of them where fewer are left.

    What blocks offer is kept in `predicted`, so that a round costs what it draws.

    Args:
        store: the workspace.
        predicted: from `predict_pool`.
        excluded: [M] ascending positions not to be drawn: those scored before or about to be.
        n_documents: how many to draw.

    Returns:
        Their positions, and the tokens of each.
    """
    left = np.flatnonzero(~is_among(excluded, predicted.offered))
    grown = bool(is_among(excluded, predicted.excluded).all())  # else what is free again was not offered
    if not grown or (len(left) < n_documents and not predicted.complete):
        n_offered = OFFERED * n_documents
        items = [(store, block, predicted.cut, n_offered, within(excluded, block)) for block in predicted.blocks]
        offers = map_blocks(offer_nearest, items, "find documents near the cut")
        positions, distances, tokens = (np.concatenate(column) for column in zip(*offers, strict=True))
        order = np.lexsort((positions, distances))[:n_offered]
        predicted.offered, predicted.offered_tokens = positions[order], tokens[order]
        whole = all(len(own) < n_offered for own, _, _ in offers)  # else a block may have more
        predicted.excluded, predicted.complete = excluded, whole and len(positions) <= n_offered
        left = np.arange(len(order))
    return predicted.offered[left[:n_documents]], predicted.offered_tokens[left[:n_documents]]


def offer_nearest(
    store: Store, block: Block, cut: float, n_documents: int, excluded: Int64
) -> tuple[Int64, Float64, Int64]:
    """Offer a block's open documents nearest the cut: their positions, distances from it, and tokens, nearest first."""
    influence_B, tokens_B = np.array(tables.read_array(store, block.key))
    influence_B[excluded - block.first] = np.nan
    rows = np.flatnonzero(~np.isnan(influence_B))
    rows = rows[prediction.nearest_to_cut(influence_B[rows], cut, n_documents)]
    return block.first + rows, np.abs(influence_B[rows] - cut), tokens_B[rows].astype(np.int64)


def map_blocks(task: Any, items: Sequence[tuple[Any, ...]], label: str, shared: Sequence[Any] = ()) -> list[Any]:
    """Call a task for every block on the Dask cluster; one block is no work to spread."""
    if len(items) == 1:
        return [task(*shared, *items[0])]
    return map_tasks(task, items, label, "blocks", shared=shared)


def within(ascending: Int64, block: Block) -> Int64:
    """Return the positions that lie in a block, of ascending ones."""
    first, end = np.searchsorted(ascending, [block.first, block.end])
    return ascending[first:end]


def _clip_ranges(first_A: Int64, end_A: Int64, block: Block) -> Int64:
    """Return the parts of ascending ranges of positions that lie in a block, [A, 2]."""
    own = slice(np.searchsorted(end_A, block.first, side="right"), np.searchsorted(first_A, block.end))
    return np.clip(np.stack([first_A[own], end_A[own]], axis=1), block.first, block.end)
