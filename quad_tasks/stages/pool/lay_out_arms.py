"""Stage: the pool is laid out arm by arm and becomes a version.

An arm's documents stand contiguously in an order drawn from (seed, document id), so that the next m documents of an arm
are one sequential read and a uniform sample of it. The tables are built under a name of their own and become a version
of the pool by one manifest, so that a half-built version is never seen and a running bandit keeps its own.

The layout is an external sort by (arm, order): pieces of shards are sorted, then ranges of all pieces are gathered into
groups of parts. Both are bounded in rows and in bytes, whatever the sizes of shards and documents. Where groups begin
follows from the arms' sizes alone: no process holds an array over the pool's documents.

Where few documents are new since the last version, they alone are laid out, beside what stands (`merge_layers`).

Shape suffixes: K arms, A arms present, G groups of parts.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core.group_sums import group_sums
from quad_tasks.manifests.pool import Drift, Part, PoolVersion
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.arm_sums import sum_by_arm
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.stages.pool.find_duplicates import Duplicates, find_duplicates
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.stages.pool.layout_progress import (
    RECORDS,
    PartSummary,
    Piece,
    find_group,
    find_piece,
    keep_group,
    keep_piece,
)
from quad_tasks.stages.pool.merge_layers import join_layers, sums_are_whole, takes_layer
from quad_tasks.storage import tables
from quad_tasks.storage.errors import StoreFault
from quad_tasks.storage.keys import (
    arm_spread_key,
    assignments_key,
    documents_key,
    embeddings_key,
    group_record_key,
    layout_groups_key,
    part_key,
    piece_record_key,
    pool_folder,
    shard_token_features_key,
    shuffle_folder,
    shuffled_piece_key,
    tables_folder,
)
from quad_tasks.storage.lease import check_lease
from quad_tasks.storage.manifest import digest, file_sha256
from quad_tasks.storage.pool_versions import commit_version, find_version, list_versions
from quad_tasks.storage.positions import read_table, vector_column
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import (
    PART_BYTES,
    PART_ROWS,
    ROW_GROUP_ROWS,
    SHUFFLE_GROUP_BYTES,
    SHUFFLE_GROUP_ROWS,
    widen,
)

Int64 = npt.NDArray[np.int64]
GROUP_ROWS, GROUP_BYTES = 8 * PART_ROWS, 2 * PART_BYTES
"""Most documents, and bytes of their texts, that one task gathers, as expected of a cut arm's random order."""
PIECE_ROWS, PIECE_BYTES = 2**17, 2**28
"""Most documents of a shard, and bytes of their texts, that one task sorts."""
ORDERS = 2**64
COLUMNS = ("id", "source", "text", "metadata", "n_tokens", "n_bytes")


class Build(NamedTuple):
    """What every task of a layout is told: the pool's name, and keys of what it is made from and of its tables."""

    pool: str
    embedder: str
    clustering: str
    token_features: str
    tables: str


class Range(NamedTuple):
    """Rows of a shuffled piece: the key of its table and the digest of its bytes, the first row, how many."""

    key: str
    sha256: str
    first: int
    n: int


@dataclass(frozen=True)
class ShardSizes:
    """What a shard adds to the layout.

    Attributes:
        arm_A: [A] arms present, ascending.
        rows_A: [A] kept documents of each.
        bytes_A: [A] bytes of their texts.
        bounds: of its pieces: piece i holds the rows [bounds[i], bounds[i + 1]).
    """

    arm_A: Int64
    rows_A: Int64
    bytes_A: Int64
    bounds: list[int]


