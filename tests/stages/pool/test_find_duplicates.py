"""Duplicates are those of one pass over all documents, however hashes are dealt out."""

import pyarrow as pa
import pytest
from assigned_pool import PowerCut, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.manifests.pool import InputFile, ShardManifest
from quad_tasks.stages.pool import find_duplicates
from quad_tasks.storage import tables
from quad_tasks.storage.keys import dealt_hashes_folder, documents_key, shard_manifest_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.store import Store, open_store


def write_shard(store, name: str, rows: list[tuple[int, int]]) -> str:
    """Write a shard of documents, each of an id and a text by number."""
    table = pa.table(
        {
            "id": [f"id {i}" for i, _ in rows],
            "text": [f"text {t}" for _, t in rows],
            "source": ["s"] * len(rows),
            "metadata": ["{}"] * len(rows),
            "n_tokens": [2] * len(rows),
            "n_bytes": [6] * len(rows),
            "text_hash": [tables.text_hash(f"text {t}") for _, t in rows],
            "line": list(range(len(rows))),
        }
    ).cast(tables.DOCUMENT_SCHEMA)
    tables.write_table_stream(store, documents_key("p", name), tables.DOCUMENT_SCHEMA, [table], 7)
    manifest = ShardManifest(
        shard=name, input=InputFile(uri=name, sha256="", size_bytes=0), fields={}, tokenizer_sha256="",
        documents_sha256="", set_aside_sha256=None, documents=len(rows), tokens=0, bytes=0, set_aside={},
    )  # fmt: skip
    write_manifest(store, shard_manifest_key("p", name), manifest)
    return name


shards = st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), min_size=1, max_size=4)


@settings(max_examples=25)
@given(shards, st.sampled_from([1, 5, 1000]))
def test_duplicates_are_those_of_one_pass_over_all_documents(rows_of, partition):
    store = open_store("memory://duplicates")
    for key in store.list():
        store.delete(key)
    names = [write_shard(store, f"s{number}", rows) for number, rows in enumerate(rows_of)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_duplicates, "map_tasks", in_turn)
        patch.setattr(find_duplicates, "PARTITION_DOCUMENTS", partition)
        found = find_duplicates.find_duplicates(store, "p", names)
    ids, texts, expected = set(), set(), []
    for rows in rows_of:
        same_text = [row for row, (_, text) in enumerate(rows) if text in texts or text in [t for _, t in rows[:row]]]
        same_id = [row for row, (name, _) in enumerate(rows) if name in ids or name in [i for i, _ in rows[:row]]]
        ids |= {name for name, _ in rows}
        texts |= {text for _, text in rows}
        expected.append((same_text, [row for row in same_id if row not in same_text]))
    assert [(text.tolist(), name.tolist()) for text, name in found] == expected
    assert not store.list(dealt_hashes_folder("p"))


def up_to(task_name: str, ending: type[BaseException]):
    """Call tasks in turn, and end before those of that name."""

    def call(task, items, *_, shared=()):
        if task.__name__ == task_name:
            raise ending
        return in_turn(task, items, shared=shared)

    return call


def test_a_process_that_lost_the_pool_overwrites_nothing_that_its_successor_reads(tmp_path, monkeypatch):
    """It asked for the first and the last shard, which have as many documents as the first two, and no duplicate."""
    store = open_store(str(tmp_path))
    names = [
        write_shard(store, f"s{n}", rows)
        for n, rows in enumerate([[(1, 1), (2, 2)], [(3, 1), (2, 4)], [(5, 5), (6, 6)]])
    ]

    def call(task, items, *_, shared=()):
        if task is find_duplicates.find_repeats:
            with monkeypatch.context() as stale:
                stale.setattr(find_duplicates, "map_tasks", up_to("find_repeats", PowerCut))
                with pytest.raises(PowerCut):
                    find_duplicates.find_duplicates(store, "p", [names[0], names[2]])
        return in_turn(task, items, shared=shared)

    monkeypatch.setattr(find_duplicates, "map_tasks", call)
    found = find_duplicates.find_duplicates(store, "p", names[:2])
    assert [(text.tolist(), name.tolist()) for text, name in found] == [([], []), ([0], [1])]
    assert not store.list(dealt_hashes_folder("p"))


def test_hashes_that_an_interrupted_search_dealt_out_go_with_the_next_one(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    names = [write_shard(store, f"s{n}", [(n, n)]) for n in range(3)]
    monkeypatch.setattr(find_duplicates, "map_tasks", up_to("find_repeats", PowerCut))
    with pytest.raises(PowerCut):
        find_duplicates.find_duplicates(store, "p", names)
    assert store.list(dealt_hashes_folder("p"))
    monkeypatch.setattr(find_duplicates, "map_tasks", in_turn)
    find_duplicates.find_duplicates(store, "p", names[:2])
    assert not store.list(dealt_hashes_folder("p"))


def test_a_worker_reads_the_hashes_of_its_partition_alone(tmp_path, monkeypatch):
    """Of 600 documents in six partitions, each read of one is about a sixth of 600 rows of 24 or 16 bytes."""
    store, read = open_store(str(tmp_path)), []
    names = [write_shard(store, f"s{n}", [(100 * n + i, 100 * n + i) for i in range(100)]) for n in range(6)]
    monkeypatch.setattr(find_duplicates, "PARTITION_DOCUMENTS", 100)
    read_range = Store.read_range

    def noted(store, key, start, end):
        read[-1] += end - start
        return read_range(store, key, start, end)

    def call(task, items, *_, shared=()):
        found = []
        for item in items:
            read.append(0)
            found.append(task(*shared, *item))
        return found

    monkeypatch.setattr(Store, "read_range", noted)
    monkeypatch.setattr(find_duplicates, "map_tasks", call)
    assert all(not len(rows) for own in find_duplicates.find_duplicates(store, "p", names) for rows in own)
    heads = 6 * 6 * 40
    assert sum(read[-12:]) == 600 * (24 + 16) + 2 * heads
    assert max(read[-12:]) < 2 * (100 * 24 + 6 * 40)
