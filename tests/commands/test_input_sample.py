"""A look at the pool counts as ingest does."""

import gzip

import pytest
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
