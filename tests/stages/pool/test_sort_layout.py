"""The layout in arm order is that of one sort in memory, whatever the sizes of what passes on the way to its parts."""

import errno

import numpy as np
import pyarrow as pa
import pytest
from assigned_pool import CLUSTERING, FEATURES, NO_DRIFT, PowerCut, in_arm_order, in_turn, write_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quad_tasks.stages.pool import find_duplicates, shuffle
from quad_tasks.stages.pool import lay_out_arms as laying_out
from quad_tasks.stages.pool import sort_layout as layout
from quad_tasks.stages.pool.lay_out_arms import lay_out_arms
from quad_tasks.storage import tables
from quad_tasks.storage.keys import arm_index_key
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import column_vectors, read_table
from quad_tasks.storage.store import Store, StoreFault, open_store


def lay_out(store: Store, names: list[str]) -> tuple[list[pa.Table], pa.Table]:
    version = read_version(store, lay_out_arms.fn(store, "p", 0, names, CLUSTERING, FEATURES, "m", "", NO_DRIFT))
    return [read_table(store, part.key) for part in version.parts], read_table(store, arm_index_key(version.tables))


@pytest.fixture
def one_process(monkeypatch):
    """Call tasks one after another in this process."""
    for module in (find_duplicates, laying_out, layout):
        monkeypatch.setattr(module, "map_tasks", in_turn)


documents = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(1, 30)), max_size=25), min_size=1, max_size=4
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents,
    st.sampled_from([1, 3, 10_000]),
    st.sampled_from([20, 100, 10**6]),
    st.sampled_from([5, 10**6]),
    st.sampled_from([1, 3, 256]),
    st.sampled_from([1, 4000, 2**27]),
)
def test_the_layout_is_one_sort_whatever_the_sizes(one_process, shards, rows, n_bytes, group_bytes, spread, held):
    made = [[{"id": f"d{i}", "text": f"{i} " + "x" * words, "arm": arm} for i, arm, words in shard] for shard in shards]
    expected = in_arm_order(made)
    if not expected:
        return
    store = open_store("memory://layout")
    for key in store.list():
        store.delete(key)
    names = write_pool(store, made, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PIECE_ROWS", rows)
        patch.setattr(layout, "PIECE_BYTES", n_bytes)
        patch.setattr(layout, "GROUP_ROWS", 2 * rows)
        patch.setattr(layout, "GROUP_BYTES", group_bytes)
        patch.setattr(layout, "PART_ROWS", rows)
        patch.setattr(layout, "PART_BYTES", n_bytes)
        patch.setattr(layout, "SPREAD", spread)
        patch.setattr(layout, "HELD_BYTES", held)
        parts, index = lay_out(store, names)
    columns = ["id", "text", "arm", "shard", "shard_row"]
    assert pa.concat_tables(parts).select(columns).to_pylist() == [{c: row[c] for c in columns} for row in expected]
    assert all(part.num_rows <= rows for part in parts)
    assert all(part.num_rows == 1 or part["n_bytes"].to_numpy().sum() <= n_bytes for part in parts)
    vectors = np.concatenate([column_vectors(part["embedding"]) for part in parts])
    np.testing.assert_array_equal(vectors, [[row["arm"], len(row["text"])] for row in expected])
    features = np.concatenate([column_vectors(part["token_features"]) for part in parts])
    np.testing.assert_array_equal(features, -vectors)
    for row in index.to_pylist():
        own = [i for i, each in enumerate(expected) if each["arm"] == row["arm"]]
        assert row["n_documents"] == len(own)
        assert row["n_tokens"] == sum(len(expected[i]["text"].split()) for i in own)
        if own:
            np.testing.assert_allclose(row["centroid"], [row["arm"], np.mean([len(expected[i]["text"]) for i in own])])
    assert not [key for key in store.list() if "/shuffle/" in key]


def test_no_task_holds_more_than_its_bounds_of_large_texts(one_process, tmp_path, monkeypatch):
    """Of a shard with 4 MB of text, 20 kB a document, sorting and gathering hold less than half in memory."""
    monkeypatch.setattr(layout, "PIECE_BYTES", 400_000)
    monkeypatch.setattr(layout, "GROUP_BYTES", 400_000)
    monkeypatch.setattr(layout, "PART_BYTES", 200_000)
    monkeypatch.setattr(layout, "SPREAD", 2)
    monkeypatch.setattr(layout, "HELD_BYTES", 200_000)
    monkeypatch.setattr(shuffle, "WINDOW_BYTES", 200_000)
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("abcdefgh"), 20_000)) for _ in range(200)]
    store = open_store(str(tmp_path))
    names = write_pool(store, [[{"id": f"d{i}", "text": t, "arm": i % 4} for i, t in enumerate(texts)]], 4)
    del texts
    watched, default = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(watched)
    try:
        version = read_version(store, lay_out_arms.fn(store, "p", 0, names, CLUSTERING, FEATURES, "m", "", NO_DRIFT))
    finally:
        pa.set_memory_pool(default)
    assert watched.max_memory() < 2_000_000
    assert version.documents == 200
    assert len(version.parts) >= 20


