"""Rows of every kind of file: delimited and plain text, Arrow, and columns that nothing tells apart."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quad_tasks.storage.input_files import InputError
from quad_tasks.storage.input_rows import Rejection, parse_object, read_rows
from quad_tasks.storage.readers import read_documents

TABLE = pa.table({"id": ["a", "b"], "text": ["one", "two"]})


def test_delimited_rows_are_strings_and_may_hold_newlines_and_quotes(tmp_path):
    (tmp_path / "x.csv").write_text('id,text,score\n1,"a, ""b""\nc",0.5\n2,d,\n')
    assert list(read_rows(f"{tmp_path}/x.csv")) == [
        (1, {"id": "1", "text": 'a, "b"\nc', "score": "0.5"}),
        (2, {"id": "2", "text": "d", "score": None}),
    ]


def test_tabs_delimit_and_a_row_of_other_columns_is_set_aside(tmp_path):
    (tmp_path / "x.tsv").write_text("id\ttext\n1\ta, b\n2\tc\td\n3\te\n")
    rows = [row for _, row in read_rows(f"{tmp_path}/x.tsv")]
    assert rows[:2] == [{"id": "1", "text": "a, b"}, {"id": "3", "text": "e"}]
    assert rows[2] == Rejection("wrong_columns", "expected 2 columns, got 3")


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
