"""A look at the pool counts as ingest does."""

import bz2
import csv
import gzip
import io
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from small_pool import small_config, write_jsonl

from quad_tasks.commands import input_sample
from quad_tasks.commands.input_sample import look_at, look_at_pool, parse_documents, sample_texts, scale_sample
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.storage.input_documents import Fields, InputError

GOOD = [{"text": f"rain {i}", "n": i} for i in range(3)]
BAD = [{"text": " "}, {"text": 3}, {"body": "x"}, {"text": "a", "source": {}}]


def test_records_that_give_no_document_are_bad_by_reason(tmp_path):
    uri = str(write_jsonl(tmp_path / "x.jsonl", GOOD + BAD, (b"{",)))
    sample = look_at([uri], Fields())
    assert (sample.documents, len(sample.records), sample.broken) == (4, 4, {})
    assert sample.bad == {"empty_text": 1, "wrong_type": 1, "missing_text": 1, "invalid_json": 1}
    assert look_at([uri]).documents == 7


@pytest.mark.parametrize("text", ["1e9", "1_000_000_000", "1000000000", "1E9", " 1e9 "])
def test_a_number_of_documents_may_be_written_short(text):
    assert parse_documents(text) == 10**9


@pytest.mark.parametrize("text", ["many", "", "1.5", "0", "-5", "nan", "inf", "1e400", "1e16", "1,000", "0x10"])
def test_what_is_no_number_of_documents_is_refused(text):
    with pytest.raises(ConfigError, match=r"--documents: expected a whole number .*, found"):
        parse_documents(text)


def test_a_sample_is_scaled_with_its_files_and_a_part_of_a_turn_of_them(tmp_path):
    uris = [str(write_jsonl(tmp_path / f"{n}.jsonl", GOOD * n)) for n in (1, 2)]
    sample = look_at(uris, Fields())
    large = scale_sample(sample, 30)
    assert (large.documents, large.files, large.exact) == (30, 7, False)
    assert large.sizes == large.shards == [*sample.sizes * 3, sample.sizes[0]]
    assert large.record_bytes == pytest.approx(sample.record_bytes * 30 / 9, abs=1)
    assert scale_sample(sample, 9).sizes == sample.sizes
    assert len(scale_sample(sample, 10**9).sizes) == input_sample.LISTED_FILES
    with pytest.raises(ConfigError, match=r"--documents: expected at least the 9 of pool.inputs, .*found 8"):
        scale_sample(sample, 8)


@pytest.mark.parametrize("whole_bytes", [1, 2**20])
def test_a_file_without_a_document_is_named_with_its_fields(tmp_path, corpus, monkeypatch, whole_bytes):
    monkeypatch.setattr(input_sample, "WHOLE_BYTES", whole_bytes)
    write_jsonl(tmp_path / "good.jsonl", GOOD)
    write_jsonl(tmp_path / "other.jsonl", [{"body": "x", "lang": "en"}] * 3)
    config = parse_config(small_config(corpus, str(tmp_path), pool__inputs=[f"{tmp_path}/*.jsonl"]), "test")
    with pytest.raises(InputError, match=r"other\.jsonl, found none in 3 records \(3 missing_text\).*body, lang"):
        look_at_pool(config)


def test_texts_may_be_bytes():
    sample = input_sample.Sample(records=[{"text": "a"}, {"text": "é".encode()}])
    assert sorted(sample_texts(sample, "text")) == ["a", "é"]


def test_a_large_file_counts_as_the_shards_it_becomes(tmp_path, monkeypatch):
    monkeypatch.setattr(input_sample, "SPAN_BYTES", 100)
    large = write_jsonl(tmp_path / "large.jsonl", [{"text": "rain"}] * 20)  # 20 lines of 17 bytes
    small = write_jsonl(tmp_path / "small.jsonl", [{"text": "rain"}])
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(large.read_bytes() * 50, 0))
    sample = look_at([str(large), str(packed), str(small)])
    assert (sample.files, sample.sizes) == (3, [340, packed.stat().st_size, 17])
    assert sample.shards == [85, 85, 85, 85, packed.stat().st_size, 17]


