"""Rows of every kind of file: delimited and plain text, Arrow, and columns that nothing tells apart."""

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.storage import input_files, readers
from quad_tasks.storage.input_documents import read_documents
from quad_tasks.storage.input_files import InputError, digest_spans, find_cuts, fingerprint, input_size
from quad_tasks.storage.readers import Rejection, parse_object, read_rows
from quad_tasks.storage.store import Store

TABLE = pa.table({"id": ["a", "b"], "text": ["one", "two"]})


def test_delimited_rows_are_strings_and_may_hold_newlines_and_quotes(tmp_path):
    (tmp_path / "x.csv").write_text('id,text,score\n1,"a, ""b""\nc",0.5\n2,d,\n')
    assert list(read_rows(f"{tmp_path}/x.csv")) == [
        (1, {"id": "1", "text": 'a, "b"\nc', "score": "0.5"}),
        (2, {"id": "2", "text": "d", "score": None}),
    ]


@pytest.mark.parametrize("block_bytes", [16, 2**20])
def test_a_row_of_other_columns_is_set_aside_where_it_stands(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(input_files, "READ_BYTES", block_bytes)
    (tmp_path / "x.csv").write_text('id,text\nx\n1,a\n\n2,"b\nc"\n3,d,e\nz,z,z\n4,f\ny\n')
    wrong = [Rejection("wrong_columns", f"expected 2 columns, got {n}") for n in (1, 3)]
    rows = [{"id": "1", "text": "a"}, {"id": "2", "text": "b\nc"}, {"id": "4", "text": "f"}]
    expected = [wrong[0], rows[0], rows[1], wrong[1], wrong[1], rows[2], wrong[0]]
    assert list(read_rows(f"{tmp_path}/x.csv")) == list(enumerate(expected, start=1))


def test_rows_of_other_columns_alone_are_set_aside(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\nx\ny\n")
    wrong = Rejection("wrong_columns", "expected 2 columns, got 1")
    assert list(read_rows(f"{tmp_path}/x.csv")) == [(1, wrong), (2, wrong)]


def test_tabs_delimit_and_quotes_are_characters_beside_them(tmp_path):
    (tmp_path / "x.tsv").write_text('id\ttext\n1\ta, b\n2\tc\td\n3\t"When\n4\te "f" g\n5\t"h"\n')
    rows = [row for _, row in read_rows(f"{tmp_path}/x.tsv")]
    assert rows.pop(1) == Rejection("wrong_columns", "expected 2 columns, got 3")
    assert [(row["id"], row["text"]) for row in rows] == [
        ("1", "a, b"),
        ("3", '"When'),
        ("4", 'e "f" g'),
        ("5", '"h"'),
    ]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", b","), ("tsv", b"\t")])
def test_bytes_that_are_not_utf_8_cost_their_field_or_their_document(tmp_path, suffix, delimiter):
    lines = [
        (b"id", b"title", b"text"),
        (b"1", b"caf\xe9", b"one"),
        (b"2", b"b", b"tw\xf6"),
        (b"3", b"c", "drei ü".encode()),
    ]
    (tmp_path / f"x.{suffix}").write_bytes(b"\n".join(map(delimiter.join, lines)))
    first, second, third = read_documents(f"{tmp_path}/x.{suffix}")
    assert (first.id, first.text, first.metadata, first.dropped) == ("1", "one", {"title": None}, ("title",))
    assert (second.line, second.reason, second.id) == (2, "invalid_utf8", "2")
    assert (third.id, third.text, third.metadata, third.dropped) == ("3", "drei ü", {"title": "c"}, ())


def test_a_column_that_begins_with_numbers_may_go_on_with_words(tmp_path):
    lines = [f"{i},text {i}" for i in range(5000)] + ["word,last"]
    (tmp_path / "x.csv").write_text("\n".join(["id,text", *lines]))
    documents = list(read_documents(f"{tmp_path}/x.csv"))
    assert (len(documents), documents[0].id, documents[-1].id) == (5001, "0", "word")


def test_a_header_alone_gives_no_row(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n")
    assert list(read_rows(f"{tmp_path}/x.csv")) == []


def test_a_header_that_is_not_utf_8_is_refused_by_name(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xffid,text\n1,one\n")
    with pytest.raises(InputError, match=r"x\.csv: expected whole delimited text with a header, got an error"):
        list(read_rows(f"{tmp_path}/x.csv"))


def test_a_text_file_is_one_document_under_the_field_of_the_text(tmp_path):
    (tmp_path / "essay.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    assert list(read_rows(f"{tmp_path}/essay.txt", "body")) == [(1, {"body": "one\n\ntwo\n"})]
    (document,) = read_documents(f"{tmp_path}/essay.txt")
    assert (document.text, document.source) == ("one\n\ntwo\n", "essay")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    ((_, rejected),) = read_rows(f"{tmp_path}/latin.txt")
    assert rejected == Rejection("invalid_utf8", "expected UTF-8, got byte 0xe9 at byte 3")


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
def test_arrow_files_and_streams_are_read(tmp_path, write):
    with write(f"{tmp_path}/x.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)
    assert [row for _, row in read_rows(f"{tmp_path}/x.arrow")] == TABLE.to_pylist()
    data = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"x\.arrow: expected a whole Arrow file"):
        list(read_rows(f"{tmp_path}/x.arrow"))


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("text,text\na,b\n")
    for name in ("x.parquet", "x.csv"):
        with pytest.raises(InputError, match=rf"{name}: expected columns of different names, found 'text' more than"):
            list(read_rows(f"{tmp_path}/{name}"))


def test_a_json_array_is_refused_on_one_line_or_many(tmp_path):
    for indent in (None, 1):
        (tmp_path / "x.jsonl").write_text(json.dumps([{"text": "a"}], indent=indent))
        with pytest.raises(InputError, match=r"x\.jsonl: expected JSON lines, found a JSON array"):
            list(read_rows(f"{tmp_path}/x.jsonl"))


def test_a_parsed_object_keeps_what_python_can_hold():
    assert parse_object(b'{"n": 1e999, "text": "a\tb"}') == {"n": float("inf"), "text": "a\tb"}
    assert parse_object(b"[1]") == Rejection("not_an_object", "expected a JSON object, got an array")


def test_a_damaged_parquet_file_is_refused_or_gives_all_its_rows(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(48)]}), path, row_group_size=16, use_dictionary=False)
    data, counts = path.read_bytes(), set()
    for place in range(4, 300):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        counts.add(count_rows(path))
    assert counts == {None, 48}


def count_rows(path):
    """Count a file's rows; None: it is refused."""
    try:
        return len(list(read_rows(str(path))))
    except InputError:
        return None


LONGEST = 30
LINES = st.sampled_from(
    [
        b"",
        b"  ",
        b'{"text": "a"}',
        b'{"text": "a"}\r',
        '\ufeff{"text": "b"}'.encode(),
        '{"text": "\u00e9\u6f22\U0001f600"}'.encode(),
        '{"text": "a\u2028b\\nc"}'.encode(),
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"text": "' + b"x" * LONGEST + b'"}',
    ]
)


def spans_of(uri, span_bytes):
    cuts = find_cuts(uri, span_bytes)
    return [None] if cuts is None else digest_spans(uri, cuts)[1]


@settings(max_examples=150)
@given(st.lists(LINES, max_size=12), st.booleans(), st.integers(1, 80), st.integers(1, 9))
def test_spans_of_lines_hold_every_row_once_by_its_line(tmp_path_factory, lines, ended, span_bytes, at_once):
    path = tmp_path_factory.getbasetemp() / "spans.jsonl"
    data = b"\n".join([b'{"text": "first"}', *lines]) + b"\n" * ended
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "MAX_LINE_BYTES", LONGEST)
        patch.setattr(readers, "PROBE_BYTES", at_once)
        patch.setattr(input_files, "READ_BYTES", at_once)
        spans = spans_of(str(path), span_bytes)
        parts = [list(read_rows(str(path), span=span)) for span in spans]
    expected = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if len(line) > LONGEST:
            expected.append((number, Rejection("line_too_long", f"expected at most {LONGEST} bytes, got more")))
        elif line.strip():
            expected.append((number, parse_object(line.removeprefix("\ufeff".encode()))))
    assert [row for part in parts for row in part] == expected
    if spans != [None]:
        pieces = [data[span.start : span.end] for span in spans]
        assert b"".join(pieces) == data
        assert all(piece.endswith(b"\n") for piece in pieces[:-1])
        assert max(map(len, pieces)) <= span_bytes + max(map(len, data.split(b"\n"))) + 1
        assert [span.sha256 for span in spans] == [hashlib.sha256(piece).hexdigest() for piece in pieces]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.booleans(), st.integers(1, 4000))
