"""Stage: find the pool documents that hold text a run measures itself on, so that none is ever drawn or selected.

What is measured is the measured part of the reference and every held-out domain. A model trained on such text would
show a gain that it owes to having seen the answers. The pool is searched part by part over Dask; each worker builds the
index of held-out shingles once, from the committed reference tables. The result belongs to the run: a table of
positions, and its manifest, written last. The mathematics is `core.selection.overlap`.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import ConfigError
from quad_tasks.core.evaluation.diagnosis import OverlapCounts, held_out_overlap
from quad_tasks.core.selection import overlap
from quad_tasks.manifests.pool import Part
from quad_tasks.manifests.run import OverlapManifest
from quad_tasks.records import Finding
from quad_tasks.runtime.contamination import load_index
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.runtime.run import check_run_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.storage import tables
from quad_tasks.storage.keys import overlap_manifest_key, overlap_table_key
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import positions_of, read_table
from quad_tasks.storage.store import Store

HELD_OUT_OVERLAP = held_out_overlap.__name__
"""The reason of what is set aside here, and the finding's signature."""
SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("id", pa.string()),
        ("domain", pa.string()),
        ("heldout_id", pa.string()),
        ("share", pa.float64()),
    ]
)
"""A pool document, and the held-out document it overlaps most with; `domain` is that one's held-out domain or reference
set, `share` is of the shorter one's shingles."""
BATCH_ROWS = 1024


@stage_task("find overlap")
def find_overlap(store: Store, run: str, version: str, reference: str, words: int | None) -> list[Finding]:
    """Commit which documents of the pool hold held-out text; return what is to be said of it.

    Args:
        store: the workspace.
        run: its name.
        version: key of the pool version.
        reference: key of the reference tables.
        words: of a shingle; None: nothing is looked for.

    Raises:
        ConfigError: every document of the pool holds held-out text.
    """
    new = words is not None and not store.exists(overlap_manifest_key(run))
    if words is not None and new:
        _search_pool(store, run, version, reference, words)
    findings = overlap_findings(count_overlap(store, run, reference))
    announce_findings(f"pool of run {run}", findings if new else [])
    return findings


def _search_pool(store: Store, run: str, version: str, reference: str, words: int) -> None:
    pool, found = read_version(store, version), _search(store, version, reference, words)
    if found.num_rows == pool.documents:
        raise ConfigError(
            f"pool.inputs: expected documents without held-out text, found none: all {pool.documents} hold text of "
            "heldout.inputs or of the measured part of the reference (heldout.overlap_words)"
        )
    rows, sha256 = tables.write_table_stream(store, overlap_table_key(run), SCHEMA, [found], BATCH_ROWS)
    manifest = OverlapManifest(
        version=version,
        reference=reference,
        words=words,
        share=overlap.OVERLAP_SHARE,
        pool_documents=pool.documents,
        documents=rows,
        verbatim=int(np.count_nonzero(found["share"].to_numpy() == 1)),
        sha256=sha256,
    )
    check_run_lease(store, run)
    write_manifest(store, overlap_manifest_key(run), manifest)


def _search(store: Store, version: str, reference: str, words: int) -> pa.Table:
    """List the documents of a pool version that hold held-out text, in the order of their positions."""
    parts = read_version(store, version).parts
    firsts = np.cumsum([0, *[part.rows for part in parts]])
    items = [(store, part, int(first), reference, words) for part, first in zip(parts, firsts, strict=False)]
    found = pa.concat_tables([SCHEMA.empty_table(), *map_tasks(search_part, items, "find held-out text", "parts")])
    position = positions_of(store, version, found["position"].to_numpy())
    found = found.set_column(0, SCHEMA.field("position"), pa.array(position))
    return found.filter(pa.array(position >= 0)).sort_by("position")


def search_part(store: Store, part: Part, first: int, reference: str, words: int) -> pa.Table:
    """List the documents of one part that hold held-out text, on a worker, each with its row for its position.

    Args:
        store: the workspace.
        part: the part.
        first: row of the version that the part begins with.
        reference: key of the reference tables.
        words: of a shingle.
    """
    index, named = load_index(store, reference, words)
    rows, position = [], first
    for batch in tables.iter_batches(store, part.key, ["id", "text"], BATCH_ROWS, part.seal):
        for name, text in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True):
            found = overlap.find_overlap(index, text)
            if found is not None:
                domain, heldout = named[found.document]
                rows.append((position, name, domain, heldout, found.share))
            position += 1
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def read_overlap(store: Store, run: str) -> OverlapManifest | None:
    """Read the manifest of the pool documents that hold held-out text; None where none were looked for."""
    key = overlap_manifest_key(run)
    return read_manifest(OverlapManifest, store, key) if store.exists(key) else None


def overlap_positions(store: Store, run: str) -> npt.NDArray[np.int64]:
    """Read the ascending positions of the pool documents that a run may not use, [N]; none where none were looked for.

    They are never pulled, scored, predicted, selected or drawn as control.
    """
    found = read_overlap(store, run)
    if found is None:
        return np.empty(0, dtype=np.int64)
    table = read_table(store, overlap_table_key(run), ["position"], sha256=found.sha256)
    positions: npt.NDArray[np.int64] = table["position"].to_numpy()
    return positions


def search_positions(store: Store, run: str, version: str, reference: str, words: int | None) -> npt.NDArray[np.int64]:
    """Return the ascending positions of a pool version that hold held-out text, [N], without committing them.

    Where the run has found them in this version already they are read, else the version is searched.
    """
    known = read_overlap(store, run)
    if known is not None and (known.version, known.reference) == (version, reference):
        return overlap_positions(store, run)
    if words is None:
        return np.empty(0, dtype=np.int64)
    positions: npt.NDArray[np.int64] = _search(store, version, reference, words)["position"].to_numpy()
    return positions


def count_overlap(store: Store, run: str, reference: str) -> OverlapCounts:
    """Count what holds held-out text: documents of the pool, and those left out of the direction."""
    found, left_out = read_overlap(store, run), read_reference(store, reference).overlapping
    if found is None:
        return OverlapCounts(reference_documents=left_out)
    return OverlapCounts(found.documents, found.verbatim, found.pool_documents, left_out)


def overlap_findings(counts: OverlapCounts) -> list[Finding]:
    """Return the finding on held-out text as a list of one, or of none."""
    finding = held_out_overlap(counts)
    return [finding] if finding else []
