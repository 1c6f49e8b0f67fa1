"""Stage: a refresh writes what is new as a layer of the pool beside those of the last version.

Laying out a pool anew writes all of its text again; a layer writes the new documents' alone. Where the document at each
position stands follows from merging the layers by (arm, order), as one layout of all of them would have sorted them:
positions, arms and all that is drawn by them are the same either way. Once much of the pool stands in layers, or there
are many, the next refresh lays it out anew.

Shape suffixes: L layers, K arms, B block ends.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.manifests.pool import Layer, MergedBlock, Part, PoolVersion
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.pool.arm_sums import ArmSums, add_sums, load_sums, save_sums, write_arm_index
from quad_tasks.stages.pool.cluster import read_centroids
from quad_tasks.stages.pool.layout_progress import PartSummary
from quad_tasks.storage import tables
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.keys import arm_index_key, layer_sums_key, merged_block_key
from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.store import Store

Int64 = npt.NDArray[np.int64]
MOST_LAYERS = 8
MOST_LAYERED = 0.25
"""Share of a pool's documents that may stand outside its first layer."""
BLOCK_DOCUMENTS = 2**18
"""Documents of a merged block, unless one arm has more."""


class Stretch(NamedTuple):
    """Rows of a part: its table, the first of them in it, how many, and what the first is counted as in the version."""

    part: Part
    first: int
    n: int
    row: int


def takes_layer(base: PoolVersion, names: Sequence[str], kept: Sequence[int]) -> bool:
    """Tell whether the documents of `names` that `base` lacks are to be a layer beside its own.

    Args:
        base: the last version, of the same clustering, features and checkpoint.
        names: the pool's shards.
        kept: documents that each adds.
    """
    held = set(base.shards)
    new = sum(n for name, n in zip(names, kept, strict=True) if name not in held)
    outside = sum(layer.rows for layer in base.layers[1:]) + new
    return (
        bool(base.layers)
        and held <= set(names)
        and len(base.layers) < MOST_LAYERS
        and outside <= MOST_LAYERED * (base.documents + new)
    )


def sums_are_whole(store: Store, base: PoolVersion) -> bool:
    """Tell whether the sums of all layers can be read; say which cannot: the pool is then to be laid out anew."""
    try:
        for layer in base.layers:
            load_sums(store, layer.tables, base.files[layer_sums_key(layer.tables)])
    except (DigestMismatch, StoreKeyError) as error:
        notice(f"pool {base.pool} is laid out anew, since a layer's sums cannot be read: {error}")
        return False
    return True


def join_layers(
    store: Store,
    layout: str,
    clustering: str,
    base: PoolVersion | None,
    written: Sequence[PartSummary],
    beside: dict[str, str],
) -> dict[str, Any]:
    """Put what a layout wrote beside the layers of the last version; write the sums of both and the arm index.

    Args:
        store: the workspace.
        layout: the layout's folder.
        clustering: key of the clustering.
        base: the last version; None: the layout holds the whole pool.
        written: its parts.
        beside: digests of other files of the version.

    Returns:
        What of a pool version follows from its layers, by the names of its fields.
    """
    known, layers = (base.files, base.layers) if base else ({}, ())
    by_layer = [load_sums(store, one.tables, known[layer_sums_key(one.tables)]) for one in layers]
    files = {layer_sums_key(one.tables): known[layer_sums_key(one.tables)] for one in layers}
    if written:  # else all that is new is there already
        layers = (*layers, Layer(tables=layout, parts=len(written), rows=sum(one.part.rows for one in written)))
        by_layer.append(add_sums([one.sums for one in written]))
        files[layer_sums_key(layout)] = save_sums(store, layout, by_layer[-1])
    parts = (*(base.parts if base else ()), *(one.part for one in written))
    total = add_sums(by_layer)
    centroids_KD = read_centroids(store, clustering)
    files[arm_index_key(layout)] = write_arm_index(store, layout, centroids_KD, total)
    return {
        "parts": parts,
        "layers": layers,
        "merged": merge_layers(store, layout, len(centroids_KD), parts, layers, by_layer),
        "arms": len(centroids_KD),
        "documents": sum(layer.rows for layer in layers),
        "tokens": int(total.tokens_A.sum()),
        "bytes": sum(one.bytes for one in written) + (base.bytes if base else 0),
        "files": files | beside,
    }


def merge_layers(
    store: Store, layout: str, arms: int, parts: Sequence[Part], layers: Sequence[Layer], sums: Sequence[ArmSums]
) -> tuple[MergedBlock, ...]:
    """Write the row of the document at every position, in blocks of whole arms; none where there is one layer.

    Args:
        store: the workspace.
        layout: folder of the newest layer's tables.
        arms: K, of the clustering.
        parts: of all layers, in their order.
        layers: the layers, oldest first.
        sums: of each.
    """
    if len(layers) == 1:
        return ()
    rows_LK = np.zeros((len(layers), arms), dtype=np.int64)
    for own_K, each in zip(rows_LK, sums, strict=True):
        own_K[each.moments.arm_A] = each.moments.count_A
    bounds_K = np.cumsum(rows_LK.sum(axis=0))
    ends = _block_ends(bounds_K)
    firsts_L1 = np.cumsum([0, *(layer.rows for layer in layers)])[:-1, None]
    cuts_LB = firsts_L1 + np.pad(np.cumsum(rows_LK, axis=1), ((0, 0), (1, 0)))[:, ends]
    starts = np.cumsum([0, *(part.rows for part in parts)])
    items = [
        (store, merged_block_key(layout, number), [_stretches(parts, starts, *cut) for cut in cuts.tolist()])
        for number, cuts in enumerate(np.stack([cuts_LB[:, :-1], cuts_LB[:, 1:]], axis=2).swapaxes(0, 1))
    ]
    return tuple(map_tasks(merge_block, items, "merge layers", "blocks"))


def _block_ends(bounds_K: Int64) -> list[int]:
    """Cut arms into blocks of `BLOCK_DOCUMENTS` or more; [0, ..., K], the arm that each block ends before."""
    ends, last = [0], 0
    for arm, documents in enumerate(bounds_K.tolist(), start=1):
        if documents - last >= BLOCK_DOCUMENTS:
            ends.append(arm)
            last = documents
    if bounds_K[-1] > last:
        ends.append(len(bounds_K))
    return ends


def _stretches(parts: Sequence[Part], starts: Int64, first: int, end: int) -> list[Stretch]:
    """Find the rows [first, end) of a version in its parts."""
    found = []
    for number in range(int(np.searchsorted(starts, first, side="right")) - 1, len(parts)):
        low, high = max(first, int(starts[number])), min(end, int(starts[number + 1]))
        if low >= end:
            break
        if low < high:
            found.append(Stretch(parts[number], low - int(starts[number]), high - low, low))
    return found


def merge_block(store: Store, key: str, layers: Sequence[Sequence[Stretch]]) -> MergedBlock:
    """Write the rows of some arms' documents in the order of (arm, order), on a worker; of equals the older first."""
    stretches = list(itertools.chain.from_iterable(layers))
    read = [tables.read_rows(store, s.part.key, s.first, s.n, ["arm", "order"], s.part.seal) for s in stretches]
    rows = np.concatenate([np.arange(s.row, s.row + s.n) for s in stretches])
    table = pa.concat_tables(read)
    sort = np.lexsort((table["order"].to_numpy(), table["arm"].to_numpy()))
    small = rows[sort].astype(np.min_scalar_type(int(rows.max())))
    return MergedBlock(key=key, documents=len(rows), sha256=tables.write_array(store, key, small))
