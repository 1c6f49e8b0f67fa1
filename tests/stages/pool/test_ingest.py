"""Shards, files or spans of them, are counted, refused when nothing is kept, and searched for duplicates as one."""

import gzip
import hashlib
from collections import Counter
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_pool import BAD_LINES, TOPICS, stored, topic_records, write_jsonl

from quad_tasks.config.schema import PoolConfig
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.manifests.pool import ShardManifest
from quad_tasks.records import Shard
from quad_tasks.runtime.checkpoints import describe_checkpoint, read_checkpoint_manifest, save_checkpoint
from quad_tasks.stages.pool import ingest
from quad_tasks.storage import input_files
from quad_tasks.storage.input_documents import Fields, InputError, fingerprint
from quad_tasks.storage.keys import documents_key, set_aside_key, shard_manifest_key
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import open_store

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


MANY, RECORDS = 20_000, 7


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
    path.write_bytes(gzip.compress(b"x\n" * MANY + b'{"id": "a", "text": "rain cloud storm wind"}\n'))
    assert path.stat().st_size < 2000
    (shard,) = ingest.scan_input(str(path), 1)
    name = ingest.ingest_shard(workspace, "p", shard, FIELDS, "models/m")
    manifest = ingest.read_shard(workspace, "p", name)
    assert (manifest.documents, manifest.set_aside) == (1, {"invalid_json": MANY})
    assert manifest.documents_in == MANY + 1
    table = read_table(workspace, set_aside_key("p", name))
    assert table["line"].to_pylist() == list(range(1, RECORDS + 1))


def mixed_file(path: Path) -> Path:
    """Write documents of three topics, duplicates, blank lines and bad ones among them."""
    records = [record for topic in TOPICS for record in topic_records(topic, 12, seed=0)]
    write_jsonl(path, records + records[:3], BAD_LINES)
    lines = path.read_bytes().splitlines()
    lines = [
        *lines[:5],
        b"",
        *BAD_LINES,
        *lines[5:20],
        b"\xff",
        b"",
        b'{"text": "x", "id": "y", "n": NaN}',
        *lines[20:],
    ]
    path.write_bytes(b"\n".join(lines))
    return path


def ingest_file(store, path: Path, span_bytes: int) -> list[ShardManifest]:
    """Ingest a file's shards one after another."""
    shards = ingest.scan_input(str(path), span_bytes)
    return [ingest.read_shard(store, "p", ingest.ingest_shard(store, "p", one, FIELDS, "models/m")) for one in shards]