def test_spans_of_row_groups_hold_every_row_once_by_its_number(tmp_path_factory, groups, dictionary, span_bytes):
    path = tmp_path_factory.getbasetemp() / "spans.parquet"
    texts = [f"text {n} {'x' * 17 * n}" for n in range(sum(groups))]
    schema, how = pa.schema([("text", pa.string()), ("n", pa.int64())]), {"compression": "none"}
    with pq.ParquetWriter(path, schema, use_dictionary=dictionary, **how) as writer:
        for group in groups:
            own, texts = texts[:group], texts[group:]
            writer.write_table(pa.table({"text": own, "n": range(group)}, schema=schema))
    spans = spans_of(str(path), span_bytes)
    whole = [(n, row) for n, row in enumerate(pq.read_table(path).to_pylist(), start=1)]
    assert [row for span in spans for row in read_rows(str(path), span=span)] == whole
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if spans == [None]:
        assert footer <= span_bytes or len(data) <= span_bytes or sum(map(bool, groups)) <= 1
        return
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert {(span.tail, spans[-1].end) for span in spans} == {(footer, footer)}
    for span in spans:
        rows = len(list(read_rows(str(path), span=span)))
        assert rows > 0
        assert span.end - span.start <= span_bytes or rows in groups
        assert span.sha256 == hashlib.sha256(data[span.start : span.end] + data[footer:]).hexdigest()


