"""What becomes a document, what is set aside and why, and which files are refused."""

import bz2
import datetime
import decimal
import gzip
import hashlib
import json
import lzma
import re
import tracemalloc
import uuid
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.records import Document, SetAside
from quad_tasks.storage import input_files, readers
from quad_tasks.storage.input_documents import (
    Fields,
    InputError,
    expand_inputs,
    fingerprint,
    input_size,
    make_document,
    read_documents,
)
from quad_tasks.storage.store import Store, StoreUnavailable

CORPUS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "candidate"
COMPRESS = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


def write_lines(folder: Path, *lines: bytes | dict, name: str = "shard.jsonl") -> str:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    suffix = name[name.index(".") :]
    (folder / name).write_bytes(COMPRESS[suffix](b"".join(line + b"\n" for line in encoded)))
    return str(folder / name)


def write_parquet(folder: Path, table: pa.Table, **options) -> str:
    pq.write_table(table, folder / "shard.parquet", **options)
    return str(folder / "shard.parquet")


def of_no_other_kind(lines: list[bytes]) -> bool:
    first = lines[0].removeprefix(b"\xef\xbb\xbf") if lines else b""
    return input_files.name_kind(first) is None and not first.lstrip().startswith(b"[")


def read_all(uri: str, fields: Fields | None = None) -> list[Document | SetAside]:
    return list(read_documents(uri, fields))


def test_a_full_record_becomes_a_document(tmp_path):
    record = {"id": "d1", "text": "Hello", "source": "books", "metadata": {"lang": "en"}, "domain": "news", "n": [1]}
    assert read_all(write_lines(tmp_path, record)) == [
        Document("d1", "Hello", "books", {"n": [1], "lang": "en", "domain": "news"})
    ]


def test_a_bare_text_gets_an_id_from_its_content_and_its_file_as_source(tmp_path):
    uri = write_lines(tmp_path, {"text": "Grüße"}, name="my.shard.jsonl.gz".replace("my.", "my-"))
    digest = hashlib.sha256("Grüße".encode()).hexdigest()
    assert read_all(uri) == [Document(f"sha256-{digest[:32]}", "Grüße", "my-shard", {})]


@pytest.mark.parametrize(("given_id", "read"), [(7, "7"), ("x", "x"), (10**30, str(10**30))])
def test_a_given_id_is_kept_as_text(tmp_path, given_id, read):
    assert read_all(write_lines(tmp_path, {"id": given_id, "text": "a"}))[0].id == read


@pytest.mark.parametrize("absent", [None, ""])
def test_an_absent_id_is_derived(tmp_path, absent):
    assert read_all(write_lines(tmp_path, {"id": absent, "text": "a"}))[0].id.startswith("sha256-ca978112ca1b")


def test_fields_can_be_renamed_and_reach_into_objects(tmp_path):
    record = {"uid": 3, "doc": {"body": "text", "len": 4}, "a.b": "dotted name", "meta": {"lang": "en"}}
    fields = Fields(id="uid", text="doc.body", source="a.b", metadata="none.such", domain="meta.lang")
    assert read_all(write_lines(tmp_path, record), fields) == [
        Document("3", "text", "dotted name", {"doc": {"len": 4}, "meta": {}, "domain": "en"})
    ]


def test_metadata_may_be_a_string_holding_an_object(tmp_path):
    assert read_all(write_lines(tmp_path, {"text": "a", "metadata": '{"lang": "en"}'}))[0].metadata == {"lang": "en"}


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"{", "invalid_json", "expected one JSON object, got"),
        (b'{"text": "a"} {"text": "b"}', "invalid_json", "got Extra data"),
        (b"[" * 100_000, "invalid_json", "recursion"),
        (b'["text"]', "not_an_object", "expected a JSON object, got an array"),
        (b"3", "not_an_object", "got a number"),
        (b"null", "not_an_object", "got null"),
        (b'{"text": "a\xff"}', "invalid_utf8", "expected UTF-8, got byte 0xff at byte 11"),
        (b'{"text": "\\ud800"}', "invalid_utf8", "lone surrogate"),
        (b'{"body": "a"}', "missing_text", "expected text in field 'text', got none"),
        (b'{"text": null}', "missing_text", "got none"),
        (b'{"text": 3}', "wrong_type", "expected a string in field 'text', got a number"),
        (b'{"text": ["a"]}', "wrong_type", "got an array"),
        (b'{"text": ""}', "empty_text", "got 0 blank characters"),
        (b'{"text": " \\n\\u2003"}', "empty_text", "got 3 blank characters"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
)
def test_a_bad_line_is_set_aside_with_its_reason_and_the_next_is_read(tmp_path, line, reason, detail):
    uri = write_lines(tmp_path, {"id": "before", "text": "a"}, line, {"id": "after", "text": "b"})
    before, aside, after = read_all(uri)
    assert (before.id, after.id) == ("before", "after")
    assert (aside.input, aside.line, aside.reason) == (uri, 2, reason)
    assert detail in aside.detail


