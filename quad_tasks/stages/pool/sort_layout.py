"""Sort a pool's documents by (arm, order) into parts: an external sort whose tasks are bounded, whatever the sizes.

Pieces of shards are sorted, and dealt out over ranges of arms, a bundle of pieces at a time. A range is then gathered
from all bundles, one request each, and written group by group. Bundles and ranges grow with the pool up to a bound, so
that their product, by which requests go, stays small. Text is written twice: dealt out, and in its part.

Where groups begin follows from the arms' sizes alone: parts do not depend on bundles and ranges, and no process holds
an array over the pool's documents. Beside its memory a task takes room on its machine's disk: for a bundle twice, its
sorted pieces and the object made from them, or for a range.

Shape suffixes: K arms, A arms present, B bundles, G groups of parts, R ranges of groups.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core.group_sums import group_sums
from quad_tasks.manifests.pool import Part
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.pool.arm_sums import sum_by_arm
from quad_tasks.stages.pool.find_duplicates import Duplicates
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.stages.pool.layout_progress import (
    RECORDS,
    PartSummary,
    find_bundle,
    find_group,
    keep_bundle,
    keep_group,
)
from quad_tasks.stages.pool.shuffle import (
    Dealt,
    decode_rows,
    encode_rows,
    iter_range,
    name_elements,
    open_scratch,
    write_ranges,
)
from quad_tasks.storage import tables
from quad_tasks.storage.keys import (
    assignments_key,
    bundle_record_key,
    documents_key,
    embeddings_key,
    group_record_key,
    layout_ranges_key,
    part_key,
    shard_token_features_key,
    sorted_bundle_key,
)
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.positions import read_table, vector_column
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import PART_BYTES, PART_ROWS, ROW_GROUP_ROWS, widen

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
GROUP_ROWS, GROUP_BYTES = 8 * PART_ROWS, 2 * PART_BYTES
"""Most documents, and bytes of their texts, of a group of parts, as expected of a cut arm's random order."""
PIECE_ROWS, PIECE_BYTES = 2**17, 2**28
"""Most documents of a shard, and bytes of their texts, that are sorted at once."""
BUNDLE_ROWS, BUNDLE_BYTES = 8 * PIECE_ROWS, 8 * PIECE_BYTES
"""Most documents, and bytes of their texts, of a bundle of pieces that one task sorts."""
RANGE_GROUPS = 16
"""Most groups that one task gathers."""
SPREAD = 256
"""Tasks over which sorting and gathering are spread before one of them takes several pieces or groups."""
HELD_BYTES = 2**27
"""Of a range of several groups, that are in memory before they are put aside by group."""
ORDERS = 2**64
COLUMNS = ("id", "source", "text", "metadata", "n_tokens", "n_bytes")


class Build(NamedTuple):
    """What every task of a layout is told: the pool's name, and keys of what it is made from and of its tables."""

    pool: str
    embedder: str
    clustering: str
    token_features: str
    tables: str


class Piece(NamedTuple):
    """Rows [first, end) of a shard, but for those `repeated`."""

    name: str
    first: int
    end: int
    repeated: Int64


class Groups(NamedTuple):
    """Groups of parts: the [G] arms and [G] orders at which they begin, each before the next one."""

    arm_G: Int64
    order_G: UInt64

    def cut(self, first: int, n: int) -> "Groups":
        """Return the `n` groups from `first` on."""
        return Groups(self.arm_G[first : first + n], self.order_G[first : first + n])


@dataclass(frozen=True)
class Sizes:
    """What shards add to the layout.

    Attributes:
        arm_A: [A] arms present, ascending.
        rows_A: [A] kept documents of each.
        bytes_A: [A] bytes of their texts.
        bounds: of each shard's pieces: piece i holds the rows [bounds[i], bounds[i + 1]).
        bytes_of: of each shard's pieces, the bytes of their texts.
    """

    arm_A: Int64
    rows_A: Int64
    bytes_A: Int64
    bounds: list[list[int]]
    bytes_of: list[list[int]]


def write_layout(
    store: Store, build: Build, names: Sequence[str], duplicates: Sequence[Duplicates]
) -> list[PartSummary]:
    """Sort shards, but for their duplicates, into parts; return what the parts hold, in arm order."""
    repeated = [np.union1d(*rows) for rows in duplicates]
    sizes = _measure(store, build, names, repeated)
    groups = cut_groups(*_sum_sizes(sizes))
    if not len(groups.arm_G):
        return []
    n_groups = min(RANGE_GROUPS, math.ceil(len(groups.arm_G) / SPREAD))
    firsts = range(0, len(groups.arm_G), n_groups)
    starts_R = np.stack([groups.arm_G.astype(np.uint64), groups.order_G])[:, ::n_groups]
    tables.write_array(store, layout_ranges_key(build.tables), starts_R)
    bundles = [(store, build, number, own) for number, own in enumerate(_bundle_pieces(names, repeated, sizes))]
    dealt: list[Dealt] = map_tasks(sort_bundle, bundles, "sort", "bundles of shards")
    bounds_BR, made_of = np.stack([each.bounds for each in dealt]), digest([each.sha256 for each in dealt])
    items = []
    for r, first in enumerate(firsts):
        items.append((store, build.tables, first, groups.cut(first, n_groups), bounds_BR[:, r : r + 2], made_of))
    written = map_tasks(write_range, items, "lay out arms", "ranges of arms")
    return [summary for of_range in written for summary in of_range]


