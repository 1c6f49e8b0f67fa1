"""Cut rows into runs that are bounded in number and in bytes: the row groups, parts and pieces of the pool's tables.

Where a run ends follows from the rows alone, not from how they arrive in batches.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def cut_rows(size_N: npt.NDArray[np.integer], max_rows: int, max_bytes: int) -> list[int]:
    """Cut rows into runs of at most `max_rows` rows and `max_bytes` bytes, each as long as it can be, at least one row.

    Args:
        size_N: [N] bytes of each row.
        max_rows: of a run, > 0.
        max_bytes: of a run; a larger row is a run of its own.

    Returns:
        The runs' bounds: run i holds the rows [bounds[i], bounds[i + 1]).
    """
    total_N, bounds = np.cumsum(size_N, dtype=np.int64), [0]
    while (start := bounds[-1]) < len(size_N):
        before = int(total_N[start - 1]) if start else 0
        fits = int(np.searchsorted(total_N, before + max_bytes, side="right"))
        bounds.append(min(len(size_N), start + max_rows, max(fits, start + 1)))
    return bounds


def cut_row_groups(batches: Iterable[pa.RecordBatch | pa.Table], rows: int, n_bytes: int) -> Iterator[pa.Table]:
    """Cut batches into tables of exactly ``rows`` rows, fewer where their texts hold ``n_bytes`` or the rows end."""
    pending: list[pa.Table] = []
    count = size = 0
    for batch in batches:
        pending.append(batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch]))
        count, size = count + batch.num_rows, size + int(_row_bytes(pending[-1]).sum())
        if count >= rows or size > n_bytes:
            joined = pa.concat_tables(pending)
            bounds = cut_rows(_row_bytes(joined), rows, n_bytes)
            whole = bounds[-1] if bounds[-1] - bounds[-2] == rows else bounds[-2]  # what may still grow waits
            groups = itertools.pairwise(bound for bound in bounds if bound <= whole)
            yield from (joined.slice(first, end - first).combine_chunks() for first, end in groups)
            pending = [joined.slice(whole).combine_chunks()]
            count, size = pending[0].num_rows, int(_row_bytes(pending[0]).sum())
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _row_bytes(table: pa.Table) -> npt.NDArray[np.integer]:
    if "n_bytes" not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64)
    sizes: npt.NDArray[np.integer] = table["n_bytes"].to_numpy()
    return sizes
