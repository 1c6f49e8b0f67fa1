"""The cut and the documents near it are those of all predictions in one array, whatever the blocks."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pool import pool_version

from quad_tasks.core.selection.prediction import fit_predictor, nearest_to_cut, predict, selection_cut
from quad_tasks.manifests.pool import Part
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.pool_prediction import (
    Block,
    PoolPrediction,
    draw_nearest,
    find_cut,
    predict_pool,
    read_values,
    write_predictions,
)
from quad_tasks.stages.bandit.predict import FeatureSource, _read_features
from quad_tasks.storage import tables
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import vector_column
from quad_tasks.storage.store import open_store

VERSION = "pools/p/v0001/manifest.json"
FEW = st.sampled_from([-1.5, -1e-300, -0.0, 0.0, 0.5, 0.5 + 2**-40, 2.0])
VALUES = st.one_of(FEW, st.floats(allow_nan=False, allow_infinity=False, width=64), st.just(float("nan")))


@pytest.fixture
def one_process(monkeypatch):
    """Call tasks one after another in this process."""
    call = lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]  # noqa: E731
    monkeypatch.setattr(pool_prediction, "map_tasks", call)


def write_blocks(store, influence, tokens, size: int) -> list[Block]:
    blocks = []
    for first in range(0, len(influence), size):
        block = Block(f"block-{first}.npy", first, min(first + size, len(influence)))
        tables.write_array(store, block.key, np.stack([influence[first : block.end], tokens[first : block.end]]))
        blocks.append(block)
    return blocks


@settings(max_examples=40)
@given(
    st.lists(st.tuples(VALUES, st.integers(1, 9)), min_size=1, max_size=30), st.integers(-2, 150), st.integers(1, 31)
)
def test_the_cut_is_that_of_one_sort_to_the_bit(rows, budget, size):
    influence, tokens = np.array([value for value, _ in rows]), np.array([float(n) for _, n in rows])
    is_open = ~np.isnan(influence)
    if not is_open.any():
        return
    store = open_store("memory://predictions")
    with pytest.MonkeyPatch.context() as patch:
        call = lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]  # noqa: E731
        patch.setattr(pool_prediction, "map_tasks", call)
        found = find_cut(store, write_blocks(store, influence, tokens, size), budget)
    assert found == selection_cut(influence[is_open], tokens[is_open].astype(np.int64), budget)


@settings(max_examples=30)
@given(
    st.lists(VALUES, min_size=1, max_size=40),
    st.lists(st.lists(st.integers(0, 39), max_size=5), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(1, 41),
)
def test_what_rounds_draw_is_nearest_of_what_is_left_however_blocks_are_cut(values, scored, n, size):
    influence, cut = np.array(values), 0.25
    store = open_store("memory://predictions")
    tokens = np.arange(len(values)) + 7
    predicted = PoolPrediction(write_blocks(store, influence, tokens, size), cut)
    excluded = np.empty(0, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        call = lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]  # noqa: E731
        patch.setattr(pool_prediction, "map_tasks", call)
        patch.setattr(pool_prediction, "OFFERED", 2)
        for new in scored:
            excluded = np.union1d(excluded, [p for p in new if p < len(values)]).astype(np.int64)
            left = np.setdiff1d(np.flatnonzero(~np.isnan(influence)), excluded)
            expected = left[nearest_to_cut(influence[left], cut, n)]
            drawn, n_tokens = draw_nearest(store, predicted, excluded, n)
            assert drawn.tolist() == expected.tolist()
            assert n_tokens.tolist() == tokens[expected].tolist()
            excluded = np.union1d(excluded, drawn)
        again, _ = draw_nearest(store, predicted, np.empty(0, dtype=np.int64), n)  # a round planned anew
    left = np.flatnonzero(~np.isnan(influence))
    assert again.tolist() == left[nearest_to_cut(influence[left], cut, n)].tolist()


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_a_pool_predicted_by_blocks_is_one_predicted_at_once(one_process, tmp_path, monkeypatch, size):
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", size)
    monkeypatch.setattr(pool_prediction, "READ_DOCUMENTS", 5)
    generator, n = np.random.default_rng(0), 100
    columns = {
        "embedding": vector_column(generator.normal(size=(n, 3)).astype(np.float32)),
        "n_tokens": generator.integers(2, 50, n).astype(np.int32),
        "n_bytes": generator.integers(50, 200, n).astype(np.int32),
        "arm": np.repeat(np.arange(4, dtype=np.int32), 25),
    }
    table, store = pa.table(columns), open_store(str(tmp_path))
    rows, sha256 = tables.write_table_stream(store, "part", table.schema, [table], 8)
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=rows, sha256=sha256)]))
    features, arms = _read_features(store, VERSION, np.arange(n), FeatureSource())
    known, measured = np.array([90, 3, 41, 42, 7, 60]), generator.normal(size=6)
    predictor = fit_predictor(features.values_NC[known], measured, arms[known], 4, generator, features.groups)
    influence = predict(predictor, features.values_NC, arms)
    influence[known] = measured
    closed = np.array([41, 0, 99])
    influence[closed] = np.nan
    is_open = ~np.isnan(influence)
    cut = selection_cut(influence[is_open], columns["n_tokens"][is_open].astype(np.int64), 500)
    found = predict_pool(store, VERSION, "f", n, predictor, FeatureSource(), (known, measured), closed, 500)
    assert found.cut == pytest.approx(cut, rel=1e-12)
    stored = np.concatenate([tables.read_array(store, block.key) for block in found.blocks], axis=1)
    np.testing.assert_allclose(stored[0], influence, rtol=1e-12)
    np.testing.assert_array_equal(stored[1], columns["n_tokens"])


def test_values_are_read_at_positions_in_any_order(one_process):
    store, value = open_store("memory://predictions"), np.array([0.5, np.nan, 2, 3, 4, 5])
    blocks = write_blocks(store, value, np.ones(6), 2)
    np.testing.assert_array_equal(read_values(store, blocks, np.array([5, 1, 0])), [5, np.nan, 0.5])
    assert read_values(store, blocks, np.empty(0, dtype=np.int64)).tolist() == []


def test_where_some_are_asked_for_they_alone_are_predicted(one_process, tmp_path, monkeypatch):
    """Neither what is known nor what is closed, in ranges that blocks cut."""
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", 8)
    monkeypatch.setattr(pool_prediction, "predict_block", lambda *given: given[3] + 0.5)
    table, store = pa.table({"n_tokens": np.arange(1, 31, dtype=np.int32)}), open_store(str(tmp_path))
    rows, sha256 = tables.write_table_stream(store, "part", table.schema, [table], 8)
    write_manifest(store, VERSION, pool_version([Part(key="part", rows=rows, sha256=sha256)]))
    known, closed = (np.array([29, 4]), np.array([7.0, 9.0])), np.array([10, 5])
    asked = np.array([3, 20]), np.array([12, 22])
    blocks, written = write_predictions(store, VERSION, "f", 30, None, FeatureSource(), known, closed, asked)
    expected = np.full(30, np.nan)
    predicted = [3, 6, 7, 8, 9, 11, 20, 21]
    expected[predicted] = np.array(predicted) + 0.5
    expected[[29, 4]] = 7, 9
    stored = np.concatenate([tables.read_array(store, block.key) for block in blocks], axis=1)
    np.testing.assert_array_equal(stored, [expected, np.arange(1, 31)])
    assert sum(each.predicted for each in written) == len(predicted)
    assert sum(each.open for each in written) == len(predicted) + 2
