"""Find near-duplicates among documents about to be selected: by embedding inside arms, by words anywhere.

The mathematics is `core.selection.near_duplicates`; here embeddings and texts are read, each document's once, and texts
are turned into signatures over Dask.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import SelectionConfig
from quad_tasks.core.selection import minhash, near_duplicates
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.ledger import arms_of
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import Store

Int64 = npt.NDArray[np.int64]

SIGN_ROWS = 128
"""Documents whose texts are read at once: 128 MiB where each is of 1 MiB."""


@dataclass
class NearDuplicateSearch:
    """A search for near-duplicates among documents of one pool version, which remembers what it has read.

    Attributes:
        store: the workspace.
        version: key of the pool version.
        settings: the similarities at which documents are near-duplicates.
        before: positions taken before; they are never left out, and near-duplicates of them are.
        dropped: near-duplicates found so far, by position.
    """

    store: Store
    version: str
    settings: SelectionConfig
    before: Int64
    dropped: list[int] = field(default_factory=list)
    _vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    _signatures: dict[int, npt.NDArray[np.uint32]] = field(default_factory=dict)

    def find(self, positions: Int64) -> Int64:
        """Return those of `positions`, best first, that are near-duplicates of an earlier one or one taken before."""
        looked = np.concatenate([self.before, positions])
        alike_N = np.zeros(len(looked), dtype=np.bool_)
        if self.settings.near_duplicate_overlap is not None:
            signatures_NP = self._signed(looked)
            overlap = self.settings.near_duplicate_overlap
            alike_N |= near_duplicates.near_duplicates_by_text(
                signatures_NP, lambda rows: self._shingles(looked[rows]), overlap
            )
        if self.settings.near_duplicate_cosine is not None:
            left = np.flatnonzero(~alike_N)
            vectors_ND, cosine = self._embedded(looked), self.settings.near_duplicate_cosine
            arm_N = arms_of(self.store, self.version, looked)
            alike_N |= near_duplicates.near_duplicates_by_embedding(vectors_ND, arm_N, left, cosine)
        found = looked[len(self.before) :][alike_N[len(self.before) :]]
        self.dropped += found.tolist()
        return found

    def _embedded(self, positions: Int64) -> npt.NDArray[np.float32]:
        new = [position for position in positions.tolist() if position not in self._vectors]
        if new:
            rows = read_positions(self.store, self.version, np.array(new), ["embedding"])
            self._vectors |= dict(zip(new, column_vectors(rows["embedding"]), strict=True))
        return np.stack([self._vectors[position] for position in positions.tolist()])

    def _signed(self, positions: Int64) -> npt.NDArray[np.uint32]:
        new = np.array([p for p in positions.tolist() if p not in self._signatures], dtype=np.int64)
        blocks = [new[start : start + SIGN_ROWS] for start in range(0, len(new), SIGN_ROWS)]
        items = [(self.store, self.version, block) for block in blocks]
        signed: list[Any] = (
            map_tasks(sign_block, items, "sign", "blocks") if len(items) > 1 else [sign_block(*i) for i in items]
        )
        for block, signatures in zip(blocks, signed, strict=True):
            self._signatures |= dict(zip(block.tolist(), signatures, strict=True))
        return np.stack([self._signatures[position] for position in positions.tolist()])

    def _shingles(self, positions: Int64) -> list[npt.NDArray[np.uint64]]:
        shingles = []
        for start in range(0, len(positions), SIGN_ROWS):
            rows = read_positions(self.store, self.version, positions[start : start + SIGN_ROWS], ["text"])
            shingles += [minhash.shingles(text) for text in rows["text"].to_pylist()]
        return shingles


def sign_block(store: Store, version: str, positions: Int64) -> npt.NDArray[np.uint32]:
    """Return the MinHash signatures of the documents at `positions`, [N, P]; on a worker."""
    rows = read_positions(store, version, positions, ["text"])
    return np.stack([minhash.signature(minhash.shingles(text)) for text in rows["text"].to_pylist()])
