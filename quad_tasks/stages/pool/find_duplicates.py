"""Find documents whose text, or whose id, an earlier document of the pool has already.

Earlier means: in the order of the shards, then of their rows. Workers hash each shard once. Hashes are then dealt out
by partition, a bundle of shards at a time, and each partition is searched on its own: a worker reads its partition's
hashes alone, and the driving process holds duplicates, not documents. What is dealt out is named by its shards and
cuts: a process that slept past its lease, with other shards of the pool, overwrites nothing its successor reads.

Shape suffixes: N documents, P partitions, C columns.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.pool.ingest import iter_documents, read_shard
from quad_tasks.stages.pool.shuffle import Dealt, Stored, iter_range, list_stored, write_ranges
from quad_tasks.storage import tables
from quad_tasks.storage.keys import dealt_hashes_folder, dealt_hashes_key, hashes_key, pool_folder
from quad_tasks.storage.lease import delete_as_holder
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

PARTITION_DOCUMENTS = 2**22
"""Documents, on average, whose hashes one worker compares; and of a bundle of shards, unless one has more."""
TEXT, ID = slice(0, 2), slice(2, 3)
"""Columns of a document's hashes: two of its text, one of its id."""
Duplicates = tuple[Int64, Int64]
"""Rows of a shard with a text, and with an id, that the pool has already."""


def find_duplicates(store: Store, pool: str, names: Sequence[str]) -> list[Duplicates]:
    """Find the documents of a pool's shards whose text, or whose id, an earlier one has.

    Returns:
        For each shard the rows with a duplicate text and the rows with a duplicate id, int64, ascending, disjoint.
    """
    map_tasks(hash_shard, [(store, pool, name) for name in names], "hash", "shards")
    documents = np.array([read_shard(store, pool, name).documents for name in names])
    starts = np.cumsum([0, *documents])
    partitions = max(1, -(-int(starts[-1]) // PARTITION_DOCUMENTS))
    bounds = cut_rows(documents, len(names), PARTITION_DOCUMENTS)
    made_from = digest([list(names), bounds, partitions])
    keys = [dealt_hashes_key(pool, made_from, number) for number in range(len(bounds) - 1)]
    bundles = [
        (store, pool, tuple(names[first:end]), int(starts[first]), partitions, key)
        for key, (first, end) in zip(keys, itertools.pairwise(bounds), strict=True)
    ]
    dealt: list[Dealt] = map_tasks(deal_hashes, bundles, "deal hashes", "bundles of shards")
    stored = list_stored(keys, dealt)
    items = [(store, own, number < partitions) for number, own in enumerate(stored)]
    found = map_tasks(find_repeats, items, "find duplicates", "partitions")
    delete_as_holder(store, pool_folder(pool), dealt_hashes_folder(pool))
    same_text, same_id = (np.sort(np.concatenate(own)) for own in (found[:partitions], found[partitions:]))
    same_id = np.setdiff1d(same_id, same_text, assume_unique=True)
    cuts = [np.searchsorted(indices, starts) for indices in (same_text, same_id)]
    return [
        (
            same_text[cuts[0][i] : cuts[0][i + 1]] - starts[i],
            same_id[cuts[1][i] : cuts[1][i + 1]] - starts[i],
        )
        for i in range(len(names))
    ]


def hash_shard(store: Store, pool: str, name: str) -> None:
    """Write the hashes of a shard's documents, [N, 3]: two of the text, one of the id; skip it where that is done."""
    key = hashes_key(pool, name)
    if store.exists(key):
        return
    blocks = [np.empty((0, 3), dtype=np.uint64)]
    for batch in iter_documents(store, pool, name, ["id", "text_hash"]):
        texts = np.frombuffer(b"".join(batch["text_hash"].to_pylist()), dtype=np.uint64).reshape(-1, 2)
        ids = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in batch["id"].to_pylist())
        blocks.append(np.column_stack([texts, np.frombuffer(ids, dtype=np.uint64)]))
    tables.write_array(store, key, np.concatenate(blocks))


def deal_hashes(store: Store, pool: str, names: Sequence[str], first: int, partitions: int, key: str) -> Dealt:
    """Deal the hashes of a bundle of shards out by partition, on a worker: those of texts, then those of ids.

    Args:
        store: the workspace.
        pool: the pool's name.
        names: the bundle's shards.
        first: number of its first document, counted through all shards.
        partitions: of the pool.
        key: of what is written.
    """
    hashes = np.concatenate([tables.read_array(store, hashes_key(pool, name)) for name in names])
    number_N = np.arange(first, first + len(hashes), dtype=np.uint64)

    def deal() -> Iterator[list[bytes]]:
        for columns in (TEXT, ID):
            partition_N = hashes[:, columns.start] % np.uint64(partitions)
            order = np.argsort(partition_N, kind="stable")
            bounds = np.searchsorted(partition_N[order], np.arange(partitions + 1, dtype=np.uint64))
            for start, end in itertools.pairwise(bounds):
                own = order[start:end]
                yield [np.column_stack([hashes[own, columns], number_N[own]]).tobytes()] if len(own) else []

    return write_ranges(store, key, deal())


def find_repeats(store: Store, stored: Sequence[Stored], of_texts: bool) -> Int64:
    """Find repeated texts, or repeated ids, among the hashes of one partition, on a worker.

    Returns:
        Numbers of the documents, counted through all shards, that have what an earlier one has; ascending.
    """
    columns = (2 if of_texts else 1) + 1
    frames = [np.frombuffer(frame, np.uint64) for one in stored for frame in iter_range(store, *one)]
    rows = np.concatenate([np.empty(0, np.uint64), *frames]).reshape(-1, columns)
    found: Int64 = rows[_repeats(rows[:, :-1]), -1].astype(np.int64)
    return found


def _repeats(values_NC: UInt64) -> npt.NDArray[np.bool_]:
    """Mark every row that equals an earlier row, [N]."""
    order = np.lexsort(values_NC.T)
    mask = np.zeros(len(values_NC), dtype=bool)
    mask[order[1:]] = (values_NC[order[1:]] == values_NC[order[:-1]]).all(axis=1)
    return mask
