"""A pool laid out in layers has the positions, documents and arms of one layout of all of it."""

import itertools

import numpy as np
import pytest
from assigned_pool import CLUSTERING, FEATURES, NO_DRIFT, in_arm_order, in_turn, write_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_pool import pool_version, read_column

from quad_tasks.manifests.pool import Layer, PoolVersion
from quad_tasks.stages.bandit.ledger import arms_of, load_arms
from quad_tasks.stages.pool import find_duplicates, layout_progress, merge_layers, sort_layout
from quad_tasks.stages.pool import lay_out_arms as layout
from quad_tasks.storage.keys import layer_sums_key
from quad_tasks.storage.pool_versions import read_version, retire_number
from quad_tasks.storage.positions import column_vectors, positions_of, read_positions, rows_of
from quad_tasks.storage.store import Store, open_store

NUMBERS = itertools.count()
COLUMNS = ["id", "text", "arm", "shard", "shard_row"]


@pytest.fixture
def one_process(monkeypatch):
    """Call tasks one after another in this process."""
    for module in (find_duplicates, layout, merge_layers, sort_layout):
        monkeypatch.setattr(module, "map_tasks", in_turn)


def lay_out(store: Store, names: list[str], base: PoolVersion | None = None) -> str:
    return layout.lay_out_arms.fn(store, "p", 0, names, CLUSTERING, FEATURES, "m", "", NO_DRIFT, base)


def in_layers(store: Store, names: list[str], counts: list[int]) -> str:
    """Lay out the first so many shards, then as many more as each count says, each time beside what stands."""
    version, base = "", None
    for end in np.cumsum(counts).tolist():
        version = lay_out(store, names[:end], base)
        base = read_version(store, version)
    return version


documents = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12),
    min_size=3,
    max_size=4,
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents, st.integers(1, 2), st.sampled_from([1, 5, 2**18]), st.sampled_from([7, 10_000]))
def test_layers_merged_are_one_sort_of_all_documents(one_process, shards, first, block, rows):
    made = [[{"id": f"d{i}", "text": f"{i} " + "x" * n, "arm": arm} for i, arm, n in shard] for shard in shards]
    expected = in_arm_order(made)
    store = open_store(f"memory://layers/{next(NUMBERS)}")  # one of its own: what is read of a version is kept
    names = write_pool(store, made, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_layers, "MOST_LAYERED", 1.0)
        patch.setattr(merge_layers, "BLOCK_DOCUMENTS", block)
        patch.setattr(sort_layout, "PART_ROWS", rows)
        patch.setattr(sort_layout, "GROUP_ROWS", 2 * rows)
        version = in_layers(store, names, [first, *[1] * (len(names) - first)])
    manifest = read_version(store, version)
    adding = {row["shard"] for row in expected}
    assert manifest.documents == len(expected)
    assert len(manifest.layers) == 1 + len(adding.intersection(names[first:]))
    positions = np.arange(len(expected))
    read = read_positions(store, version, positions, [*COLUMNS, "embedding"])
    assert read.select(COLUMNS).to_pylist() == [{c: row[c] for c in COLUMNS} for row in expected]
    assert column_vectors(read["embedding"]).tolist() == [[row["arm"], len(row["text"])] for row in expected]
    assert read_column(store, version, "shard_row").tolist() == [row["shard_row"] for row in expected]
    assert positions_of(store, version, rows_of(store, version, positions)).tolist() == positions.tolist()
    assert arms_of(store, version, positions).tolist() == [row["arm"] for row in expected]
    arms = load_arms(store, version)
    assert arms["n_documents"].to_pylist() == [sum(row["arm"] == k for row in expected) for k in range(4)]
    assert manifest.tokens == sum(len(row["text"].split()) for row in expected) == sum(arms["n_tokens"].to_pylist())