def rows_of(store, manifests: list[ShardManifest], key) -> list[dict]:
    """Read shards' rows by their lines: a block's documents are found too short after its bad lines are."""
    rows = [row for m in manifests for row in read_table(store, key("p", m.shard)).to_pylist()]
    return sorted(rows, key=itemgetter("line")) if key == set_aside_key else rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_spans_hold_the_documents_and_records_of_the_whole_file(workspace, tmp_path, kind):
    path = mixed_file(tmp_path / "big.jsonl")
    if kind == "parquet":
        records = [record for topic in TOPICS for record in topic_records(topic, 12, seed=0)]
        records[7]["text"], records[30]["text"] = None, "a"
        path = tmp_path / "big.parquet"
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=3)
    size = path.stat().st_size
    whole = ingest_file(workspace, path, size)
    assert len(whole) == 1
    for span_bytes in (size // 2, size // 7, 1):
        spans = ingest_file(workspace, path, span_bytes)
        assert len(spans) > 1
        for key in (documents_key, set_aside_key):
            assert rows_of(workspace, spans, key) == rows_of(workspace, whole, key)
        for count in ("documents", "tokens", "bytes", "documents_in"):
            assert sum(getattr(m, count) for m in spans) == getattr(whole[0], count)
        for counts in ("set_aside", "fields_dropped"):
            assert sum((Counter(getattr(m, counts)) for m in spans), Counter()) == getattr(whole[0], counts)
        assert {(m.input.uri, m.input.sha256, m.input.size_bytes) for m in spans} == {
            (str(path), hashlib.sha256(path.read_bytes()).hexdigest(), size)
        }


def test_a_file_within_the_bound_is_a_shard_by_the_name_and_manifest_it_always_had(workspace, tmp_path):
    path = mixed_file(tmp_path / "small.jsonl")
    (manifest,) = ingest_file(workspace, path, path.stat().st_size)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    tokenizer = read_checkpoint_manifest(workspace, "models/m").tokenizer.sha256
    assert manifest.shard == f"small-{digest([str(path), sha256, FIELDS, tokenizer])[:12]}"
    body = stored(workspace, shard_manifest_key("p", manifest.shard))
    assert body["input"] == {"uri": str(path), "sha256": sha256, "size_bytes": path.stat().st_size}
    assert body["format"] == 2


def test_an_interrupted_ingest_goes_on_at_the_next_span(workspace, tmp_path, monkeypatch):
    path, read, number_documents = mixed_file(tmp_path / "big.jsonl"), [], ingest.number_documents

    def numbered(uri, fields, span):
        read.append(span)
        if len(read) == 3:
            raise KeyboardInterrupt
        return number_documents(uri, fields, span)

    monkeypatch.setattr(ingest, "number_documents", numbered)
    with pytest.raises(KeyboardInterrupt):
        ingest_file(workspace, path, 1000)
    spans = [shard.span for shard in ingest.scan_input(str(path), 1000)]
    assert len(spans) > 4
    ingest_file(workspace, path, 1000)
    assert read == [*spans[:3], *spans[2:]]


@pytest.mark.parametrize("change", ["of the span", "of another span", "appended", "of the footer"])
def test_a_file_that_changes_while_its_spans_are_read_is_refused(workspace, tmp_path, monkeypatch, change):
    path = mixed_file(tmp_path / "big.jsonl")
    if change == "of the footer":
        path = tmp_path / "big.parquet"
        pq.write_table(pa.Table.from_pylist(topic_records("harbour", 12, 0)), path, row_group_size=3)
    data = path.read_bytes()
    shards = ingest.scan_input(str(path), 1000)
    changed = {
        "of the span": data.replace(b"a", b"e", 1),
        "of another span": data[:-9] + data[-9:].replace(b"a", b"b"),
        "appended": data + b"\n{}",
        "of the footer": data.replace(b"text", b"tixt") if b"text" in data[shards[0].span.tail :] else b"",
    }[change]
    assert changed != data
    path.write_bytes(changed)
    if change == "of another span":
        ingest.ingest_shard(workspace, "p", shards[0], FIELDS, "models/m")
        shards = shards[::-1]
    with pytest.raises(InputError, match=r"expected the file that was scanned, found it changed while it was read"):
        ingest.ingest_shard(workspace, "p", shards[0], FIELDS, "models/m")


def test_a_file_that_changes_while_it_is_scanned_is_refused(tmp_path, monkeypatch):
    path, digest_spans = mixed_file(tmp_path / "big.jsonl"), ingest.digest_spans

    def change(uri, cuts):
        path.write_bytes(b"{}\n" + path.read_bytes())
        return digest_spans(uri, cuts)

    monkeypatch.setattr(ingest, "digest_spans", change)
    with pytest.raises(InputError, match=r"big\.jsonl: expected a file that stays as it is, found it changed"):
        ingest.scan_input(str(path), 1000)


def test_a_file_is_digested_once_to_scan_it_and_once_to_check_it_however_many_spans_it_has(
    workspace, tmp_path, monkeypatch
):
    path, digested, read_blocks = mixed_file(tmp_path / "big.jsonl"), [], input_files.read_blocks

    def counted(file, start, end):
        digested.append(end - start)
        return read_blocks(file, start, end)

    monkeypatch.setattr(input_files, "read_blocks", counted)
    assert len(ingest_file(workspace, path, 200)) > 20
    assert sum(digested) == 2 * path.stat().st_size


def test_a_span_may_keep_nothing_and_a_file_may_not(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ingest, "map_tasks", lambda task, items, *_, shared=(): [task(*shared, *item) for item in items]
    )
    monkeypatch.setattr(ingest, "SPAN_BYTES", 100)
    good = topic_records("harbour", 2, 0)
    write_jsonl(tmp_path / "good.jsonl", good, (b"{",) * 300)
    write_jsonl(tmp_path / "none.jsonl", [{"body": "rain"}] * 40, (b"{",) * 10)
    for names in (["good"], ["good", "none"]):
        pool = PoolConfig(name="p", inputs=[f"{tmp_path}/{name}.jsonl" for name in names])
        shards = ingest.scan_inputs.fn(pool.inputs)
        if names == ["good"]:
            made = ingest.ingest_shards.fn(workspace, pool, shards, "models/m", 2)
            counts = [ingest.read_shard(workspace, "p", name).documents for name in made]
            assert (sum(counts), counts[-1]) == (2, 0)
            continue
        with pytest.raises(
            InputError,
            match=r"expected documents in .*none\.jsonl, found none in 50 records \(40 missing_text, 10 invalid_json\)"
            r"; the first: expected text in field 'text', got none \(fields: body\)",
        ):
            ingest.ingest_shards.fn(workspace, pool, shards, "models/m", 2)