def test_row_groups_that_do_not_follow_one_another_stay_together(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "x.parquet", row_group_size=1)
    assert len(spans_of(f"{tmp_path}/x.parquet", 1)) == 3
    places = readers._group_places
    monkeypatch.setattr(readers, "_group_places", lambda metadata: places(metadata)[::-1])
    assert spans_of(f"{tmp_path}/x.parquet", 1) == [None]


def test_what_has_no_place_to_cut_is_read_whole(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9))
    (tmp_path / "x.csv").write_text("text\na\nb\n")
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a single line, without an end"}')
    for name in ("x.jsonl.gz", "x.csv", "x.jsonl"):
        assert find_cuts(f"{tmp_path}/{name}", 1) is None


def test_a_line_longer_than_many_spans_is_looked_through_once(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "READ_BYTES", 2**16)
    (tmp_path / "x.jsonl").write_bytes(b"{}\n" + b"x" * 2**22 + b"\n{}\n")
    chunks, next_line = [], readers._next_line
    monkeypatch.setattr(readers, "_next_line", lambda file, place: chunks.append(place) or next_line(file, place))
    assert readers._cut_lines(f"{tmp_path}/x.jsonl", 1000).starts == (0, 2**22 + 4)
    assert len(chunks) == 1


def test_a_span_of_a_remote_file_is_read_by_its_range(backend, monkeypatch):
    data = b"".join(b'{"id": "%d", "text": "some words"}\n' % i for i in range(1000))
    backend.plant("x.jsonl", data)
    backend.plant("y.parquet", parquet_of(1000, 100))
    fetched, read_range = [], Store.read_range
    monkeypatch.setattr(readers, "PROBE_BYTES", 64)

    def counted(store, key, start, end):
        fetched.append(end - start)
        return read_range(store, key, start, end)

    monkeypatch.setattr(Store, "read_range", counted)
    for name in ("x.jsonl", "y.parquet"):
        uri = f"{backend.uri}/{name}"
        spans = spans_of(uri, input_size(uri) // 4)
        assert len(spans) > 2
        assert sum(fetched) < 1.5 * input_size(uri)  # once for the digests, little to find the cuts
        fetched.clear()
        rows = list(read_rows(uri, span=spans[1]))
        assert rows[0][0] == spans[1].before + 1
        assert int(rows[0][1]["id"]) == spans[1].before
        assert sum(fetched) < input_size(uri) / 2
        assert fingerprint(uri, spans[1]) == spans[1].sha256
        fetched.clear()


def parquet_of(rows, of_a_group):
    """Write rows of little that compresses as Parquet."""
    table = pa.table({"id": [str(i) for i in range(rows)], "text": [f"{i**9} words " * 30 for i in range(rows)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=of_a_group, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("data", [b"never Parquet", b"PAR1" + b"x" * 20 + b"PAR1", b"\x1f\x8b" + b"x" * 20])
def test_a_file_that_cannot_be_cut_since_it_is_damaged_is_refused_by_name(tmp_path, data):
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(
        InputError, match=r"x\.parquet: expected (a whole Parquet file, got an error|Parquet, found gzip)"
    ):
        find_cuts(f"{tmp_path}/x.parquet", 1)
