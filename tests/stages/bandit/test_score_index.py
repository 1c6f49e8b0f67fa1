"""Scores are found by position as a search of all rows finds them, in the ledger's order."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.stages.bandit.score_index import add_scores, empty_index, insert_positions, is_among, scores_within

positions = st.lists(st.integers(0, 40), unique=True, max_size=30)


@given(positions, st.lists(st.integers(0, 30), max_size=4), st.integers(0, 40), st.integers(0, 40))
def test_scores_within_a_range_are_those_of_a_search_of_all_rows(position, cuts, first, end):
    position_S = np.array(position, dtype=np.int64)
    generator = np.random.default_rng(len(position))
    table = pa.table(
        {
            "position": position_S,
            "influence": generator.normal(size=len(position)),
            "n_targets": generator.integers(1, 9, len(position)),
        }
    )
    index, bounds = empty_index(), [0, *sorted(min(cut, len(position)) for cut in cuts), len(position)]
    for start, stop in itertools.pairwise(bounds):
        index = add_scores(index, table.slice(start, stop - start))
    rows = np.flatnonzero((position_S >= first) & (position_S < end))
    influence, n_targets = scores_within(index, first, end)
    assert influence.tolist() == table["influence"].to_numpy()[rows].tolist()
    assert n_targets.tolist() == table["n_targets"].to_numpy()[rows].tolist()
    assert index.position_S.tolist() == sorted(position)


@given(positions, st.lists(st.integers(0, 40), max_size=10))
def test_positions_are_inserted_each_once(before, new):
    ascending, added = np.array(sorted(before), dtype=np.int64), np.array(new, dtype=np.int64)
    assert insert_positions(ascending, added).tolist() == sorted({*before, *new})
    assert is_among(ascending, added).tolist() == [position in before for position in new]
