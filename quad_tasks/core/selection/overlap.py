"""Find texts that hold held-out text: the share of the shorter one's word shingles that both have.

Owns the index of held-out shingles and the containment by which a text is found (Broder 1997). Jaccard similarity, by
which near-duplicates are found, misses a held-out passage hidden in a longer text, and a piece cut from a held-out
document; the containment of the shorter in the longer does not change with what stands around it. Texts that are equal
but for letter case, spaces and punctuation have equal shingles, so an exact copy has containment 1. Bloom filters were
rejected: they tell that a shingle is held out, not whose it is.

Shape suffixes: D held-out documents, U their distinct shingles, M pairs of a shingle and a document that has it,
S shingles of one text, H of these held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.core.selection.minhash import shingles

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

OVERLAP_SHARE = 0.8
"""Least share of the shorter one's shingles that makes an overlap: the similarity of near-duplicates by default. Of
28,612 documents of fifteen domains and 7,660 held-out ones that share no source, five-word shingles found one pair, a
true one; at 0.5 they found 31 documents, all but that one alike by their form."""
FEWEST_SHINGLES = 16
"""A text of fewer is no piece cut from a held-out document: among those documents six such texts were found inside a
longer one, common phrases all, and none of more. It is still found where it holds the whole of a shorter one."""


class Overlap(NamedTuple):
    """The held-out document that a text overlaps most with: its row in the index, and the share of shingles."""

    document: int
    share: float


@dataclass(frozen=True)
class ShingleIndex:
    """The shingles of D documents, inverted.

    Attributes:
        words: words of a shingle.
        shingle_U: [U] uint64, ascending.
        first_U: [U + 1] int64, where in `document_M` the documents of each shingle begin, and its length at last.
        document_M: [M] int32, the documents that have each shingle.
        size_D: [D] int64, distinct shingles of each document, at least one.
    """

    words: int
    shingle_U: UInt64
    first_U: Int64
    document_M: npt.NDArray[np.int32]
    size_D: Int64


def index_shingles(texts: Sequence[str], words: int) -> ShingleIndex:
    """Invert the shingles of held-out texts.

    Args:
        texts: D of them; one of fewer than `words` words is a single shingle, found in its exact copies only.
        words: words of a shingle, > 0.
    """
    own = [shingles(text, words) for text in texts]
    size_D = np.array([len(one) for one in own], dtype=np.int64)
    # Pairs of a shingle and a document, sorted by shingle: [M], [M]
    pair_M = np.concatenate([np.empty(0, dtype=np.uint64), *own])
    order = np.argsort(pair_M, kind="stable")
    document_M = np.repeat(np.arange(len(own), dtype=np.int32), size_D)[order]
    # Each distinct shingle and where its documents begin: [U], [U + 1]
    shingle_U, first_U = np.unique(pair_M[order], return_index=True)
    return ShingleIndex(words, shingle_U, np.append(first_U, len(pair_M)), document_M, size_D)


def find_overlap(index: ShingleIndex, text: str, least: float = OVERLAP_SHARE) -> Overlap | None:
    """Find the indexed document that a text overlaps most with; of several the first.

    Args:
        index: of the held-out documents.
        text: any text.
        least: share of the shorter one's shingles, in (0, 1], below which there is no overlap.
    """
    if len(index.shingle_U) == 0:
        return None
    # The text's shingles that are held out, as rows of the index: [S] -> [H]
    own_S = shingles(text, index.words)
    row_S = np.minimum(np.searchsorted(index.shingle_U, own_S), len(index.shingle_U) - 1)
    row_H = row_S[index.shingle_U[row_S] == own_S]
    # Count them by the documents that have them, as a share of the shorter one's shingles: [D]
    having = [index.document_M[index.first_U[row] : index.first_U[row + 1]] for row in row_H.tolist()]
    if not having:
        return None
    most = len(own_S) if len(own_S) >= FEWEST_SHINGLES else len(index.shingle_U)
    share_D = np.bincount(np.concatenate(having), minlength=len(index.size_D)) / np.minimum(index.size_D, most)
    best = int(share_D.argmax())
    return Overlap(best, float(share_D[best])) if share_D[best] >= least else None