def test_a_bad_record_is_named_by_its_id_where_it_has_one(tmp_path):
    uri = write_lines(tmp_path, {"id": 5, "text": ""}, {"id": "x", "text": None}, {"text": 3}, b"{")
    assert [aside.id for aside in read_all(uri)] == ["5", "x", "", ""]


NULLED = {"n": None}
SECONDARY = [
    (b'"n": NaN', {}, NULLED, "n"),
    (b'"n": -Infinity', {}, NULLED, "n"),
    (b'"n": 1e999', {}, NULLED, "n"),
    (b'"n": [NaN, 1]', {}, {"n": [None, 1]}, "n"),
    (b'"n": %s' % (b"9" * 5000), {}, NULLED, "n"),
    (b'"n": "half \\ud83d"', {}, {"n": "half \ufffd"}, "n"),
    (b'"n": {"x": ["\\uDFFF"]}', {}, {"n": {"x": ["\ufffd"]}}, "n"),
    (b'"n\\udc00": 1', {}, {"n\ufffd": 1}, "n\ufffd"),
    (b'"n": "a\tb"', {}, {"n": "a\tb"}, None),
    (b'"id": 1.0', {"id": "1"}, {}, None),
    (b'"id": 1.5', {}, {"id": 1.5}, "id"),
    (b'"id": true', {}, {"id": True}, "id"),
    (b'"id": {"$oid": "5f"}', {}, {"id": {"$oid": "5f"}}, "id"),
    (b'"id": "\\ud800"', {}, {"id": "\ufffd"}, "id"),
    (b'"source": 3', {"source": "3"}, {}, None),
    (b'"source": {"name": "cc"}', {"source": "shard"}, {"source": {"name": "cc"}}, "source"),
    (b'"metadata": []', {}, {"metadata": []}, "metadata"),
    (b'"metadata": "common crawl"', {}, {"metadata": "common crawl"}, "metadata"),
    (b'"metadata": "{\\"n\\": NaN}"', {}, NULLED, "n"),
    (b'"metadata": ""', {}, {}, None),
    (b'"domain": 3', {}, {"domain": "3"}, None),
    (b'"domain": []', {}, {"domain": []}, "domain"),
]


@pytest.mark.parametrize(
    ("field", "named", "metadata", "dropped"), SECONDARY, ids=[f[:30].decode() for f, *_ in SECONDARY]
)
def test_a_secondary_field_never_costs_the_document(tmp_path, field, named, metadata, dropped):
    (document,) = read_all(write_lines(tmp_path, b'{"text": "a", ' + field + b"}"))
    assert (document.text, document.metadata) == ("a", metadata)
    assert document.dropped == ((dropped,) if dropped else ())
    assert {name: getattr(document, name) for name in named} == named
    json.dumps(document.metadata, ensure_ascii=False, allow_nan=False).encode()


def test_parquet_values_that_json_cannot_hold_become_strings_or_null(tmp_path):
    uid = uuid.UUID(int=7)
    table = pa.table(
        {
            "id": pa.array([uid.bytes], pa.uuid()),
            "text": pa.array([b"caf\xc3\xa9"]),
            "digest": pa.array([b"\x00\xff"]),
            "took": pa.array([datetime.timedelta(seconds=90, milliseconds=500)]),
            "seen": pa.array([2**62], pa.timestamp("us")),
        }
    )
    (document,) = read_all(write_parquet(tmp_path, table))
    assert (document.id, document.text) == (str(uid), "café")
    assert document.metadata == {"digest": "AP8=", "took": "PT90.5S", "seen": None}
    assert document.dropped == ("digest", "seen", "took")


