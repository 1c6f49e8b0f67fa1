"""What workers rank by, block by block, is what ranks the whole pool."""

import numpy as np
import pyarrow as pa
import pytest
from small_pool import pool_version

from quad_tasks.core.random_order import systematic_places, uniform_hash
from quad_tasks.manifests.pool import Part
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import read_rows
from quad_tasks.stages.selection.rank_pool import rank_at_random, rank_by_mean, rank_by_share
from quad_tasks.storage import tables
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.store import open_store

VERSION = "pools/p/v0001/manifest.json"


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """Call tasks one after another in this process."""
    with pytest.MonkeyPatch.context() as patch:
        call = lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]  # noqa: E731
        patch.setattr(pool_prediction, "map_tasks", call)
        yield


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