@stage_task("lay out arms")
def lay_out_arms(
    store: Store,
    pool: str,
    seed: int,
    names: Sequence[str],
    clustering: str,
    token_features: str,
    model_key: str,
    recipe: str,
    drift: Drift,
    base: PoolVersion | None = None,
) -> str:
    """Write the pool in arm order and commit it as a version; return the version manifest's key.

    A version of the same shards, clustering and checkpoint is found again rather than built twice. Where few documents
    are new beside those of `base`, they alone are written.

    Args:
        store: the workspace.
        pool: the pool's name.
        seed: of the run.
        names: the shards.
        clustering: key of the clustering that the shards are assigned by.
        token_features: key of the shards' token features.
        model_key: key of the checkpoint whose tokenizer counted the tokens.
        recipe: what versions of one history share.
        drift: how far documents lie from where the centroids were trained.
        base: the last version of the same clustering, features and checkpoint, its shards the first of `names`.
    """
    duplicates = find_duplicates(store, pool, names)
    kept = _count_kept(store, pool, names, duplicates) if base else []
    base = base if base and takes_layer(base, names, kept) and sums_are_whole(store, base) else None
    beside = [[layer.tables for layer in base.layers]] if base else []
    tables_key = _find_folder(store, pool, [names, clustering, token_features, model_key, *beside])
    if (existing := find_version(store, pool, tables_key)) is not None:
        return existing
    build = Build(pool, read_clustering(store, clustering).embedder, clustering, token_features, tables_key)
    first_new = len(base.shards) if base else 0
    written = _write_layout(store, build, names[first_new:], duplicates[first_new:])
    version = PoolVersion(
        pool=pool,
        tables=tables_key,
        model=model_key,
        embedder=build.embedder,
        clustering=clustering,
        token_features=token_features,
        seed=seed,
        shards=tuple(names),
        set_aside=_count_set_aside(store, pool, names, duplicates),
        fields_dropped=_count_dropped(store, pool, names),
        recipe=recipe,
        drift=drift,
        **join_layers(store, tables_key, clustering, base, written, _digests_beside(store, build, names, base)),
    )
    _check_counts(store, version)
    check_lease(store, pool_folder(pool))
    key = commit_version(store, version)
    for shuffled in store.list(shuffle_folder(tables_key)):
        store.delete(shuffled)
    return key


def _find_folder(store: Store, pool: str, made_from: list[Any]) -> str:
    """Name the folder of a layout's tables: that of the version of it, else one that no version's layers stand in.

    A version may be pruned while a later one keeps its tables as a layer, which nothing may write again.
    """
    versions = [version for _, version in list_versions(store, pool)]
    laid_out = {version.tables for version in versions}
    layers = {layer.tables for version in versions for layer in version.layers}
    digests = (digest([*made_from, number] if number else made_from) for number in itertools.count())
    folders = (tables_folder(pool, one) for one in digests)
    return next(folder for folder in folders if folder in laid_out or folder not in layers)


def _write_layout(
    store: Store, build: Build, names: Sequence[str], duplicates: Sequence[Duplicates]
) -> list[PartSummary]:
    """Sort pieces of shards, gather them into parts, and return what the parts hold, in arm order."""
    repeated = {name: np.union1d(*rows) for name, rows in zip(names, duplicates, strict=True)}
    items = [(store, build, name, repeated[name]) for name in names]
    sizes = dict(zip(names, map_tasks(measure_shard, items, "measure arms", "shards"), strict=True))
    arm_G, order_G = cut_groups(*_sum_sizes(list(sizes.values())))
    tables.write_array(store, layout_groups_key(build.tables), np.stack([arm_G.astype(np.uint64), order_G]))
    pieces = [
        (store, build, name, number, first, end, rows[(rows >= first) & (rows < end)])
        for name, rows in repeated.items()
        for number, (first, end) in enumerate(itertools.pairwise(sizes[name].bounds))
    ]
    ranges: list[list[Range]] = [[] for _ in arm_G]
    for piece, made in zip(pieces, map_tasks(shuffle_piece, pieces, "shuffle", "pieces"), strict=True):
        for group, first, n in made.ranges.tolist():
            ranges[group].append(Range(shuffled_piece_key(build.tables, piece[2], piece[3]), made.sha256, first, n))
    groups = [(store, build.tables, group, own) for group, own in enumerate(ranges) if own]
    return [s for written in map_tasks(write_parts, groups, "lay out arms", "groups of parts") for s in written]