def _measure(store: Store, build: Build, names: Sequence[str], repeated: Sequence[Int64]) -> list[Sizes]:
    """Measure shards, many in one task where they are many: what is told of arms does not grow with the pool."""
    step = max(1, math.ceil(len(names) / SPREAD))
    shards = [slice(first, first + step) for first in range(0, len(names), step)]
    items = [(store, build, names[own], repeated[own]) for own in shards]
    sizes: list[Sizes] = map_tasks(measure_shards, items, "measure arms", "bundles of shards")
    return sizes


def measure_shards(store: Store, build: Build, names: Sequence[str], repeated: Sequence[Int64]) -> Sizes:
    """Measure what shards add to each arm, their `repeated` rows left out, and cut them into pieces; on a worker."""
    each = [_measure_shard(store, build, name, rows) for name, rows in zip(names, repeated, strict=True)]
    arm_N, rows_N, bytes_N = (np.concatenate([own[i] for own in each]) for i in range(3))
    arm_A, where = np.unique(arm_N, return_inverse=True)
    rows_A, bytes_A = (group_sums(own_N, where, len(arm_A)).astype(np.int64) for own_N in (rows_N, bytes_N))
    return Sizes(arm_A, rows_A, bytes_A, [own[3] for own in each], [own[4] for own in each])


def _measure_shard(
    store: Store, build: Build, name: str, repeated: Int64
) -> tuple[Int64, Int64, Int64, list[int], list[int]]:
    """Return the arms present in a shard, documents and bytes of each, and bounds and bytes of its pieces."""
    arms = read_table(store, assignments_key(build.clustering, name), ["arm"])["arm"].to_numpy()
    seal = read_shard(store, build.pool, name).documents_seal
    n_bytes = read_table(store, documents_key(build.pool, name), ["n_bytes"], seal=seal)["n_bytes"].to_numpy()
    kept = np.setdiff1d(np.arange(len(arms)), repeated)
    arm_A, where, rows_A = np.unique(arms[kept].astype(np.int64), return_inverse=True, return_counts=True)
    bytes_A = group_sums(n_bytes[kept].astype(np.int64), where, len(arm_A)).astype(np.int64)
    bounds = cut_rows(n_bytes, PIECE_ROWS, PIECE_BYTES)
    return (
        arm_A,
        rows_A,
        bytes_A,
        bounds,
        [int(n_bytes[a:b].sum(dtype=np.int64)) for a, b in itertools.pairwise(bounds)],
    )


def _sum_sizes(sizes: Sequence[Sizes]) -> tuple[Int64, Int64]:
    """Add up the documents and bytes of each arm over all shards, [K] and [K]."""
    n_arms = 1 + max((int(each.arm_A[-1]) for each in sizes if len(each.arm_A)), default=-1)
    rows_K, bytes_K = np.zeros(n_arms, dtype=np.int64), np.zeros(n_arms, dtype=np.int64)
    for each in sizes:
        rows_K[each.arm_A] += each.rows_A
        bytes_K[each.arm_A] += each.bytes_A
    return rows_K, bytes_K


