"""The prediction of a whole pool, kept in the workspace block by block: where a selection would end, what lies near it.

A block of positions is predicted by a worker, which writes influence and tokens; the driving process asks the blocks
for sums and for the few documents it draws, and holds no array over the pool. The cut is found by radix search: each
pass fixes 16 more bits of it, by the tokens of the predictions that share the bits before. What it gives equals
`prediction.selection_cut` and `prediction.nearest_to_cut` on all predictions at once, to the bit, whatever the blocks.

Shape suffixes: N documents, B documents of a block, U distinct values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.core.selection import prediction
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.predict import FeatureSource, predict_block
from quad_tasks.storage import tables
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

BLOCK_DOCUMENTS = 2**17
"""Documents of a block: 2 MiB of predictions."""
READ_DOCUMENTS = 8192
"""Documents whose features are in a worker's memory at once."""
DIGIT_BITS, KEY_BITS = 16, 64
SIGN = np.uint64(2**63)
OFFERED = 8
"""Times the documents asked for that blocks offer at once, so that most rounds ask none."""


class Block(NamedTuple):
    """A block of predictions: its key and its positions [first, end)."""

    key: str
    first: int
    end: int


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
        excluded: positions that were.
        complete: whether those offered are all there are.
    """

    blocks: list[Block]
    cut: float
    offered: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
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
    order = np.argsort(known[0])
    position, influence, shut = known[0][order], known[1][order], np.sort(closed)
    blocks, items = [], []
    for number, first in enumerate(range(0, n_documents, BLOCK_DOCUMENTS)):
        block = Block(f"{folder}/block-{number:06d}.npy", first, min(first + BLOCK_DOCUMENTS, n_documents))
        own = slice(*np.searchsorted(position, [block.first, block.end]))
        items.append((store, version, block, features, position[own], influence[own], _within(shut, block)))
        blocks.append(block)
    counts: list[int] = _map(write_block, items, "predict", shared=[predictor])
    cut = find_cut(store, blocks, budget_tokens) if sum(counts) else float("nan")
    return PoolPrediction(blocks, cut)


def write_block(
    predictor: prediction.Predictor,
    store: Store,
    version: str,
    block: Block,
    features: FeatureSource,
    known_position: Int64,
    known_influence: Float64,
    closed: Int64,
) -> int:
    """Write a block's [2, B] influence, NaN where closed, and tokens, on a worker; return how many are open."""
    rows = np.empty((2, block.end - block.first))
    for first in range(block.first, block.end, READ_DOCUMENTS):
        positions = np.arange(first, min(first + READ_DOCUMENTS, block.end))
        here = slice(first - block.first, first - block.first + len(positions))
        rows[0, here] = predict_block(predictor, store, version, positions, features)
        rows[1, here] = read_positions(store, version, positions, ["n_tokens"])["n_tokens"].to_numpy()
    rows[0, known_position - block.first] = known_influence
    rows[0, closed - block.first] = np.nan
    tables.write_array(store, block.key, rows)
    return int(np.count_nonzero(~np.isnan(rows[0])))


def find_cut(store: Store, blocks: Sequence[Block], budget_tokens: int) -> float:
    """Find the influence of the last document that fits a budget, best first, of equal ones the earlier first.

    It equals `prediction.selection_cut` of all the blocks' open documents.
    """
    prefix, left = 0, budget_tokens
    for bits in range(0, KEY_BITS, DIGIT_BITS):
        items = [(store, block, prefix, bits) for block in blocks]
        digits, tokens = _merge(_map(count_tokens, items, "find the cut"))
        # Best first: the first digit whose documents do not all fit, or the last one where all do
        filled = np.cumsum(tokens[::-1])
        index = min(int(np.searchsorted(filled, left, side="right")), len(digits) - 1)
        left -= int(filled[index - 1]) if index else 0
        prefix = prefix << DIGIT_BITS | int(digits[::-1][index])
    value = _value_of(prefix)
    edges: list[Edge] = _map(find_edge, [(store, block, value) for block in blocks], "find the cut")
    first = min((edge for edge in edges if edge.position >= 0), key=lambda edge: edge.position)
    above = min(edge.above for edge in edges)
    return value if first.tokens <= left or np.isinf(above) else above