N_RECORDS = 4000


@pytest.fixture(scope="module")
def records():
    """Records of 5 to 60 made-up words."""
    generator = np.random.default_rng(0)
    words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 9)))) for _ in range(300)]
    texts = [" ".join(generator.choice(words, generator.integers(5, 60))) for _ in range(N_RECORDS)]
    return [{"id": str(i), "text": text, "source": "web"} for i, text in enumerate(texts)]


def as_lines(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def as_csv(records):
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "text", "source"])
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().encode()


def as_parquet(records):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", as_lines),
        ("a.jsonl.gz", lambda records: gzip.compress(as_lines(records))),
        ("a.jsonl.zst", lambda records: zstandard.compress(as_lines(records))),
        ("a.jsonl.bz2", lambda records: bz2.compress(as_lines(records))),
        ("a.jsonl.xz", lambda records: lzma.compress(as_lines(records))),
        ("a.csv", as_csv),
        ("a.csv.gz", lambda records: gzip.compress(as_csv(records))),
        ("a.parquet", as_parquet),
    ],
)
def test_a_part_of_a_file_tells_its_documents_whatever_it_is_stored_as(tmp_path, records, name, write):
    (tmp_path / name).write_bytes(write(records))
    sample = look_at([str(tmp_path / name)], Fields(), whole_bytes=1)
    assert (sample.exact, sample.broken) == (False, {})
    assert sample.documents == pytest.approx(N_RECORDS, rel=0.2)


@pytest.mark.parametrize("bad", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("spoil", [lambda line: line.replace('"text"', '"body"'), lambda line: line[:-5]])
def test_bad_records_take_their_bytes(tmp_path, records, bad, spoil):
    is_bad = np.random.default_rng(1).random(N_RECORDS) < bad
    lines = [
        spoil(json.dumps(record)) if spoiled else json.dumps(record)
        for record, spoiled in zip(records, is_bad, strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sample = look_at([str(tmp_path / "a.jsonl")], Fields(), whole_bytes=1)
    assert sample.documents == pytest.approx(np.count_nonzero(~is_bad), rel=0.25)


def test_a_file_that_begins_badly_is_not_said_to_hold_nothing(tmp_path, records):
    lines = [json.dumps({"body": "x"})] * 600 + [json.dumps(record) for record in records]
    (tmp_path / "late.jsonl").write_text("\n".join(lines))
    sample = look_at([str(tmp_path / "late.jsonl")], Fields(), whole_bytes=1)
    assert sample.broken == {}
    assert 0 < sample.documents <= N_RECORDS
    assert look_at([str(tmp_path / "late.jsonl")], Fields()).documents == N_RECORDS


def test_files_that_are_not_looked_at_are_taken_to_be_as_large(tmp_path, corpus):
    for i in range(10):
        write_jsonl(tmp_path / f"{i}.jsonl", GOOD)
    config = parse_config(small_config(corpus, str(tmp_path), pool__inputs=[f"{tmp_path}/*.jsonl"]), "test")
    part, whole = look_at_pool(config, files=4), look_at_pool(config)
    assert (part.files, part.files_read, part.documents, part.exact) == (10, 4, 30, False)
    assert (whole.files, whole.files_read, whole.documents, whole.exact) == (10, 10, 30, True)
    assert part.record_bytes == whole.record_bytes


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_many_files_are_not_compared_with_each_other(monkeypatch):
    monkeypatch.setattr(input_sample, "input_size", lambda uri: 1)
    monkeypatch.setattr(input_sample, "_read", lambda *_: 1.0)
    monkeypatch.setattr(input_sample, "_shard_sizes", lambda uri, size: [size])
    assert len(look_at([Counted(f"{i}.jsonl") for i in range(1000)]).shards) == 1000
    assert Counted.compared < 10_000