def test_only_what_is_new_is_written_and_every_arm_has_its_own_mean(one_process, tmp_path):
    generator = np.random.default_rng(0)
    shards = [
        [{"id": f"{s}-{i}", "text": f"{s} {i} " + "y" * int(generator.integers(1, 99)), "arm": i % 7} for i in range(n)]
        for s, n in enumerate([300, 20, 9])
    ]
    store, whole = open_store(str(tmp_path / "layers")), open_store(str(tmp_path / "whole"))
    names = write_pool(store, shards, 7)
    version = in_layers(store, names, [1, 1, 1])
    written = read_version(store, version)
    assert [layer.rows for layer in written.layers] == [300, 20, 9]
    at_once = lay_out(whole, write_pool(whole, shards, 7))
    assert read_version(whole, at_once).merged == ()
    for column in ("centroid", "variance"):
        ours, theirs = (column_vectors(load_arms(s, v)[column]) for s, v in ((store, version), (whole, at_once)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_interrupted_layer_goes_on_and_ends_with_the_same_version(one_process, tmp_path, monkeypatch):
    shards = [[{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": i % 3} for i in range(n)] for s, n in enumerate([40, 8])]
    calm, store = open_store(str(tmp_path / "calm")), open_store(str(tmp_path / "cut"))
    expected = in_layers(calm, write_pool(calm, shards, 3), [1, 1])
    names = write_pool(store, shards, 3)
    base = read_version(store, lay_out(store, names[:1]))
    merge = merge_layers.merge_block
    monkeypatch.setattr(merge_layers, "merge_block", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lay_out(store, names, base)
    monkeypatch.setattr(merge_layers, "merge_block", merge)
    assert read_version(store, lay_out(store, names, base)) == read_version(calm, expected)


def test_tables_that_a_later_version_keeps_as_a_layer_are_not_written_again(one_process, tmp_path):
    """Their version was pruned, and the inputs are again as they were: another release may write other bytes."""
    shards = [[{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": i % 3} for i in range(n)] for s, n in enumerate([40, 8])]
    store = open_store(str(tmp_path))
    names = write_pool(store, shards, 3)
    first = lay_out(store, names[:1])
    later = read_version(store, lay_out(store, names, read_version(store, first)))
    retire_number(store, "p", first, read_version(store, first))
    again = lay_out(store, names[:1])
    assert not {part.key for part in read_version(store, again).parts} & {part.key for part in later.parts}
    assert lay_out(store, names[:1]) == again


def test_what_another_release_left_of_an_interrupted_layout_is_made_again(one_process, tmp_path, monkeypatch):
    shards = [[{"id": f"{i}", "text": f"{i}", "arm": i % 3} for i in range(40)]]
    calm, store = open_store(str(tmp_path / "calm")), open_store(str(tmp_path / "cut"))
    expected = read_version(calm, lay_out(calm, write_pool(calm, shards, 3)))
    names = write_pool(store, shards, 3)
    with monkeypatch.context() as older:
        older.setattr(sort_layout, "RECORDS", 1)
        older.setattr(layout_progress, "sums_arrays", lambda _: {})
        older.setattr(layout, "join_layers", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lay_out(store, names)
    assert read_version(store, lay_out(store, names)) == expected


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_layer_of_damaged_sums_is_no_dead_end(one_process, tmp_path, damage, monkeypatch):
    """The next refresh lays the pool out anew, as if there had been no layers, and says why."""
    counts, said = [90, 8, 2], []
    monkeypatch.setattr(merge_layers, "notice", said.append)
    shards = [[{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": i % 3} for i in range(n)] for s, n in enumerate(counts)]
    whole, store = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "damaged"))
    expected = read_version(whole, lay_out(whole, write_pool(whole, shards, 3)))
    names = write_pool(store, shards, 3)
    base = read_version(store, in_layers(store, names[:2], [1, 1]))
    key = layer_sums_key(base.layers[1].tables)
    if damage == "flipped":
        store.put(key, store.get(key)[:-1] + b"x")
    else:
        store.delete(key)
    made = read_version(store, lay_out(store, names, base))
    assert (made.parts, made.layers, made.files) == (expected.parts, expected.layers, expected.files)
    assert [line.split(":")[0] for line in said] == ["pool p is laid out anew, since a layer's sums cannot be read"]


def version_of(*rows: int, shards: tuple[str, ...] = ("a", "b")) -> PoolVersion:
    layers = [Layer(tables="t", parts=1, rows=n) for n in rows]
    return pool_version([], layers=layers, documents=sum(rows), shards=shards)


@pytest.mark.parametrize(
    ("base", "new", "taken"),
    [
        (version_of(75), 25, True),
        (version_of(75), 26, False),
        (version_of(75, 15), 10, True),
        (version_of(75, 15), 11, False),
        (version_of(1000, *[1] * 6), 1, True),
        (version_of(1000, *[1] * 7), 1, False),
        (version_of(), 1, False),
        (version_of(100, shards=("a", "gone")), 1, False),
    ],
)
def test_a_layer_is_written_while_most_of_the_pool_is_of_the_first(base, new, taken):
    assert merge_layers.takes_layer(base, ["a", "b", "c"], [50, 50, new]) is taken
