"""Budgets filled from blocks take what they take from the whole pool in memory, whatever the blocks."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pool import pool_version

from quad_tasks.core.random_order import systematic_places, uniform_hash
from quad_tasks.core.selection import fill_budget
from quad_tasks.core.selection.ranking import Rows
from quad_tasks.manifests.pool import Part
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import name_blocks, read_rows
from quad_tasks.stages.selection import pool_ranking
from quad_tasks.stages.selection.pool_ranking import (
    fill_rankings,
    fill_without_duplicates,
    rank_at_random,
    rank_by_mean,
    rank_by_share,
    read_leading,
)
from quad_tasks.storage import tables
from quad_tasks.storage.manifest import write_manifest
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
        patch.setattr(pool_ranking, "OFFERED_TOKENS", offered)
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
        patch.setattr(pool_ranking, "OFFERED_TOKENS", offered)
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


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool version of 100 documents in four arms; its tokens."""
    store = open_store(str(tmp_path_factory.mktemp("pool")))
    tokens = np.random.default_rng(0).integers(2, 50, 100).astype(np.int32)
    table = pa.table({"n_tokens": tokens})
    rows, sha256 = tables.write_table_stream(store, "part", table.schema, [table], 8)
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=rows, sha256=sha256)]))
    return store, tokens.astype(np.int64)


STARTS, ARMS, CLOSED = np.array([0, 10, 60, 61]), np.array([0, 1, 3, 4]), np.array([0, 41, 60, 99])
ARM = np.searchsorted(STARTS, np.arange(100), side="right") - 1


def values(store, blocks):
    rows = [read_rows(store, block) for block in blocks]
    return np.concatenate([one.value_B for one in rows]), np.concatenate([one.tokens_B for one in rows])


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_what_workers_rank_by_is_that_of_the_whole_pool(pool, monkeypatch, size):
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", size)
    (store, tokens), left = pool, np.setdiff1d(np.arange(100), CLOSED)
    expected = np.full((3, 100), np.nan)
    expected[0, left] = uniform_hash(5, left)
    means = np.array([0.3, np.nan, 0.1, -2])
    expected[1, left] = means[ARM[left]]
    expected[2, left] = -systematic_places(left, tokens[left], ARMS[ARM[left]], 5)
    found = [
        rank_at_random(store, VERSION, "random", 100, 5, CLOSED),
        rank_by_mean(store, VERSION, "mean", STARTS, means, 100, CLOSED),
        rank_by_share(store, VERSION, "share", (STARTS, ARMS), 100, 5, CLOSED),
    ]
    for blocks, value in zip(found, expected, strict=True):
        stored = values(store, blocks)
        np.testing.assert_array_equal(stored[0], value)
        np.testing.assert_array_equal(stored[1], tokens)


def test_a_block_of_the_general_share_holds_whole_arms(pool, monkeypatch):
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", 12)
    blocks = rank_by_share(pool[0], VERSION, "share", (STARTS, ARMS), 100, 5, CLOSED)
    assert [(block.first, block.end) for block in blocks] == [(0, 60), (60, 100)]


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="budget_tokens: expected >= 0, got -1"):
        fill_rankings(open_store("memory://rankings"), [], -1, NOTHING)
