"""Count a pool version's documents and tokens by arm and source, and documents by length, on workers."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.manifests.pool import Part
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part
from quad_tasks.storage.store import Store

Int64 = npt.NDArray[np.int64]
AMOUNTS = pa.schema(
    [("arm", pa.int32()), ("source", pa.large_string()), ("documents", pa.int64()), ("tokens", pa.int64())]
)
PARTS_AT_ONCE = 16
"""Parts that one task counts."""


@functools.lru_cache(maxsize=1)
def count_amounts(store: Store, version: str) -> pa.Table:
    """Count documents and tokens by `arm` and `source`, as `AMOUNTS`; once a process for a version.

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
    """
    counted = map_tasks(count_parts, _groups(store, version), "count sources", "groups of parts")
    return _add_up([AMOUNTS.empty_table(), *counted])


def count_parts(store: Store, parts: Sequence[Part]) -> pa.Table:
    """Count the documents and tokens of a few parts, on a worker."""
    counted = []
    for part in parts:
        by_source = read_part(store, part, ["arm", "source", "n_tokens"]).group_by(["arm", "source"], use_threads=False)
        counted.append(_named(by_source.aggregate([("n_tokens", "count"), ("n_tokens", "sum")])))
    return _add_up(counted)


@functools.lru_cache(maxsize=2)
def count_lengths(store: Store, version: str) -> tuple[Int64, Int64]:
    """Count documents by their tokens: [L] ascending tokens, and [L] documents of this many; once for a version.

    Args:
        store: the workspace.
        version: key of the pool version's manifest.
    """
    counted = map_tasks(count_lengths_of_parts, _groups(store, version), "count lengths", "groups of parts")
    return _merge_lengths(counted)


def count_lengths_of_parts(store: Store, parts: Sequence[Part]) -> tuple[Int64, Int64]:
    """Count the documents of a few parts by their tokens, on a worker."""
    read = [read_part(store, part, ["n_tokens"])["n_tokens"].to_numpy() for part in parts]
    return _merge_lengths([np.unique(n_tokens, return_counts=True) for n_tokens in read])


def _merge_lengths(counted: Sequence[tuple[npt.NDArray[np.integer], Int64]]) -> tuple[Int64, Int64]:
    lengths, where = np.unique(np.concatenate([lengths for lengths, _ in counted]), return_inverse=True)
    documents = np.zeros(len(lengths), dtype=np.int64)
    np.add.at(documents, where, np.concatenate([documents for _, documents in counted]))
    return lengths.astype(np.int64), documents


def _groups(store: Store, version: str) -> list[tuple[Store, tuple[Part, ...]]]:
    """Cut a version's parts into what a task counts each."""
    parts = read_version(store, version).parts
    return [(store, parts[first : first + PARTS_AT_ONCE]) for first in range(0, len(parts), PARTS_AT_ONCE)]


def sum_tokens(table: pa.Table, by: str, tokens: str = "n_tokens") -> dict[Any, int]:
    """Sum up the column `tokens` of a table by the values of another."""
    grouped = table.group_by(by, use_threads=False).aggregate([(tokens, "sum")])
    return dict(zip(grouped.column(by).to_pylist(), grouped.column(f"{tokens}_sum").to_pylist(), strict=True))


def _add_up(pieces: Sequence[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(pieces).group_by(["arm", "source"], use_threads=False)
    return _named(grouped.aggregate([("documents", "sum"), ("tokens", "sum")]))


def _named(grouped: pa.Table) -> pa.Table:
    return grouped.rename_columns(AMOUNTS.names).cast(AMOUNTS)