def test_groups_follow_from_the_arms_sizes():
    rows, n_bytes = np.array([10, 0, 3 * layout.GROUP_ROWS, 5]), np.array([100, 0, 3 * layout.GROUP_ROWS, 5])
    arms, orders = layout.cut_groups(rows, n_bytes)
    third = 2**64 // 3
    assert arms.tolist() == [0, 2, 2, 2, 3]
    assert orders.tolist() == [0, 0, third, 2 * 2**64 // 3, 0]


SHARDS = [[{"id": f"d{s}-{i}", "text": f"{s} {i} " + "x" * i, "arm": (s + i) % 3} for i in range(20)] for s in range(3)]


@pytest.fixture
def small_sizes(monkeypatch):
    """Nine pieces in five bundles, and some ten groups, of one part or more, in four ranges."""
    for name, value in {"PIECE_ROWS": 7, "GROUP_ROWS": 8, "PART_ROWS": 4, "SPREAD": 4, "HELD_BYTES": 2000}.items():
        monkeypatch.setattr(layout, name, value)


def written_by(store: Store, names: list[str], fails_at: int | None = None) -> list[str]:
    """Lay out and list the bundles and parts that are written; the attempt ends before the one of that number."""
    written = []

    def noting(write):
        def note(store: Store, key: str, *arguments):
            if len(written) == fails_at:
                raise PowerCut
            written.append(key)
            return write(store, key, *arguments)

        return note

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "write_table_stream", noting(tables.write_table_stream))
        patch.setattr(layout, "write_ranges", noting(layout.write_ranges))
        try:
            lay_out(store, names)
        except PowerCut:
            assert fails_at is not None
    return written


def objects(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list() if "/lease/" not in key}


@pytest.mark.parametrize("cut_after", [0, 1, 5, 9, 12, 17, 18])
def test_an_interrupted_layout_goes_on_from_what_is_finished(one_process, small_sizes, tmp_path, cut_after):
    calm, store = open_store(str(tmp_path / "calm")), open_store(str(tmp_path / "cut"))
    every_table = written_by(calm, write_pool(calm, SHARDS, 3))
    assert len(every_table) > 19
    names = write_pool(store, SHARDS, 3)
    before = written_by(store, names, cut_after)
    again = written_by(store, names)
    groups = [key for key in before if "/arms/" in key]
    unfinished = {key for key in groups if key.rpartition("-")[0] == groups[-1].rpartition("-")[0]}
    assert set(before) & set(again) <= unfinished  # a group is finished as a whole
    assert set(before) | set(again) == set(every_table)
    assert objects(store) == objects(calm)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], None])
