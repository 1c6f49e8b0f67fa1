"""Runs of a ranking found block by block are those of the ranking in one piece."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.ranking import (
    NO_ROWS,
    START,
    ArmLimits,
    Place,
    Rows,
    Wanted,
    count_digits,
    find_last_value,
    keep_wanted,
    merge_run,
    split_among_blocks,
    take_best,
    take_leading,
    take_within_arms,
    tokens_at,
)

VALUES = st.sampled_from([-1.5, -1e-300, -0.0, 0.0, 0.5, 0.5 + 2**-40, 2.0, np.nan]) | st.floats(-3, 3)
ROWS = st.lists(st.tuples(VALUES, st.integers(1, 9)), min_size=1, max_size=30).map(
    lambda rows: Rows(
        np.arange(len(rows)), np.array([value for value, _ in rows]), np.array([n for _, n in rows], dtype=np.int64)
    )
)
NOTHING = np.empty(0, dtype=np.int64)


def cut(rows: Rows, size: int) -> list[Rows]:
    return [Rows(*(c[first : first + size] for c in rows)) for first in range(0, len(rows.position_B), size)]


def one_by_one(rows: Rows, left: int) -> list[int]:
    """Go down the ranking until a document no longer fits."""
    run = []
    order = sorted(
        (p for p in rows.position_B.tolist() if not np.isnan(rows.value_B[p])), key=lambda p: (-rows.value_B[p], p)
    )
    for position in order:
        left -= int(rows.tokens_B[position])
        if left < 0:
            break
        run.append(position)
    return run


@settings(max_examples=60)
@given(ROWS, st.integers(0, 150), st.integers(1, 31))
def test_a_run_ends_where_one_by_one_a_document_no_longer_fits(rows, budget, size):
    wanted = Wanted(START, 9, NOTHING)
    blocks = [keep_wanted(block, wanted) for block in cut(rows, size)]
    offered = merge_run([take_leading(block, budget) for block in blocks], budget)
    assert offered.position_B.tolist() == one_by_one(rows, budget)
    found = find_last_value(lambda prefix, bits: [count_digits(block, prefix, bits) for block in blocks], budget)
    if found is None:
        assert np.isnan(rows.value_B).all()
        return
    value, left = found
    shares = split_among_blocks([tokens_at(block, value) for block in blocks], left)
    taken = [take_best(block, value, share) for block, share in zip(blocks, shares, strict=True)]
    assert sorted(np.concatenate([one.position_B for one in taken]).tolist()) == sorted(one_by_one(rows, budget))


def test_what_is_wanted_lies_after_a_place_fits_and_is_not_excluded():
    rows = Rows(np.arange(6), np.array([3.0, 2, 2, 2, 1, np.nan]), np.array([1, 1, 1, 5, 2, 1]))
    after = Wanted(Place(2.0, 1), 9, NOTHING)
    assert keep_wanted(rows, after).position_B.tolist() == [2, 3, 4]
    assert keep_wanted(rows, after._replace(tokens=4)).position_B.tolist() == [2, 4]
    assert keep_wanted(rows, after._replace(excluded=np.array([2]))).position_B.tolist() == [3, 4]
    assert keep_wanted(rows, after._replace(above=1.0)).position_B.tolist() == [2, 3]
    arms = ArmLimits(np.array([0, 3, 4]), np.array([0, 5, 1]))
    assert keep_wanted(rows, after._replace(arms=arms)).position_B.tolist() == [3]


def test_arms_take_of_a_run_what_they_may_still_hold():
    run = Rows(np.array([0, 2, 1, 3]), np.array([4.0, 3, 2, 1]), np.array([3, 2, 2, 4]))
    taken, limits = take_within_arms(run, ArmLimits(np.array([0, 2]), np.array([4, 9])), 20)
    assert taken.position_B.tolist() == [0, 2, 3]
    assert limits.left_A.tolist() == [1, 3]
    assert take_within_arms(run, ArmLimits(np.array([0]), np.array([99])), 6)[0].position_B.tolist() == [0, 2]


def test_no_blocks_hold_no_run():
    assert merge_run([], 5).position_B.tolist() == []
    assert find_last_value(lambda *_: [count_digits(NO_ROWS, 0, 0)], 5) is None
