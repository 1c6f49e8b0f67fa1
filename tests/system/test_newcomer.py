"""A newcomer's first half hour, as the README has it: own files under own names, one of them cut off, to a dataset."""

import gzip
import json

import pytest
import yaml
from small_pool import small_config, topic_records
from typer.testing import CliRunner

from flows.cli.app import app

OURS = {"id": "doc_uid", "text": "body", "source": "origin"}


def renamed(records):
    return [{OURS.get(key, key): value for key, value in record.items() if key != "domain"} for record in records]


@pytest.fixture
def folder(tmp_path, monkeypatch, one_process):
    """Three shards of a newcomer's, the last one cut off, a reference and a held-out domain."""
    (tmp_path / "crawl").mkdir()
    for topic in ("weather", "kitchen", "harbour"):
        lines = "\n".join(json.dumps(record) for record in renamed(topic_records(topic, 60, seed=0)))
        packed = gzip.compress(lines.encode())
        (tmp_path / "crawl" / f"{topic}.jsonl.gz").write_bytes(packed)
    (tmp_path / "crawl" / "zz-cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    for name, topic in (("wanted", "harbour"), ("aside", "kitchen")):
        lines = "\n".join(json.dumps(record) for record in renamed(topic_records(topic, 24, seed=2)))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quad(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_own_files_under_own_names_become_a_dataset_that_opens(dask_client, folder):
    from datasets import load_dataset

    said = quad("init", "crawl/*", "--reference", "wanted.jsonl", "--heldout", "aside.jsonl", "--run", "novels")
    assert "left out" in said
    assert "zz-cut.jsonl.gz" in said
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: written["pool"]["fields"][key] for key in OURS} == OURS
    tiny = small_config(folder, "workspace")
    for section in ("model", "embedding", "clustering", "factors", "bandit", "selection", "compute"):
        written[section] = tiny[section]
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    assert "money" in quad("plan", "config.yaml", "--price-per-hour", "2.50", "--quiet")
    assert "bandit" in quad("run", "config.yaml", "--dry-run", "--quiet")
    assert not (folder / "workspace").exists()
    assert "report/index.html" in quad("run", "config.yaml", "--quiet")
    assert "documents in =" in quad("verify", "novels")
    quad("export", "novels", "--format", "hf", "--out", "dataset")
    opened = load_dataset("dataset", split="train", cache_dir=str(folder / "cache"))
    assert set(OURS.values()) <= set(opened.column_names)
    assert f"{opened['doc_uid'][0]}: selected" in quad("inspect", "novels", opened["doc_uid"][0])


def test_a_shard_that_is_cut_off_is_named_before_anything_is_spent(folder):
    config = small_config(folder, "workspace", pool__inputs=["crawl/*"], pool__fields=OURS)
    config |= {"reference": {"inputs": ["wanted.jsonl"], "fields": OURS}, "heldout": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["run", "config.yaml", "--dry-run", "--quiet"])
    assert result.exit_code == 2, result.stderr
    assert "zz-cut.jsonl.gz" in result.stderr
    assert not (folder / "workspace").exists()
