"""Sums by arm of what a layout wrote, and the arm index made of them.

The sums of a pool's layers add up to the pool's, so that an arm's mean and variance need no second reading.

Shape suffixes: K arms, A arms present.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core.clustering import kmeans
from quad_tasks.core.group_sums import group_sums
from quad_tasks.storage import tables
from quad_tasks.storage.keys import arm_index_key, layer_sums_key
from quad_tasks.storage.positions import column_vectors, vector_column
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

Int64 = npt.NDArray[np.int64]
TOKENS = "tokens_A"
SUMS = (*kmeans.Moments.__dataclass_fields__, TOKENS)
"""Names of the arrays that sums are stored as."""


class ArmSums(NamedTuple):
    """Sums over documents by arm: the `moments` of their embeddings, and [A] their tokens, of the arms present."""

    moments: kmeans.Moments
    tokens_A: Int64


def sum_by_arm(documents: pa.Table) -> ArmSums:
    """Sum up documents in arm order (`tables.arm_row_schema`)."""
    arm_N = documents["arm"].to_numpy()
    moments = kmeans.arm_moments(column_vectors(documents["embedding"]), arm_N)
    return ArmSums(moments, _sum_tokens(moments.arm_A, arm_N, documents["n_tokens"].to_numpy()))


def add_sums(parts: Sequence[ArmSums]) -> ArmSums:
    """Add up the sums of disjoint sets of documents."""
    moments = functools.reduce(kmeans.merge_moments, [sums.moments for sums in parts])
    arm = np.concatenate([sums.moments.arm_A for sums in parts])
    tokens = np.concatenate([sums.tokens_A for sums in parts])
    return ArmSums(moments, _sum_tokens(moments.arm_A, arm, tokens))


def _sum_tokens(arm_A: Int64, arm_N: npt.NDArray[np.integer], n_tokens_N: npt.NDArray[np.integer]) -> Int64:
    return group_sums(n_tokens_N.astype(np.int64), np.searchsorted(arm_A, arm_N), len(arm_A)).astype(np.int64)


def save_sums(store: Store, layout: str, sums: ArmSums) -> str:
    """Write the sums of what a layout wrote into its folder; return the digest."""
    return save_tensors(store, layer_sums_key(layout), sums_arrays(sums), {})


def load_sums(store: Store, layout: str, sha256: str) -> ArmSums:
    """Read the sums of what a layout wrote."""
    arrays, _ = load_tensors(store, layer_sums_key(layout), sha256)
    return sums_of(arrays)


def sums_arrays(sums: ArmSums) -> dict[str, npt.NDArray[Any]]:
    """Name the arrays of sums, as `SUMS`."""
    return {**{name: getattr(sums.moments, name) for name in SUMS[:-1]}, TOKENS: sums.tokens_A}


def sums_of(arrays: Mapping[str, npt.NDArray[Any]]) -> ArmSums:
    """Make sums of their named arrays."""
    return ArmSums(kmeans.Moments(*(arrays[name] for name in SUMS[:-1])), arrays[TOKENS])


def write_arm_index(store: Store, layout: str, centroids_KD: npt.NDArray[np.float32], sums: ArmSums) -> str:
    """Write the table of arms, a row each, into a layout's folder; return its digest.

    An arm that no document fell into keeps its trained centroid.
    """
    k, dimension = centroids_KD.shape
    n_documents, n_tokens = np.zeros(k, np.int64), np.zeros(k, np.int64)
    n_documents[sums.moments.arm_A] = sums.moments.count_A
    n_tokens[sums.moments.arm_A] = sums.tokens_A
    mean_KD, variance_KD = kmeans.arm_gaussians(sums.moments, centroids_KD)
    index = pa.table(
        {
            "arm": np.arange(k, dtype=np.int32),
            "n_documents": n_documents,
            "n_tokens": n_tokens,
            "centroid": vector_column(mean_KD.astype(np.float32)),
            "variance": vector_column(variance_KD.astype(np.float32)),
        }
    ).cast(tables.arm_index_schema(dimension))
    written = tables.write_table_stream(
        store, arm_index_key(layout), index.schema, index.to_batches(), tables.PART_ROWS
    )
    return written.sha256