def measure_shard(store: Store, build: Build, name: str, repeated: Int64) -> ShardSizes:
    """Measure what a shard adds to each arm, its `repeated` rows left out, and cut it into pieces; on a worker."""
    arms = read_table(store, assignments_key(build.clustering, name), ["arm"])["arm"].to_numpy()
    seal = read_shard(store, build.pool, name).documents_seal
    n_bytes = read_table(store, documents_key(build.pool, name), ["n_bytes"], seal=seal)["n_bytes"].to_numpy()
    kept = np.setdiff1d(np.arange(len(arms)), repeated)
    arm_A, where, rows_A = np.unique(arms[kept].astype(np.int64), return_inverse=True, return_counts=True)
    bytes_A = group_sums(n_bytes[kept].astype(np.int64), where, len(arm_A)).astype(np.int64)
    return ShardSizes(arm_A, rows_A, bytes_A, cut_rows(n_bytes, PIECE_ROWS, PIECE_BYTES))


def _sum_sizes(shards: Sequence[ShardSizes]) -> tuple[Int64, Int64]:
    """Add up the documents and bytes of each arm over all shards, [K] and [K]."""
    n_arms = 1 + max((int(shard.arm_A[-1]) for shard in shards if len(shard.arm_A)), default=-1)
    rows_K, bytes_K = np.zeros(n_arms, dtype=np.int64), np.zeros(n_arms, dtype=np.int64)
    for shard in shards:
        rows_K[shard.arm_A] += shard.rows_A
        bytes_K[shard.arm_A] += shard.bytes_A
    return rows_K, bytes_K


def cut_groups(rows_K: Int64, bytes_K: Int64) -> tuple[Int64, npt.NDArray[np.uint64]]:
    """Cut the arms into groups that one task can gather: small arms together, a large one by its random order.

    Args:
        rows_K: [K] documents of each arm.
        bytes_K: [K] bytes of their texts.

    Returns:
        [G] arm and [G] order at which each group begins; it ends where the next one begins.
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
    return np.array(arms, dtype=np.int64), np.array(orders, dtype=np.uint64)


def shuffle_piece(store: Store, build: Build, name: str, number: int, first: int, end: int, repeated: Int64) -> Piece:
    """Write the rows [first, end) of a shard with their vectors in arm order, but for `repeated` ones; on a worker.

    A piece that an attempt before has written is taken as it is.
    """
    key, record = shuffled_piece_key(build.tables, name, number), piece_record_key(build.tables, name, number)
    arm_G, order_G = tables.read_array(store, layout_groups_key(build.tables))
    groups = [arm_G.tolist(), order_G.tolist()]
    sizes = [SHUFFLE_GROUP_ROWS, SHUFFLE_GROUP_BYTES]
    made_from = digest([RECORDS, build, name, number, first, end, repeated.tolist(), groups, sizes])
    found = find_piece(store, record, key, made_from)
    if found is not None:
        return found
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
    table = pa.table(columns).select(schema.names).cast(schema)
    batches = table.to_batches()
    written = tables.write_table_stream(store, key, table.schema, batches, SHUFFLE_GROUP_ROWS, SHUFFLE_GROUP_BYTES)
    piece = Piece(_group_ranges(arm, order, arm_G, order_G), written.sha256)
    keep_piece(store, record, made_from, piece)
    return piece


def _group_ranges(
    arm: npt.NDArray[np.int32],
    order: npt.NDArray[np.uint64],
    arm_G: npt.NDArray[np.uint64],
    order_G: npt.NDArray[np.uint64],
) -> Int64:
    """List each group's rows among rows sorted by (arm, order), as `Piece.ranges` has them."""
    wanted = arm_G.astype(arm.dtype)
    first_G, end_G = np.searchsorted(arm, wanted), np.searchsorted(arm, wanted, side="right")
    inside = [np.searchsorted(order[a:b], at) for a, b, at in zip(first_G, end_G, order_G, strict=True)]
    bounds = np.append(first_G + np.array(inside, dtype=np.int64), len(arm))
    present = np.flatnonzero(np.diff(bounds))
    return np.stack([present, bounds[present], np.diff(bounds)[present]], axis=1)