def test_float_ids_of_a_data_frame_are_whole_numbers(tmp_path):
    table = pa.table({"id": [3.0, float("nan"), 2.0**60], "text": ["a", "b", "c"]})
    ids = [document.id for document in read_all(write_parquet(tmp_path, table))]
    assert (ids[0], ids[1][:7], ids[2]) == ("3", "sha256-", str(2**60))


def test_a_byte_order_mark_at_any_line_is_dropped(tmp_path):
    uri = write_lines(tmp_path, b'\xef\xbb\xbf{"text": "a"}', b'\xef\xbb\xbf{"text": "b"}')
    assert [document.text for document in read_all(uri)] == ["a", "b"]


def test_a_record_is_not_changed_by_being_read():
    record = {"id": 1, "text": "a", "doc": {"lang": "en"}, "metadata": {"n": 1}}
    before = json.loads(json.dumps(record))
    make_document(record, Fields(domain="doc.lang"), "x")
    assert record == before


def test_an_escaped_surrogate_pair_is_valid(tmp_path):
    assert read_all(write_lines(tmp_path, b'{"text": "\\ud83d\\ude00"}'))[0].text == "\U0001f600"


def test_lines_end_at_newline_bytes_only(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    uri = write_lines(tmp_path, json.dumps({"text": text}, ensure_ascii=False).encode(), {"text": "next"})
    assert [document.text for document in read_all(uri)] == [text, "next"]


def test_blank_lines_are_counted_but_give_nothing(tmp_path):
    uri = write_lines(tmp_path, b"", {"text": "a"}, b" \r", b"{")
    document, aside = read_all(uri)
    assert (document.text, aside.line) == ("a", 4)


def test_windows_line_ends_a_byte_order_mark_and_a_missing_last_newline_are_read(tmp_path):
    (tmp_path / "w.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}')
    assert [document.text for document in read_all(str(tmp_path / "w.jsonl"))] == ["a", "b"]


@pytest.mark.parametrize("suffix", list(COMPRESS))
@pytest.mark.parametrize("read_bytes", [1, 7, 8 * 2**20])
def test_every_compression_gives_the_same_documents_whatever_is_read_at_a_time(
    tmp_path, monkeypatch, suffix, read_bytes
):
    monkeypatch.setattr(input_files, "READ_BYTES", read_bytes)
    records = [{"id": str(i), "text": "é" * i} for i in range(1, 9)]
    uri = write_lines(tmp_path, *records, name=f"shard{suffix}")
    assert [(document.id, document.text) for document in read_all(uri)] == [(r["id"], r["text"]) for r in records]


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_a_line_over_the_bound_is_set_aside_without_being_held(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 20)
    monkeypatch.setattr(input_files, "READ_BYTES", 8)
    exact, long = b'{"text": "123456789"}'[:20], b'{"text": "' + b"x" * 100 + b'"}'
    uri = write_lines(tmp_path, long, b'{"text": "12345678"}', long, exact + b"}", {"text": "b"}, name=f"s{suffix}")
    assert [item.text if isinstance(item, Document) else (item.line, item.reason) for item in read_all(uri)] == [
        (1, "line_too_long"),
        "12345678",
        (3, "line_too_long"),
        (4, "line_too_long"),
        "b",
    ]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compression_bomb_costs_no_more_memory_than_one_line(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 2**22)
    monkeypatch.setattr(input_files, "READ_BYTES", 2**20)
    bomb = COMPRESS[suffix](b" " * (8 * readers.MAX_LINE_BYTES) + b'\n{"text": "a"}\n')
    (tmp_path / f"bomb{suffix}").write_bytes(bomb)
    tracemalloc.start()
    before = pa.default_memory_pool().max_memory()
    aside, document = read_all(str(tmp_path / f"bomb{suffix}"))
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (aside.reason, document.text) == ("line_too_long", "a")
    assert python_bytes < 3 * readers.MAX_LINE_BYTES
    assert pa.default_memory_pool().max_memory() - before < 3 * readers.MAX_LINE_BYTES


def test_a_parquet_bomb_is_refused_by_its_column_and_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_COLUMN_BYTES", 2**20)
    bomb = pa.table({"id": ["a"], "text": [" " * 2**22]})
    pq.write_table(bomb, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    held = pa.total_allocated_bytes()
    with pytest.raises(
        InputError, match=r"bomb\.parquet: expected at most 200 bytes .*got 41943\d\d out of \d+ in column 'text'"
    ):
        read_all(str(tmp_path / "bomb.parquet"))
    assert pa.total_allocated_bytes() - held < 2**20
    pq.write_table(bomb, tmp_path / "large.parquet", compression="none", use_dictionary=False)
    (document,) = read_all(str(tmp_path / "large.parquet"))
    assert document.reason == "empty_text"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_concatenated_compressed_files_are_one(tmp_path, suffix):
    parts = [COMPRESS[suffix](b'{"text": "%d"}\n' % i) for i in range(3)]
    (tmp_path / f"s{suffix}").write_bytes(b"".join(parts))
    assert [document.text for document in read_all(str(tmp_path / f"s{suffix}"))] == ["0", "1", "2"]


DECOMPRESSORS = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


@pytest.mark.parametrize(
    ("suffix", "kind", "compress"),
    [
        (".jsonl.gz", "gzip", gzip.compress),
        (".jsonl.zst", "zstd", zstandard.compress),
        (".jsonl.bz2", "bz2", partial(bz2.compress, compresslevel=1)),
        (".jsonl.xz", "xz", lzma.compress),
    ],
)
def test_a_compressed_file_cut_in_half_says_how_much_was_read_and_what_to_do(tmp_path, suffix, kind, compress):
    lines = b"".join(b'{"text": "%s"}\n' % hashlib.sha256(b"%d" % i).hexdigest().encode() for i in range(5000))
    data = compress(lines)
    half = data[: len(data) // 2]
    (tmp_path / f"s{suffix}").write_bytes(half)
    whole_lines = DECOMPRESSORS[kind]().decompress(half).count(b"\n")
    read = []
    why = (
        f"s{suffix}: expected a whole {kind} file, found that it ends early, after line {whole_lines}: it is truncated"
    )
    with pytest.raises(InputError, match=re.escape(f"{why}, copy it again")):
        read.extend(read_documents(str(tmp_path / f"s{suffix}")))
    assert whole_lines > 1000


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["garbage", "flipped"])
def test_a_damaged_file_is_refused_by_name(tmp_path, suffix, damage):
    lines = b"".join(b'{"text": "%s"}\n' % hashlib.sha256(b"%d" % i).hexdigest().encode() for i in range(500))
    data = COMPRESS[suffix](lines)
    middle = len(data) // 2
    damaged = {
        "garbage": b"this was never compressed",
        "flipped": data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 64]) + data[middle + 64 :],
    }[damage]
    (tmp_path / f"s{suffix}").write_bytes(damaged)
    with pytest.raises(InputError, match=rf"s{suffix}: expected a whole (gzip|zstd) file, got an error after line \d+"):
        read_all(str(tmp_path / f"s{suffix}"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_an_empty_file_is_no_compressed_file(tmp_path, suffix):
    (tmp_path / f"s{suffix}").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a whole (gzip|zstd) file, got an empty one"):
        read_all(str(tmp_path / f"s{suffix}"))
    assert read_all(write_lines(tmp_path, name=f"none{suffix}")) == []


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: not found"):
        read_all(str(tmp_path / "none.jsonl"))


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InputError, match=r"a\.pdf: expected a file ending in one of \.jsonl, \.jsonl\.gz, \.jsonl\.zst, "
    ):
        read_all(str(tmp_path / "a.pdf"))


def test_an_outage_is_not_taken_for_a_bad_file(faulty_s3, delays):
    faulty_s3.objects["/bucket/a.jsonl.gz"] = gzip.compress(b'{"text": "a"}')
    uri = "s3://bucket/a.jsonl.gz"
    assert read_all(uri)[0].text == "a"
    faulty_s3.faults = ["served", *[503] * 50]
    with pytest.raises(StoreUnavailable, match="gave up after 7 tries"):
        read_all(uri)


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_s3_files_are_read_and_named_by_their_uri(s3_backend, suffix):
    s3_backend.plant(f"in/x{suffix}", COMPRESS[suffix](b'{"text": "a"}\n{'))
    uri = f"{s3_backend.uri}/in/x{suffix}"
    document, aside = read_all(uri)
    assert (document.text, document.source, aside.input) == ("a", "x", uri)


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            Document,
            id=TEXTS,
            text=TEXTS,
            source=TEXTS,
            metadata=st.dictionaries(TEXTS, JSON | st.lists(JSON, max_size=2), max_size=3),
        ),
        max_size=5,
    ),
    st.sampled_from(list(COMPRESS)),
    st.booleans(),
)
def test_documents_written_as_json_lines_come_back(tmp_path_factory, documents, suffix, ascii_only):
    lines = [
        json.dumps({"id": d.id, "text": d.text, "source": d.source, "metadata": d.metadata}, ensure_ascii=ascii_only)
        for d in documents
    ]
    uri = write_lines(tmp_path_factory.getbasetemp(), *(line.encode() for line in lines), name=f"round-trip{suffix}")
    assert read_all(uri) == documents


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=6).filter(of_no_other_kind))
def test_every_non_blank_line_gives_exactly_one_result(tmp_path_factory, lines):
    uri = write_lines(tmp_path_factory.getbasetemp(), *lines, name="bytes.jsonl")
    filled = [number for number, line in enumerate(lines, start=1) if line.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(read_all(uri)) in (len(filled), len([line for line in lines if line.strip()]))


def test_parquet_rows_become_documents_with_json_metadata(tmp_path):
    table = pa.table(
        {
            "id": [1, None],
            "text": ["a", "b"],
            "metadata": ['{"lang": "en"}', None],
            "day": [datetime.date(2024, 1, 2), None],
            "price": [decimal.Decimal("1.50"), None],
            "score": [float("nan"), 0.5],
            "tags": [["x"], []],
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    first, second = read_all(write_parquet(tmp_path, table))
    assert (first.id, first.text, first.source) == ("1", "a", "shard")
    assert first.metadata == {
        "day": "2024-01-02", "price": "1.50", "score": None, "tags": ["x"], "map": [["k", 1]], "lang": "en",
    }  # fmt: skip
    assert second.id.startswith("sha256-")
    assert second.metadata == {"day": None, "price": None, "score": 0.5, "tags": [], "map": None}


def test_bad_parquet_rows_are_set_aside_one_by_one(tmp_path):
    texts = pa.StringArray.from_buffers(4, *pa.array([b"good", b"\xff\xfe", b"", b"also"]).buffers()[1:])
    table = pa.table({"id": ["a", "b", "c", "d"], "text": texts, "blob": [None, None, None, b"\x00"]})
    good, *asides, also = read_all(write_parquet(tmp_path, table))
    assert (good.text, also.text) == ("good", "also")
    assert [(aside.line, aside.reason) for aside in asides] == [(2, "invalid_utf8"), (3, "empty_text")]
    assert (also.metadata, also.dropped) == ({"blob": "AA=="}, ("blob",))


def test_a_parquet_file_without_the_text_column_is_set_aside_row_by_row(tmp_path):
    asides = read_all(write_parquet(tmp_path, pa.table({"body": ["a", "b"]})))
    assert [(aside.line, aside.reason) for aside in asides] == [(1, "missing_text"), (2, "missing_text")]


def test_the_first_parquet_rows_need_only_the_first_row_group(s3_backend, tmp_path, monkeypatch):
    texts = [np.random.default_rng(i).bytes(2000).hex() for i in range(400)]
    path = Path(
        write_parquet(
            tmp_path, pa.table({"text": texts}), row_group_size=10, use_dictionary=False, write_statistics=False
        )
    )
    s3_backend.plant("x.parquet", path.read_bytes())
    fetched: list[int] = []
    read_range = Store.read_range

    def counted(store, key, start, end):
        fetched.append(end - start)
        return read_range(store, key, start, end)

    monkeypatch.setattr(Store, "read_range", counted)
    documents = read_documents(f"{s3_backend.uri}/x.parquet")
    assert next(documents).text == texts[0]
    assert sum(fetched) < path.stat().st_size / 4
    assert len(list(documents)) == 399


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_row_longer_than_what_a_decompressor_gives_at_once_is_read(tmp_path, suffix):
    """Arrow's CSV reader takes a read for a block, which no row may be longer than."""
    texts = [f"{i} " + random_letters(i, 300_000) for i in range(4)]
    body = ("text\n" + "\n".join(texts) + "\n").encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"s.csv{suffix}"
    path.write_bytes(pack(body))
    assert [one.text for one in read_all(str(path))] == texts


def random_letters(seed: int, n: int) -> str:
    """Write letters that hardly compress."""
    return bytes(np.random.default_rng(seed).integers(97, 123, n, dtype=np.uint8)).decode()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped"])
def test_a_damaged_parquet_file_is_refused_by_name(tmp_path, damage):
    uri = write_parquet(tmp_path, pa.table({"text": [f"text {i}" for i in range(1000)]}), use_dictionary=False)
    data = Path(uri).read_bytes()
    damaged = {"truncated": data[:-100], "garbage": b"never Parquet", "flipped": data[:8] + b"\xff" * 500 + data[508:]}
    Path(uri).write_bytes(damaged[damage])
    found = "found that it ends early" if damage == "truncated" else "got an error"
    with pytest.raises(InputError, match=rf"shard\.parquet: expected a whole Parquet file, {found},? after row \d+"):
        read_all(uri)


def test_size_and_fingerprint_are_of_the_files_stored_bytes(backend):
    backend.plant("a.jsonl", b"bytes" * 1000)
    assert input_size(f"{backend.uri}/a.jsonl") == 5000
    assert fingerprint(f"{backend.uri}/a.jsonl") == hashlib.sha256(b"bytes" * 1000).hexdigest()


def test_fingerprint_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none"):
        fingerprint(str(tmp_path / "none"))


def test_globs_expand_sorted_and_once_at_any_depth(backend):
    for key in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "deep/er/d.jsonl", "deep/other.txt"):
        backend.plant(key, b"")
    patterns = [f"{backend.uri}/**/*.jsonl", f"{backend.uri}/a.jsonl", f"{backend.uri}/[ab].jsonl"]
    expected = ["a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"]
    assert expand_inputs(patterns) == [f"{backend.uri}/{key}" for key in expected]


def test_an_expanded_uri_can_be_read(backend):
    backend.plant("in/a.jsonl", b'{"text": "a"}')
    (uri,) = expand_inputs([f"{backend.uri}/in/*"])
    assert read_all(uri)[0].text == "a"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(b"")
    assert expand_inputs([f"{tmp_path}/a[1].jsonl"]) == [f"{tmp_path}/a[1].jsonl"]


def test_relative_patterns_and_file_uris_give_absolute_names(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert expand_inputs(["*.jsonl"]) == [f"{tmp_path}/a.jsonl"]
    assert expand_inputs([f"file://{tmp_path}/*.jsonl"]) == [f"file://{tmp_path}/a.jsonl"]


@pytest.mark.parametrize("pattern", ["none.jsonl", "*.none", "folder", "**/none"])
def test_a_pattern_without_a_file_is_refused_by_name(backend, pattern):
    backend.plant("folder/a.txt", b"")
    with pytest.raises(InputError, match="which matches none") as caught:
        expand_inputs([f"{backend.uri}/folder/a.txt", f"{backend.uri}/{pattern}"])
    assert f"{backend.uri}/{pattern}" in str(caught.value)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not beside this repository")
def test_a_real_shard_is_read_without_a_line_lost():
    uri = expand_inputs([str(CORPUS / "*.jsonl.gz")])[0]
    with gzip.open(uri) as file:
        lines = sum(1 for line in file.read().split(b"\n") if line.strip())
    results = read_all(uri)
    assert len(results) == lines
    assert all(isinstance(result, Document) for result in results)