def count_tokens(store: Store, block: Block, prefix: int, bits: int) -> tuple[Int64, Int64]:
    """Sum a block's tokens by influence's next digit, of documents whose first `bits` bits are `prefix`; [U], [U]."""
    influence_B, tokens_B = _open_rows(store, block)
    key_B = _keys(influence_B)
    if bits:
        chosen = key_B >> np.uint64(KEY_BITS - bits) == np.uint64(prefix)
        key_B, tokens_B = key_B[chosen], tokens_B[chosen]
    digit_B = key_B >> np.uint64(KEY_BITS - bits - DIGIT_BITS) & np.uint64(2**DIGIT_BITS - 1)
    digits, where = np.unique(digit_B.astype(np.int64), return_inverse=True)
    return digits, np.bincount(where, weights=tokens_B, minlength=len(digits)).astype(np.int64)


def find_edge(store: Store, block: Block, value: float) -> Edge:
    """Find a block's first document at a value, and the least value above it."""
    influence_B, tokens_B = tables.read_array(store, block.key)
    rows = np.flatnonzero(influence_B == value)
    above = influence_B[influence_B > value].min(initial=np.inf)
    if len(rows) == 0:
        return Edge(-1, 0, float(above))
    return Edge(block.first + int(rows[0]), int(tokens_B[rows[0]]), float(above))


def draw_nearest(store: Store, predicted: PoolPrediction, excluded: Int64, n_documents: int) -> Int64:
    """Draw the open documents predicted nearest the cut, nearest first; all of them where fewer are left.

    What blocks offer is kept in `predicted`, so that a round costs what it draws.

    Args:
        store: the workspace.
        predicted: from `predict_pool`.
        excluded: [M] positions not to be drawn: those scored before or about to be.
        n_documents: how many to draw.
    """
    left = predicted.offered[~np.isin(predicted.offered, excluded)]
    grown = bool(np.isin(predicted.excluded, excluded).all())  # else what is free again was not offered
    if not grown or (len(left) < n_documents and not predicted.complete):
        n_offered, shut = OFFERED * n_documents, np.sort(excluded)
        items = [(store, block, predicted.cut, n_offered, _within(shut, block)) for block in predicted.blocks]
        offers = _map(offer_nearest, items, "find documents near the cut")
        positions, distances = (np.concatenate(column) for column in zip(*offers, strict=True))
        predicted.offered = positions[np.lexsort((positions, distances))][:n_offered]
        whole = all(len(own) < n_offered for own, _ in offers)  # else a block may have more
        predicted.excluded, predicted.complete = excluded, whole and len(positions) <= n_offered
        left = predicted.offered
    return left[:n_documents]


def offer_nearest(store: Store, block: Block, cut: float, n_documents: int, excluded: Int64) -> tuple[Int64, Float64]:
    """Offer a block's open documents nearest the cut: their positions and distances from it, nearest first."""
    influence_B = np.array(tables.read_array(store, block.key)[0])
    influence_B[excluded - block.first] = np.nan
    rows = np.flatnonzero(~np.isnan(influence_B))
    rows = rows[prediction.nearest_to_cut(influence_B[rows], cut, n_documents)]
    return block.first + rows, np.abs(influence_B[rows] - cut)


def _map(task: Any, items: Sequence[tuple[Any, ...]], label: str, shared: Sequence[Any] = ()) -> list[Any]:
    """Call a task for every block on the Dask cluster; one block is no work to spread."""
    if len(items) == 1:
        return [task(*shared, *items[0])]
    return map_tasks(task, items, label, "blocks", shared=shared)


def _merge(counts: Sequence[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """Add up tokens by digit over blocks: ascending digits, and the tokens of each."""
    digits, where = np.unique(np.concatenate([digits for digits, _ in counts]), return_inverse=True)
    tokens = np.zeros(len(digits), dtype=np.int64)
    np.add.at(tokens, where, np.concatenate([tokens for _, tokens in counts]))
    return digits, tokens


def _open_rows(store: Store, block: Block) -> tuple[Float64, Float64]:
    """Read the influence and the tokens of a block's open documents."""
    influence_B, tokens_B = tables.read_array(store, block.key)
    is_open = ~np.isnan(influence_B)
    return influence_B[is_open], tokens_B[is_open]


def _keys(influence_B: Float64) -> UInt64:
    """Map influence to integers in the same order."""
    bits = (influence_B + 0.0).view(np.uint64)  # of -0.0, 0.0: they are equal
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value_of(key: int) -> float:
    """Return the influence of a key."""
    bits = np.array([key], dtype=np.uint64)
    return float(np.where(bits & SIGN, bits ^ SIGN, ~bits).view(np.float64)[0])


def _within(ascending: Int64, block: Block) -> Int64:
    first, end = np.searchsorted(ascending, [block.first, block.end])
    return ascending[first:end]
