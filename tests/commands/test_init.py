"""`quad init`: fields are found under other names, what cannot be decided or read is said, nothing is overwritten."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_pool import topic_records, write_jsonl

from quad_tasks.commands.init import write_config
from quad_tasks.config.load import load_config
from quad_tasks.config.schema import ConfigError


def renamed(topic: str, n: int) -> list[dict[str, object]]:
    return [{"uid": r["id"], "body": r["text"], "origin": topic} for r in topic_records(topic, n, seed=5)]


@pytest.fixture
def shards(tmp_path):
    """Three shards in three formats with other field names, a bad line in one."""
    write_jsonl(tmp_path / "pool" / "a.jsonl", renamed("weather", 40), (b'{"uid": "cut',))
    lines = b"\n".join(json.dumps(record).encode() for record in renamed("kitchen", 40))
    (tmp_path / "pool" / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(renamed("harbour", 40)), tmp_path / "pool" / "c.parquet")
    return tmp_path


def test_fields_are_found_under_other_names_and_the_configuration_loads(shards):
    out = shards / "config.yaml"
    result = write_config([f"{shards}/pool/*"], out, [f"{shards}/pool/c.parquet"])
    assert result["fields"] == {"text": "body", "id": "uid", "source": "origin"}
    assert result["pool"]["documents"] == 120
    assert result["bad"] == {"invalid_json": 1}
    config = load_config(out)
    assert config.pool.fields.model_dump(include={"text", "id", "source"}) == result["fields"]
    assert config.reference.fields.text == "body"
    assert config.selection.budget_tokens < result["pool"]["tokens"]
    assert config.training.batch_tokens <= config.selection.budget_tokens // 10  # too_few_steps
    assert "#   body: text, in 100% of the records" in out.read_text()
    assert out.read_text().startswith("# yaml-language-server: $schema=quad.schema.json\n")
    assert (shards / "quad.schema.json").exists()


@pytest.mark.parametrize("run", ["novels", "2026-11-28", "1e3", "null"])
def test_the_run_has_the_name_that_is_asked_for(shards, run):
    write_config([f"{shards}/pool/*"], shards / "config.yaml", run=run)
    assert load_config(shards / "config.yaml").run == run
    assert f"quad status {run}\n" in (shards / "config.yaml").read_text()


@pytest.mark.parametrize("run", ["my novels: 2", "a\nb", ""])
def test_a_name_that_no_run_can_have_is_refused_and_nothing_is_written(shards, run):
    with pytest.raises(ConfigError, match=r"^--run: expected at most 80 letters"):
        write_config([f"{shards}/pool/*"], shards / "config.yaml", run=run)
    assert not (shards / "config.yaml").exists()


def test_a_shard_that_breaks_off_is_reported_and_left_out(shards):
    lines = b"\n".join(json.dumps(record).encode() for record in renamed("weather", 200))
    (shards / "pool" / "d.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])
    result = write_config([f"{shards}/pool/*"], shards / "config.yaml")
    assert [uri.rpartition("/")[2] for uri in result["broken"]] == ["d.jsonl.gz"]
    assert result["pool"]["files"] == 3
    inputs = load_config(shards / "config.yaml").pool.inputs
    assert sorted(uri.rpartition("/")[2] for uri in inputs) == ["a.jsonl", "b.jsonl.gz", "c.parquet"]
    [note] = [line for line in result["undecided"] if line.startswith("pool.inputs: ")]
    assert "Files added later are not seen" in note
    assert f"# To decide: {note}\n" in (shards / "config.yaml").read_text()
    named = write_config([f"{shards}/pool/{name}" for name in ("a.jsonl", "d.jsonl.gz")], shards / "named.yaml")
    assert not any(line.startswith("pool.inputs: ") for line in named["undecided"])  # no pattern was given


def test_what_could_not_be_decided_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"words": str(r["text"])} for r in topic_records("weather", 30, seed=6)])
    result = write_config([str(tmp_path / "a.jsonl")], tmp_path / "config.yaml")
    assert result["fields"] == {"text": "words"}
    assert [line.split(":")[0] for line in result["undecided"]] == [
        "pool.fields.id",
        "pool.fields.source",
        "reference.inputs",
    ]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["reference"]["inputs"] == ["reference.jsonl"]


def test_a_file_that_is_there_is_not_overwritten(shards):
    out = shards / "config.yaml"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"config.yaml: expected no file, found one; give another with --out"):
        write_config([f"{shards}/pool/*"], out)
    assert out.read_text() == "mine"


def test_records_without_text_are_named_with_what_they_hold(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"number": i} for i in range(5)])
    with pytest.raises(
        ConfigError, match=r"expected a field with text in most records, found number \(integer, 100%\)"
    ):
        write_config([str(tmp_path / "a.jsonl")], tmp_path / "config.yaml")


def test_an_id_is_known_by_the_end_of_its_name_however_long_it_is(tmp_path):
    records = [
        {"doc_uid": f"crawl/{'page/' * 30}{i}", "body": r["text"], "country_code": "nz"}
        for i, r in enumerate(topic_records("weather", 30, seed=6))
    ]
    write_jsonl(tmp_path / "a.jsonl", records)
    result = write_config([str(tmp_path / "a.jsonl")], tmp_path / "config.yaml")
    assert (result["fields"]["id"], result["fields"]["text"]) == ("doc_uid", "body")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x85", "\x1b[2J", "\ufeff", "\U000e0001"])
def test_a_fields_name_that_breaks_a_line_breaks_no_configuration(tmp_path, end):
    body, kind = f"body{end}- evil: x", f"kind{end}"
    records = [{body: r["text"], kind: f"name{end}{i}", "n": i} for i, r in enumerate(topic_records("harbour", 30, 6))]
    write_jsonl(tmp_path / "a.jsonl", records)
    result = write_config([str(tmp_path / "a.jsonl")], tmp_path / "config.yaml")
    assert result["fields"]["text"] == body
    assert load_config(tmp_path / "config.yaml").pool.fields.text == body
