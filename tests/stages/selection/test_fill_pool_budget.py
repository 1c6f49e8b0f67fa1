"""Budgets filled from blocks take what they take from the whole pool in memory, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection import fill_budget
from quad_tasks.core.selection.ranking import Rows
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import name_blocks
from quad_tasks.stages.selection import fill_pool_budget
from quad_tasks.stages.selection.fill_pool_budget import fill_rankings, fill_without_duplicates, read_leading
from quad_tasks.storage import tables
from quad_tasks.storage.store import open_store

VERSION = "pools/p/v0001/manifest.json"
NOTHING = np.empty(0, dtype=np.int64)
VALUES = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 2.0, np.nan]) | st.floats(-3, 3)
POOLS = st.lists(st.tuples(VALUES, st.integers(1, 40)), min_size=1, max_size=40)
OFFERED = st.sampled_from([-1, 20, 10**6])


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """Call tasks one after another in this process."""
    with pytest.MonkeyPatch.context() as patch:
        call = lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]  # noqa: E731
        patch.setattr(pool_prediction, "map_tasks", call)
        yield


def write_blocks(store, value, tokens, size: int):
    blocks = name_blocks("f", [*range(0, len(value), size), len(value)])
    for block in blocks:
        own = slice(block.first, block.end)
        tables.write_array(store, block.key, np.stack([value[own], tokens[own].astype(float)]))
    return blocks


def ordered(value):
    rows = np.flatnonzero(~np.isnan(value))
    return rows[np.lexsort((rows, -value[rows]))]


@settings(max_examples=60)
@given(
    POOLS,
    st.integers(0, 500),
    st.integers(1, 41),
    OFFERED,
    st.none() | st.floats(0.05, 1),
    st.integers(0, 40),
    st.sampled_from([-9, 0.0]),
)
def test_a_budget_is_filled_as_from_one_array(rows, budget, size, offered, per_arm, n_excluded, above):
    value, tokens = np.array([v for v, _ in rows]), np.array([n for _, n in rows], dtype=np.int64)
    excluded = np.random.default_rng(n_excluded).permutation(len(value))[:n_excluded]
    starts = np.unique([0, len(value) // 3, len(value) // 2])
    arm = np.searchsorted(starts, np.arange(len(value)), side="right") - 1
    # A few documents are held as they are, and come first: those of the first third
    first = np.arange(len(value) // 4)
    held = Rows(first, value[first], tokens[first])
    blocks_value = value.copy()
    blocks_value[first] = np.nan
    store = open_store("memory://rankings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_pool_budget, "OFFERED_TOKENS", offered)
        rankings = [held, write_blocks(store, blocks_value, tokens, size)]
        found = fill_rankings(store, rankings, budget, excluded, starts, per_arm, above)
    order = np.concatenate(
        [ordered(np.where(np.isin(np.arange(len(value)), first), value, np.nan)), ordered(blocks_value)]
    )
    order = order[~np.isin(order, excluded) & (value[order] > above)]
    if per_arm is None:
        expected = fill_budget.fill_budget(order, tokens, budget)
    else:
        expected = fill_budget.fill_budget_by_arm(order, tokens, arm, budget, per_arm)
    assert found.position_B.tolist() == expected.tolist()
    assert found.tokens_B.tolist() == tokens[expected].tolist()


@settings(max_examples=40)
@given(POOLS, st.integers(0, 300), st.integers(1, 41), OFFERED, st.integers(0, 10))
def test_the_leading_documents_are_those_of_one_array(rows, budget, size, offered, n_held):
    value, tokens = np.array([v for v, _ in rows]), np.array([n for _, n in rows], dtype=np.int64)
    held = np.flatnonzero(~np.isnan(value))[:n_held]
    rest = value.copy()
    rest[held] = np.nan
    store = open_store("memory://rankings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_pool_budget, "OFFERED_TOKENS", offered)
        rankings = [Rows(held, value[held], tokens[held]), write_blocks(store, rest, tokens, size)]
        found = read_leading(store, rankings, budget, NOTHING)
    order = np.concatenate([held[np.lexsort((held, -value[held]))], ordered(rest)])
    expected = order[np.cumsum(tokens[order]) <= budget + tokens[order].max(initial=0)]
    assert found.position_B.tolist() == expected.tolist()


def test_near_duplicates_give_way_to_others_as_in_memory():
    value, tokens, kind = np.arange(12.0), np.full(12, 2), np.arange(12) // 3
    store = open_store("memory://rankings")
    blocks = write_blocks(store, value, tokens, 5)

    def find(positions):
        _, first = np.unique(kind[positions], return_index=True)
        return np.delete(positions, first)

    taken = fill_without_duplicates(lambda excluded: fill_rankings(store, [blocks], 6, excluded), find)
    assert taken.position_B.tolist() == [11, 8, 5]
    after = fill_without_duplicates(lambda excluded: fill_rankings(store, [blocks], 6, excluded), find, np.array([10]))
    assert after.position_B.tolist() == [8, 5, 2]


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="budget_tokens: expected >= 0, got -1"):
        fill_rankings(open_store("memory://rankings"), [], -1, NOTHING)