def cut_groups(rows_K: Int64, bytes_K: Int64) -> Groups:
    """Cut the arms into groups whose parts are written at once: small arms together, a large one by its random order.

    Args:
        rows_K: [K] documents of each arm.
        bytes_K: [K] bytes of their texts.
    """
    firsts, rows, n_bytes = list[tuple[int, int]](), math.inf, 0.0
    for arm in np.flatnonzero(rows_K).tolist():
        arm_rows, arm_bytes = int(rows_K[arm]), int(bytes_K[arm])
        slices = max(-(-arm_rows // GROUP_ROWS), -(-arm_bytes // GROUP_BYTES), 1)
        for number in range(slices):
            rows, n_bytes = rows + arm_rows / slices, n_bytes + arm_bytes / slices
            if rows > GROUP_ROWS or n_bytes > GROUP_BYTES:
                firsts.append((arm, number * ORDERS // slices))
                rows, n_bytes = arm_rows / slices, arm_bytes / slices
    arms, orders = [arm for arm, _ in firsts], [order for _, order in firsts]
    return Groups(np.array(arms, dtype=np.int64), np.array(orders, dtype=np.uint64))


def _bundle_pieces(names: Sequence[str], repeated: Sequence[Int64], sizes: Sequence[Sizes]) -> list[list[Piece]]:
    """Cut shards into pieces, and put pieces that follow each other into bundles."""
    pieces, n_bytes = list[Piece](), list[int]()
    bounds_of = itertools.chain.from_iterable(each.bounds for each in sizes)
    for name, rows, bounds in zip(names, repeated, bounds_of, strict=True):
        for first, end in itertools.pairwise(bounds):
            pieces.append(Piece(name, first, end, rows[(rows >= first) & (rows < end)]))
    for each in sizes:
        n_bytes += itertools.chain.from_iterable(each.bytes_of)
    limits = BUNDLE_ROWS, BUNDLE_BYTES
    weights = np.array([[piece.end - piece.first for piece in pieces], n_bytes], dtype=np.float64).reshape(2, -1)
    shares = [own / min(limit, max(1.0, own.sum() / SPREAD)) for own, limit in zip(weights, limits, strict=True)]
    cuts = cut_rows(np.ceil(2**20 * np.max(shares, axis=0)).astype(np.int64), len(pieces), 2**20)
    return [pieces[first:end] for first, end in itertools.pairwise(cuts)]


def sort_bundle(store: Store, build: Build, number: int, pieces: Sequence[Piece]) -> Dealt:
    """Sort pieces with their vectors in arm order and deal them out over ranges of arms, on a worker.

    A bundle that an attempt before has written is taken as it is.
    """
    key, record = sorted_bundle_key(build.tables, number), bundle_record_key(build.tables, number)
    arm_R, order_R = tables.read_array(store, layout_ranges_key(build.tables))
    described = [[piece.name, piece.first, piece.end, piece.repeated.tolist()] for piece in pieces]
    made_from = digest([RECORDS, build, number, described, arm_R.tolist(), order_R.tolist()])
    found = find_bundle(store, record, key, made_from)
    if found is not None:
        return found
    with open_scratch(store, build.tables) as file:
        bounds = [_write_runs(file, _sort_piece(store, build, piece), arm_R, order_R) for piece in pieces]
        runs = ([own[r : r + 2] for own in bounds if own[r] < own[r + 1]] for r in range(len(arm_R)))
        dealt = write_ranges(store, key, ((_read_bytes(file, *run) for run in of_range) for of_range in runs))
    keep_bundle(store, record, made_from, dealt)
    return dealt


def _sort_piece(store: Store, build: Build, piece: Piece) -> pa.Table:
    """Read a piece's documents and vectors in the order of (arm, order)."""
    name, first, end, repeated = piece
    assigned = tables.read_rows(store, assignments_key(build.clustering, name), first, end - first, ["arm", "order"])
    rows = np.setdiff1d(np.arange(first, end), repeated)
    arm, order = (assigned[column].to_numpy()[rows - first] for column in ("arm", "order"))
    sort = np.lexsort((order, arm))
    rows, arm, order = rows[sort], arm[sort], order[sort]
    embeddings = tables.read_array(store, embeddings_key(build.pool, build.embedder, name))[rows]
    features = tables.read_array(store, shard_token_features_key(build.token_features, name))[rows]
    seal = read_shard(store, build.pool, name).documents_seal
    documents = tables.read_rows(store, documents_key(build.pool, name), first, end - first, COLUMNS, seal)
    documents = widen(documents).take(rows - first)
    schema = tables.arm_row_schema(embeddings.shape[1], features.shape[1])
    columns = {
        **{column: documents[column] for column in COLUMNS},
        "arm": arm,
        "shard": pa.array([name] * len(rows), pa.large_string()),
        "shard_row": rows,
        "order": order,
        "embedding": vector_column(embeddings),
        "token_features": vector_column(features),
    }
    return pa.table(columns).select(schema.names).cast(pa.schema([name_elements(field) for field in schema]))


def _write_runs(file: BinaryIO, table: pa.Table, arm_R: UInt64, order_R: UInt64) -> list[int]:
    """Append each range's rows of a sorted table to a file; return where they begin, and where the last ones end."""
    arm, order = table["arm"].to_numpy(), table["order"].to_numpy()
    wanted = arm_R.astype(arm.dtype)
    first_R, end_R = np.searchsorted(arm, wanted), np.searchsorted(arm, wanted, side="right")
    inside = [np.searchsorted(order[a:b], at) for a, b, at in zip(first_R, end_R, order_R, strict=True)]
    rows = [*(first_R + np.array(inside, dtype=np.int64)).tolist(), len(arm)]
    bounds = [file.tell()]
    for first, end in itertools.pairwise(rows):
        if first < end:
            file.write(encode_rows(table.slice(first, end - first)))
        bounds.append(file.tell())
    return bounds


def _read_bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def write_range(
    store: Store, build: str, first: int, groups: Groups, bounds_B2: Int64, made_of: str
) -> list[PartSummary]:
    """Gather a range's groups from all bundles, and write their parts, on a worker; return what each part holds.

    Groups that an attempt before has written are taken as they are.

    Args:
        store: the workspace.
        build: the layout's folder.
        first: number of the range's first group.
        groups: the range's.
        bounds_B2: [B, 2] the bytes that each bundle has of the range.
        made_of: digest of all bundles.
    """
    numbers = range(first, first + len(groups.arm_G))
    made_from = {n: digest([RECORDS, build, n, made_of, PART_ROWS, PART_BYTES, ROW_GROUP_ROWS]) for n in numbers}
    found = {n: find_group(store, group_record_key(build, n), made_from[n]) for n in numbers}
    if any(each is None for each in found.values()):
        frames = itertools.chain.from_iterable(
            iter_range(store, sorted_bundle_key(build, bundle), *own) for bundle, own in enumerate(bounds_B2.tolist())
        )
        for n, table in zip(numbers, _split_groups(store, build, map(decode_rows, frames), groups), strict=True):
            if found[n] is None:
                written = found[n] = [] if table is None else _write_group(store, build, n, table)
                keep_group(store, group_record_key(build, n), made_from[n], written)
    return [summary for n in numbers for summary in found[n] or []]


def _split_groups(store: Store, build: str, runs: Iterator[pa.Table], groups: Groups) -> Iterator[pa.Table | None]:
    """Split a range's rows into its groups, None where one has none; where they are many, by way of a file."""
    n_groups = len(groups.arm_G)
    held, size, aside = list[pa.Table](), 0, [list[tuple[int, int]]() for _ in range(n_groups)]
    with open_scratch(store, build) as file:
        for run in runs:
            held.append(run)
            size += run.nbytes
            if size > HELD_BYTES and n_groups > 1:
                _put_aside(file, _cut(held, groups), aside)
                held, size = [], 0
        if any(aside):
            _put_aside(file, _cut(held, groups), aside)
            held = []
        in_memory = _cut(held, groups)
        held = []
        for n in range(n_groups):
            own = [*(decode_rows(_read_bytes(file, *place)) for place in aside[n]), *in_memory[n : n + 1]]
            in_memory[n : n + 1] = [None]  # let go of it once it is written
            tables_of = [table for table in own if table is not None]
            yield pa.concat_tables(tables_of) if tables_of else None


def _cut(runs: Sequence[pa.Table], groups: Groups) -> list[pa.Table | None]:
    """Cut rows into groups, each in the order of its runs."""
    if not runs or len(groups.arm_G) == 1:
        return [pa.concat_tables(runs) if runs else None] + [None] * (len(groups.arm_G) - 1)
    table = pa.concat_tables(runs)
    arm_N, order_N = table["arm"].to_numpy(), table["order"].to_numpy()
    group_N = np.full(len(arm_N), -1)
    for arm, order in zip(*groups, strict=True):
        group_N += (arm_N > arm) | ((arm_N == arm) & (order_N >= order))
    rows = [np.flatnonzero(group_N == n) for n in range(len(groups.arm_G))]
    return [table.take(own) if len(own) else None for own in rows]


def _put_aside(file: BinaryIO, cut: Sequence[pa.Table | None], aside: list[list[tuple[int, int]]]) -> None:
    """Append each group's rows to a file, and note their place."""
    file.seek(0, os.SEEK_END)
    for places, table in zip(aside, cut, strict=True):
        if table is not None:
            start = file.tell()
            file.write(encode_rows(table))
            places.append((start, file.tell()))


def _write_group(store: Store, build: str, group: int, table: pa.Table) -> list[PartSummary]:
    """Write the parts of a group, whose rows come in any order."""
    order = np.lexsort((table["order"].to_numpy(), table["arm"].to_numpy()))
    bounds = cut_rows(table["n_bytes"].to_numpy()[order], PART_ROWS, PART_BYTES)
    return [
        _write_part(store, part_key(build, group, number), table.take(order[first:end]))
        for number, (first, end) in enumerate(itertools.pairwise(bounds))
    ]


def _write_part(store: Store, key: str, table: pa.Table) -> PartSummary:
    rows, sha256 = tables.write_table_stream(store, key, table.schema, table.to_batches(), ROW_GROUP_ROWS)
    return PartSummary(
        part=Part(key=key, rows=rows, sha256=sha256, seal=tables.read_seal(store, key)),
        bytes=int(table["n_bytes"].to_numpy().sum()),
        sums=sum_by_arm(table),
    )
