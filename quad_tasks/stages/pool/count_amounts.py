"""Count a pool version's documents and tokens by arm and source, on workers, a few parts each."""

import functools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from quad_tasks.manifests.pool import Part
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part
from quad_tasks.storage.store import Store

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
    parts = read_version(store, version).parts
    groups = [(store, parts[first : first + PARTS_AT_ONCE]) for first in range(0, len(parts), PARTS_AT_ONCE)]
    return _add_up([AMOUNTS.empty_table(), *map_tasks(count_parts, groups, "count sources", "groups of parts")])


def count_parts(store: Store, parts: Sequence[Part]) -> pa.Table:
    """Count the documents and tokens of a few parts, on a worker."""
    counted = []
    for part in parts:
        by_source = read_part(store, part, ["arm", "source", "n_tokens"]).group_by(["arm", "source"], use_threads=False)
        counted.append(_named(by_source.aggregate([("n_tokens", "count"), ("n_tokens", "sum")])))
    return _add_up(counted)


def sum_tokens(table: pa.Table, by: str, tokens: str = "n_tokens") -> dict[Any, int]:
    """Sum up the column `tokens` of a table by the values of another."""
    grouped = table.group_by(by, use_threads=False).aggregate([(tokens, "sum")])
    return dict(zip(grouped.column(by).to_pylist(), grouped.column(f"{tokens}_sum").to_pylist(), strict=True))


def _add_up(pieces: Sequence[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(pieces).group_by(["arm", "source"], use_threads=False)
    return _named(grouped.aggregate([("documents", "sum"), ("tokens", "sum")]))


def _named(grouped: pa.Table) -> pa.Table:
    return grouped.rename_columns(AMOUNTS.names).cast(AMOUNTS)
