"""Amounts by arm and source, and documents by length, are those of the whole pool, however many parts a task counts."""

import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.pool import count_amounts as module
from quad_tasks.stages.pool.count_amounts import count_amounts, count_lengths, sum_tokens
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part
from quad_tasks.storage.store import open_store


@pytest.mark.parametrize("at_once", [1, 16])
def test_amounts_are_those_of_the_whole_pool(small_run, monkeypatch, at_once):
    monkeypatch.setattr(module, "PARTS_AT_ONCE", at_once)
    count_amounts.cache_clear()
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    pool = read_version(store, version)
    documents = pa.concat_tables([read_part(store, part, ["arm", "source", "n_tokens"]) for part in pool.parts])
    expected: dict[tuple[int, str], list[int]] = {}
    for row in documents.to_pylist():
        expected.setdefault((row["arm"], row["source"]), []).append(row["n_tokens"])
    counted = count_amounts(store, version)
    amounts = counted.to_pylist()
    found = {(row["arm"], row["source"]): (row["documents"], row["tokens"]) for row in amounts}
    assert len(amounts) == len(found)
    assert found == {key: (len(tokens), sum(tokens)) for key, tokens in expected.items()}
    by_source = sum_tokens(counted, "source", "tokens")
    assert sum(by_source.values()) == pool.tokens
    assert set(by_source) == {row["source"] for row in amounts}


@pytest.mark.parametrize("at_once", [1, 16])
def test_lengths_are_those_of_the_whole_pool(small_run, monkeypatch, at_once):
    monkeypatch.setattr(module, "PARTS_AT_ONCE", at_once)
    count_lengths.cache_clear()
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    parts = read_version(store, version).parts
    n_tokens = np.concatenate([read_part(store, part, ["n_tokens"])["n_tokens"].to_numpy() for part in parts])
    expected, documents = np.unique(n_tokens, return_counts=True)
    found = count_lengths(store, version)
    assert (found[0].tolist(), found[1].tolist()) == (expected.tolist(), documents.tolist())