@pytest.mark.parametrize("kind", ["/shuffle/bundles/", "/shuffle/groups/", "/arms/part"])
def test_what_is_not_as_it_was_finished_is_made_again(one_process, small_sizes, tmp_path, kind, damage):
    calm, store = open_store(str(tmp_path / "calm")), open_store(str(tmp_path / "cut"))
    written_by(calm, write_pool(calm, SHARDS, 3))
    names = write_pool(store, SHARDS, 3)
    written_by(store, names, 17)
    for key in [key for key in store.list() if kind in key]:
        if damage is None:
            store.delete(key)
        else:
            store.put(key, damage(store.get(key)))
    lay_out(store, names)
    assert objects(store) == objects(calm)


def test_what_was_finished_with_other_sizes_is_made_again(one_process, small_sizes, tmp_path, monkeypatch):
    calm, store = open_store(str(tmp_path / "calm")), open_store(str(tmp_path / "cut"))
    names = write_pool(store, SHARDS, 3)
    written_by(store, names, 17)
    for name, value in {"PIECE_ROWS": 5, "GROUP_ROWS": 11, "PART_ROWS": 6, "SPREAD": 3}.items():
        monkeypatch.setattr(layout, name, value)
    lay_out(calm, write_pool(calm, SHARDS, 3))
    version = read_version(store, lay_out_arms.fn(store, "p", 0, names, CLUSTERING, FEATURES, "m", "", NO_DRIFT))
    parts = [part.key for part in version.parts]
    assert {key: store.get(key) for key in parts} == {key: calm.get(key) for key in parts}


def test_a_range_is_one_request_of_each_bundle(one_process, tmp_path, monkeypatch):
    """Of 2,000 documents in a hundred pieces and fifty groups, a range of groups asks each bundle once."""
    for name, value in {"PIECE_ROWS": 20, "GROUP_ROWS": 40, "PART_ROWS": 40, "SPREAD": 10}.items():
        monkeypatch.setattr(layout, name, value)
    shards = [[{"id": f"d{s}-{i}", "text": f"{s} {i}", "arm": i % 7} for i in range(200)] for s in range(10)]
    store, asked = open_store(str(tmp_path)), []
    names = write_pool(store, shards, 7)
    read_range = Store.read_range

    def noted(store, key, start, end):
        asked.append(key)
        return read_range(store, key, start, end)

    monkeypatch.setattr(Store, "read_range", noted)
    parts, _ = lay_out(store, names)
    of_bundles = [key for key in asked if "/shuffle/bundles/" in key]
    assert len(parts) > 40
    assert 10 <= len(set(of_bundles)) <= 13  # a little short of a tenth of the pool each
    assert 8 * 10 <= len(of_bundles) <= 10 * len(set(of_bundles))
    rows = [(row["arm"], row["id"]) for part in parts for row in part.select(["arm", "id"]).to_pylist()]
    assert rows == [(row["arm"], row["id"]) for row in in_arm_order(shards)]


@pytest.mark.parametrize("task", [layout.sort_bundle, layout.write_range])
def test_a_full_disk_of_the_workspace_is_said_as_the_store_says_it(
    one_process, small_sizes, tmp_path, monkeypatch, task
):
    """Rows put aside lie on the store's own disk."""
    store = open_store(str(tmp_path))
    names = write_pool(store, SHARDS, 3)

    def call(given, items, *_, shared=()):
        if given is task:
            monkeypatch.setattr(layout, "encode_rows", no_room)
        return in_turn(given, items, shared=shared)

    def no_room(_table):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "map_tasks", call)
    with pytest.raises(StoreFault, match=r"'pools/p/tables/.*' in .*: the disk is full: make room, then `quad resume`"):
        lay_out(store, names)


def test_of_shards_without_a_document_of_their_own_nothing_is_laid_out(one_process, tmp_path):
    store = open_store(str(tmp_path))
    build = layout.Build("p", "", CLUSTERING, FEATURES, "tables")
    names = write_pool(store, [[{"id": "d", "text": "t", "arm": 0}], []], 1)
    none = np.empty(0, dtype=np.int64)
    assert layout.write_layout(store, build, names, [(np.array([0]), none), (none, none)]) == []
    assert layout.write_layout(store, build, [], []) == []
