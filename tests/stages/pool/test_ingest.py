"""Shards are counted, refused when nothing of them is kept, and searched for duplicates as one."""

import gzip

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pool import write_jsonl

from quad_tasks.core.lm.model import LlamaSize, fresh_llama, train_tokenizer
from quad_tasks.manifests.pool import InputFile, ShardManifest
from quad_tasks.records import Shard
from quad_tasks.runtime.checkpoints import describe_checkpoint, save_checkpoint
from quad_tasks.stages.pool import ingest
from quad_tasks.storage import tables
from quad_tasks.storage.keys import documents_key, set_aside_key, shard_manifest_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.readers import Fields, InputError, fingerprint
from quad_tasks.storage.store import open_store


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
        patch.setattr(ingest, "map_tasks", lambda task, items, *_: [task(*item) for item in items])
        patch.setattr(ingest, "PARTITION_DOCUMENTS", partition)
        found = ingest.find_duplicates(store, "p", names)
    ids, texts, expected = set(), set(), []
    for rows in rows_of:
        same_text = [row for row, (_, text) in enumerate(rows) if text in texts or text in [t for _, t in rows[:row]]]
        same_id = [row for row, (name, _) in enumerate(rows) if name in ids or name in [i for i, _ in rows[:row]]]
        ids |= {name for name, _ in rows}
        texts |= {text for _, text in rows}
        expected.append((same_text, [row for row in same_id if row not in same_text]))
    assert [(text.tolist(), name.tolist()) for text, name in found] == expected


FIELDS = {"id": "id", "text": "text", "source": "source", "metadata": "metadata", "domain": "domain"}


@pytest.fixture(scope="module")
def ingest_records(tmp_path_factory):
    """Ingest records as one file; return the shard's manifest."""
    folder = tmp_path_factory.mktemp("ingest")
    store = open_store(str(folder / "workspace"))
    tokenizer = train_tokenizer(["rain and wind"], 260)
    model = fresh_llama(LlamaSize(8, 1, 2, 1, 8), len(tokenizer), 8, 0)
    save_checkpoint(store, "models/m", model, tokenizer, describe_checkpoint("m", "m", model, tokenizer))

    def one(name, records, bad_lines=()):
        uri = str(write_jsonl(folder / f"{name}.jsonl", records, bad_lines))
        shard = Shard(uri, fingerprint(uri), 0)
        return ingest.read_shard(store, "p", ingest.ingest_shard(store, "p", shard, FIELDS, "models/m"))

    return one


def test_the_fields_of_the_test_are_the_readers_own():
    assert Fields(**FIELDS) == Fields()


def test_a_shard_that_keeps_nothing_is_refused_with_its_fields_and_reasons(ingest_records):
    with pytest.raises(
        InputError,
        match=r"pool\.inputs: expected documents in .*body\.jsonl, found none in 3 records \(2 missing_text, 1 "
        r"invalid_json\); the first: expected text in field 'text', got none \(fields: body, lang\)",
    ):
        ingest_records("body", [{"body": "rain", "lang": "en"}, {"body": "wind", "lang": "en"}], (b"{",))


def test_an_empty_shard_is_none_that_keeps_nothing(ingest_records):
    assert ingest_records("empty", []).documents == 0


def test_dropped_fields_are_counted_by_name_and_their_documents_kept(ingest_records):
    records = [{"text": "rain", "score": float("nan")}, {"text": "wind", "score": 1.0, "source": {"a": 1}}]
    manifest = ingest_records("scores", records)
    assert (manifest.documents, manifest.set_aside) == (2, {})
    assert manifest.fields_dropped == {"score": 1, "source": 1}


BAD_LINES, RECORDS = 20_000, 7


@pytest.fixture
def workspace(tmp_path):
    """A workspace with a tiny checkpoint, whose tokenizer counts."""
    store = open_store(str(tmp_path / "workspace"))
    tokenizer = train_tokenizer(["rain cloud storm wind sunny warm cold snow"] * 4, 300)
    size = LlamaSize(width=16, layers=1, heads=2, key_value_heads=1, mlp_width=32)
    model = fresh_llama(size, len(tokenizer), 16, seed=0)
    save_checkpoint(store, "models/m", model, tokenizer, describe_checkpoint("m", "m", model, tokenizer))
    return store


def test_a_small_file_of_very_many_bad_lines_is_counted_whole_and_told_of_in_part(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "SET_ASIDE_RECORDS", RECORDS)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"x\n" * BAD_LINES + b'{"id": "a", "text": "rain cloud storm wind"}\n'))
    assert path.stat().st_size < 2000
    name = ingest.ingest_shard(workspace, "p", ingest.scan_input(str(path)), FIELDS, "models/m")
    manifest = ingest.read_shard(workspace, "p", name)
    assert (manifest.documents, manifest.set_aside) == (1, {"invalid_json": BAD_LINES})
    assert manifest.documents_in == BAD_LINES + 1
    table = read_table(workspace, set_aside_key("p", name))
    assert table["line"].to_pylist() == list(range(1, RECORDS + 1))
