"""Find text that overlaps with what a run measures itself on: an index of word shingles, built once a process.

What is measured is the measured part of the reference and every held-out domain. Whoever draws text from the pool to
train or to fit on asks here, before positions of the pool are known or after. The mathematics is
`core.selection.overlap`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from quad_tasks.core.selection.overlap import ShingleIndex, find_overlap, index_shingles
from quad_tasks.runtime.reference_tables import read_reference, read_reference_table
from quad_tasks.storage.store import Store


@dataclass(frozen=True)
class HeldOutText:
    """What a run holds out, and by how long word sequences it is recognised.

    Attributes:
        reference: key of the reference tables.
        words: of a shingle.
    """

    reference: str
    words: int

    def identity(self, store: Store) -> tuple[str, ...]:
        """Return what determines which texts are recognised."""
        manifest = read_reference(store, self.reference)
        digests = {"measured": manifest.measured.sha256, "heldout": manifest.heldout.sha256}
        return (*(digests[part] for part in _parts(store, self.reference)), str(self.words))

    def clean(self, store: Store, texts: Sequence[str]) -> list[str]:
        """Leave out the texts that hold held-out text."""
        index, _ = load_index(store, self.reference, self.words)
        return [text for text in texts if find_overlap(index, text) is None]


@functools.lru_cache(maxsize=1)
def load_index(store: Store, reference: str, words: int) -> tuple[ShingleIndex, list[tuple[str, str]]]:
    """Index everything that is measured, once a process; with each document's domain or reference set, and its id."""
    table = pa.concat_tables([read_reference_table(store, reference, part) for part in _parts(store, reference)])
    named = list(zip(table["domain"].to_pylist(), table["id"].to_pylist(), strict=True))
    return index_shingles(table["text"].to_pylist(), words), named


def _parts(store: Store, reference: str) -> list[str]:
    """Name the tables that are measured; a held-out domain that stands for the reference is in `heldout` already."""
    return ["heldout"] if read_reference(store, reference).reference_domain else ["measured", "heldout"]