def write_parts(store: Store, build: str, group: int, pieces: list[Range]) -> list[PartSummary]:
    """Gather a group's parts from ranges of shuffled pieces; return what each holds.

    Parts that an attempt before has written are taken as they are.
    """
    record = group_record_key(build, group)
    made_from = digest([RECORDS, build, group, pieces, PART_ROWS, PART_BYTES, ROW_GROUP_ROWS])
    found = find_group(store, record, made_from)
    if found is not None:
        return found
    table = pa.concat_tables([tables.read_rows(store, piece.key, piece.first, piece.n) for piece in pieces])
    order = np.lexsort((table["order"].to_numpy(), table["arm"].to_numpy()))
    bounds = cut_rows(table["n_bytes"].to_numpy()[order], PART_ROWS, PART_BYTES)
    summaries = [
        _write_part(store, part_key(build, group, number), table.take(order[first:end]))
        for number, (first, end) in enumerate(itertools.pairwise(bounds))
    ]
    keep_group(store, record, made_from, summaries)
    return summaries


def _write_part(store: Store, key: str, table: pa.Table) -> PartSummary:
    rows, sha256 = tables.write_table_stream(store, key, table.schema, table.to_batches(), ROW_GROUP_ROWS)
    return PartSummary(
        part=Part(key=key, rows=rows, sha256=sha256, seal=tables.read_seal(store, key)),
        bytes=int(table["n_bytes"].to_numpy().sum()),
        sums=sum_by_arm(table),
    )


def _digests_beside(store: Store, build: Build, names: Sequence[str], base: PoolVersion | None) -> dict[str, str]:
    """Digest what a version was made from and no other manifest names; take the digests that `base` has."""
    known = base.files if base else {}
    keys = [embeddings_key(build.pool, build.embedder, name) for name in names]
    keys += [assignments_key(build.clustering, name) for name in names]
    keys += [shard_token_features_key(build.token_features, name) for name in names]
    if store.exists(arm_spread_key(build.clustering)):
        keys.append(arm_spread_key(build.clustering))
    new = [key for key in keys if key not in known]
    digests = dict(zip(new, map_tasks(file_sha256, [(store, key) for key in new], "digest", "files"), strict=True))
    return {key: known.get(key) or digests[key] for key in keys}


def _check_counts(store: Store, version: PoolVersion) -> None:
    """Refuse a layout that lost or gained documents.

    Raises:
        StoreFault: what came in is not what was laid out and set aside.
    """
    came_in = sum(read_shard(store, version.pool, name).documents_in for name in version.shards)
    found = version.documents + sum(version.set_aside.values())
    if came_in != found:
        raise StoreFault(
            f"{version.tables!r} in {store.uri}: expected the {came_in} documents of the pool's shards, laid out or "
            f"set aside, got {found}"
        )


def _count_dropped(store: Store, pool: str, names: Sequence[str]) -> dict[str, int]:
    return dict(sum((Counter(read_shard(store, pool, name).fields_dropped) for name in names), Counter[str]()))


def _count_kept(store: Store, pool: str, names: Sequence[str], duplicates: Sequence[Duplicates]) -> list[int]:
    """Count what each shard adds to the pool."""
    counts = [read_shard(store, pool, name).documents for name in names]
    return [n - len(text) - len(i) for n, (text, i) in zip(counts, duplicates, strict=True)]


def _count_set_aside(store: Store, pool: str, names: Sequence[str], duplicates: list[Duplicates]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, (same_text, same_id) in zip(names, duplicates, strict=True):
        counts.update(read_shard(store, pool, name).set_aside)
        counts.update({"duplicate_text": len(same_text), "duplicate_id": len(same_id)})
    return {reason: n for reason, n in sorted(counts.items()) if n}
