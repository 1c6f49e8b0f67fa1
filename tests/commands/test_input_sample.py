"""A look at the pool counts as ingest does."""

import pytest
from small_pool import small_config, write_jsonl

from quad_tasks.commands import input_sample
from quad_tasks.commands.input_sample import look_at, look_at_pool, sample_texts
from quad_tasks.config.load import parse_config
from quad_tasks.storage.readers import Fields, InputError

GOOD = [{"text": f"rain {i}", "n": i} for i in range(3)]
BAD = [{"text": " "}, {"text": 3}, {"body": "x"}, {"text": "a", "source": {}}]


def test_records_that_give_no_document_are_bad_by_reason(tmp_path):
    uri = str(write_jsonl(tmp_path / "x.jsonl", GOOD + BAD, (b"{",)))
    sample = look_at([uri], Fields())
    assert (sample.documents, len(sample.records), sample.broken) == (4, 4, {})
    assert sample.bad == {"empty_text": 1, "wrong_type": 1, "missing_text": 1, "invalid_json": 1}
    assert look_at([uri]).documents == 7


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
