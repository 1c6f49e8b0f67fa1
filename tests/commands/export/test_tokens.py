"""Token ids of an export: read back by the readers of each format, or by its description byte by byte."""

import copy
import json
import struct
import warnings

import numpy as np
import pytest
from mds import decode_mds, read_mds
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.export import export_selection as export
from quad_tasks.commands.export import tokens as export_tokens
from quad_tasks.config.schema import ConfigError
from quad_tasks.runtime.checkpoints import load_checkpoint_tokenizer
from quad_tasks.runtime.run import starting_checkpoint
from quad_tasks.stages.selection.publish import read_selection
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import open_store


@pytest.fixture
def rows(small_run):
    store = open_store(small_run.workspace)
    return read_table(store, f"runs/{small_run.run}/selection/part-00000.parquet").to_pylist()


@pytest.fixture
def tokenizer(small_run):
    store = open_store(small_run.workspace)
    return load_checkpoint_tokenizer(store, starting_checkpoint(store, read_selection(store, small_run.run).pool))


@pytest.fixture
def expected(rows, tokenizer):
    """Each document's token ids, one at a time, and the end-of-document token after them."""
    return [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in rows]


def test_megatrons_own_reader_finds_every_documents_token_ids(small_run, expected, tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would use on a GPU
        indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    summary = export.export_selection(small_run, str(tmp_path), "megatron", shard_bytes=1000)
    stems = [str(tmp_path / file["name"][:-4]) for file in summary["files"] if file["name"].endswith(".bin")]
    assert len(stems) > 1
    read = [np.asarray(ids).tolist() for stem in stems for ids in indexed.IndexedDataset(stem)]
    assert read == expected
    assert summary["token_ids"] == sum(len(ids) for ids in expected)
    assert summary["tokens"] == summary["token_ids"] - summary["rows"]
    assert summary["end_of_document"] == tokenizer.eos_token_id
    first = indexed.IndexedDataset(stems[0])
    assert first.document_indices.tolist() == list(range(len(first) + 1))
    assert first.index.dtype == np.uint16


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path):
    store = open_store(str(tmp_path))
    documents = [np.array([1, 70_000], dtype=np.int32), np.array([2], dtype=np.int32)]
    assert export_tokens.write_megatron(store, "a", documents, 65_499) == ["a.bin", "a.idx"]
    assert (tmp_path / "a.bin").stat().st_size == 6
    export_tokens.write_megatron(store, "b", documents, 65_500)
    assert (tmp_path / "b.bin").read_bytes() == np.array([1, 70_000, 2], dtype="<i4").tobytes()
    lengths, offsets, bounds = struct.pack("<2i", 2, 1), struct.pack("<2q", 0, 8), struct.pack("<3q", 0, 1, 2)
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 2, 3)
    assert (tmp_path / "b.idx").read_bytes() == head + lengths + offsets + bounds


@pytest.mark.parametrize("tokenize", [False, True])
def test_mds_shards_hold_text_or_token_ids(small_run, rows, expected, tmp_path, tokenize):
    summary = export.export_selection(small_run, str(tmp_path), "mds", shard_bytes=1000, tokenize=tokenize)
    samples = read_mds(tmp_path)
    assert [sample["id"] for sample in samples] == [row["id"] for row in rows]
    assert [sample["quad"]["influence"] for sample in samples] == [row["influence"] for row in rows]
    assert [sample["metadata"] for sample in samples] == [json.loads(row["metadata"]) for row in rows]
    if tokenize:
        assert [sample["tokens"] for sample in samples] == expected
        assert "text" not in samples[0]
    else:
        assert [sample["text"] for sample in samples] == [row["text"] for row in rows]
        assert "token_ids" not in summary
    assert sum(file["rows"] for file in summary["files"]) == summary["rows"] == len(rows)


def test_mosaics_own_reader_finds_the_same(small_run, expected, tmp_path):
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming needs an older transformers")
    export.export_selection(small_run, str(tmp_path), "mds", shard_bytes=1000, tokenize=True)
    dataset = streaming.StreamingDataset(local=str(tmp_path / "data"), batch_size=1, shuffle=False)
    assert [sample["tokens"].tolist() for sample in dataset] == expected


@pytest.mark.parametrize("length", [1, 255, 256, 65_535, 65_536])
def test_an_mds_vector_says_its_length_in_as_few_bytes_as_do(length):
    ids = np.arange(length, dtype=np.int32)
    assert decode_mds("ndarray:int32", export_tokens._mds_array(ids)) == ids.tolist()


def test_a_dataset_holds_token_ids_beside_its_text(small_run, rows, expected, tmp_path):
    from datasets import load_dataset

    export.export_selection(small_run, str(tmp_path / "out"), "hf", tokenize=True)
    opened = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(opened["input_ids"]) == expected
    assert opened["text"][:] == [row["text"] for row in rows]


def test_a_document_that_ends_already_is_not_ended_twice(tokenizer):
    text = "a word" + tokenizer.eos_token
    (ids,) = export_tokens.encode_documents(tokenizer, [text])
    assert ids.tolist().count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_an_end_of_document_token_is_refused(small_run, tokenizer, tmp_path, monkeypatch):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    monkeypatch.setattr(export, "load_checkpoint_tokenizer", lambda store, key: endless)
    with pytest.raises(ConfigError, match=r"expected a tokenizer with an end-of-document token"):
        export.export_selection(small_run, str(tmp_path), "megatron")
    assert not list(tmp_path.iterdir())


def test_a_shard_too_large_for_its_offsets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export_tokens, "MDS_LARGEST_SHARD", 1000)
    with pytest.raises(ConfigError, match=r"--shard-size: expected MDS shards below 4 GiB"):
        export_tokens.write_mds(open_store(str(tmp_path)), "a.mds", {"text": "str"}, [{"text": "a" * 1000}])
    assert not list(tmp_path.iterdir())


def test_the_command_says_how_many_token_ids_it_wrote_and_refuses_lines_of_them(small_run, tmp_path):
    place = ["--workspace", small_run.workspace]
    arguments = ["export", small_run.run, *place, "--out", str(tmp_path / "out"), "--format"]
    done = CliRunner().invoke(app, [*arguments, "megatron", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["token_ids"] > 0
    refused = CliRunner().invoke(app, [*arguments, "jsonl.zst", "--tokenize"])
    assert refused.exit_code == 2
    assert "--tokenize: expected --format parquet, hf, mds, megatron, found 'jsonl.zst'" in refused.output


def test_text_and_token_ids_are_different_exports(small_run, tmp_path):
    export.export_selection(small_run, str(tmp_path), "parquet")
    for format, tokenize in (("parquet", True), ("mds", False)):
        with pytest.raises(ConfigError, match="found another one"):
            export.export_selection(small_run, str(tmp_path), format, tokenize=tokenize)
