"""Row groups are bounded in rows and in bytes, and follow from the rows alone."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.storage.row_groups import cut_row_groups, cut_rows

SCHEMA = pa.schema([("n", pa.int64()), ("n_bytes", pa.int32())])


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 9))
def test_runs_are_as_long_as_their_bounds_let_them_be(sizes, rows):
    bounds = cut_rows(np.array(sizes, dtype=np.int64), rows, 50)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    for first, end in itertools.pairwise(bounds):
        assert end - first == 1 or sum(sizes[first:end]) <= 50
        assert 0 < end - first <= rows
        assert end == len(sizes) or end - first == rows or sum(sizes[first : end + 1]) > 50


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 9))
def test_row_groups_are_those_runs_however_rows_are_batched(sizes, cuts, rows):
    table = pa.table({"n": range(len(sizes)), "n_bytes": sizes}, schema=SCHEMA)
    edges = [0, *sorted(min(cut, len(sizes)) for cut in cuts), len(sizes)]
    batches = [table.slice(first, last - first) for first, last in itertools.pairwise(edges)]
    bounds = cut_rows(np.array(sizes, dtype=np.int64), rows, 50)
    expected = [list(range(first, end)) for first, end in itertools.pairwise(bounds)]
    assert [group["n"].to_pylist() for group in cut_row_groups(batches, rows, 50)] == expected
