"""Compressed files give their bytes whole or are refused, and a file of another kind than its name says is named."""

import bz2
import gzip
import io
import lzma
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hub_server import at_hub, running_hub

from quad_tasks.storage.errors import StorageError, StoreForbidden
from quad_tasks.storage.input_documents import read_documents
from quad_tasks.storage.input_files import InputError, expand_inputs, fingerprint, input_size, open_input, suffix_of

LINES = b"".join(b'{"id": "%d", "text": "a text of some words, number %d"}\n' % (i, i) for i in range(200))
SKIPPABLE = struct.pack("<II", 0x184D2A50, 16) + b"s" * 16


def wide_window(data: bytes) -> bytes:
    """Compress as `zstd --long=31` does."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return frame.compress(data) + frame.flush()


COMPRESS = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip
WHOLE = {
    "wide window.jsonl.zst": wide_window(LINES),
    "skipped frames.jsonl.zst": SKIPPABLE + COMPRESS[".zst"](LINES[:999]) + SKIPPABLE + COMPRESS[".zst"](LINES[999:]),
    "padded.jsonl.gz": gzip.compress(LINES) + b"\0" * 512,
    **{f"two{end}.jsonl{end}": compress(LINES[:999]) + compress(LINES[999:]) for end, compress in COMPRESS.items()},
}
OTHERS = {
    "gzip.jsonl": (gzip.compress(LINES), "expected JSON lines, found gzip"),
    "zstd.jsonl": (COMPRESS[".zst"](LINES), "expected JSON lines, found zstd"),
    "zstd.jsonl.gz": (COMPRESS[".zst"](LINES), "expected gzip, found zstd"),
    "parquet.jsonl": (b"PAR1...", "expected JSON lines, found Parquet"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "found a Git LFS pointer"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Parquet, found a Git LFS pointer"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "text, found a Git LFS pointer"),
    "page.jsonl.gz": (b"<!DOCTYPE html><html>404</html>", "expected gzip, found a web page"),
    "gzip.csv": (gzip.compress(LINES), "expected delimited text, found gzip"),
    "gzip.arrow": (gzip.compress(LINES), "expected Arrow, found gzip"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_way_to_compress_gives_all_documents(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE[name])
    assert [document.id for document in read_documents(str(tmp_path / name))] == [str(i) for i in range(200)]


@pytest.mark.parametrize("name", WHOLE)
def test_a_compressed_file_cut_anywhere_is_refused(tmp_path, name):
    for share in (0.4, 0.9):
        (tmp_path / name).write_bytes(WHOLE[name][: int(share * len(WHOLE[name].rstrip(b"\0")))])
        with pytest.raises(InputError, match=f"{name}: expected a whole"):
            list(read_documents(str(tmp_path / name)))


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_than_its_name_says_is_named(tmp_path, name):
    data, message = OTHERS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        list(read_documents(str(tmp_path / name)))


def test_a_suffix_is_a_kind_and_a_compression():
    assert suffix_of("s3://b/a.b.jsonl.zst") == (".jsonl", ".zst")
    assert (suffix_of("a.parquet"), suffix_of("a.tsv.xz")) == ((".parquet", ""), (".tsv", ".xz"))
    with pytest.raises(InputError, match=r"a\.parquet\.gz: expected a file ending in one of"):
        suffix_of("a.parquet.gz")


def as_parquet(data: bytes) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": ["p", "q"], "text": [data.decode(), "another text"]}), file)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch):
    files = {
        "README.md": b"read me",
        "data/train.jsonl.zst": COMPRESS[".zst"](LINES),
        "data/deep/er/a b.parquet": as_parquet(LINES),
    }
    with running_hub({"owner/name": files, "owner/gated": files}) as hub:
        at_hub(monkeypatch, hub.address)
        yield hub


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("owner/name/**/*.parquet", ["owner/name/data/deep/er/a b.parquet"]),
        ("owner/name/data/*.zst", ["owner/name/data/train.jsonl.zst"]),
        ("owner/name@main/data/train.jsonl.zst", ["owner/name@main/data/train.jsonl.zst"]),
    ],
)
def test_files_of_a_dataset_of_the_hub_are_found_and_read_as_local_ones(hub, tmp_path, pattern, names):
    found = expand_inputs([f"hf://datasets/{pattern}"])
    assert found == [f"hf://datasets/{name}" for name in names]
    local = tmp_path / found[0].rpartition("/")[2]
    local.write_bytes(hub.files["owner/name"]["/".join(names[0].split("/")[2:])])
    assert (input_size(found[0]), fingerprint(found[0])) == (local.stat().st_size, fingerprint(str(local)))
    assert list(read_documents(found[0])) == list(read_documents(str(local)))


def test_no_more_of_a_file_of_the_hub_is_fetched_than_is_asked_for(hub):
    hub.files["owner/name"]["large.jsonl"] = b"x" * 10_000_000
    with open_input("hf://datasets/owner/name/large.jsonl") as file:
        file.seek(500)
        assert file.read(100) == b"x" * 100
    assert hub.sent == [100]


def test_a_file_of_the_hub_that_has_grown_is_read_to_its_new_end(hub):
    uri = "hf://datasets/owner/name/data/a.jsonl"
    hub.files["owner/name"]["data/a.jsonl"] = LINES[:999]
    assert input_size(uri) == 999
    hub.files["owner/name"]["data/a.jsonl"] = LINES
    assert input_size(uri) == len(LINES)
    assert [document.id for document in read_documents(uri)] == [str(i) for i in range(200)]


def test_the_hub_is_asked_again_where_it_fails_for_a_moment(hub, monkeypatch):
    monkeypatch.setattr("quad_tasks.storage.errors.sleep", lambda _seconds: None)
    hub.failing = [503, 429]
    assert input_size("hf://datasets/owner/name/README.md") == 7


@pytest.mark.parametrize("name", ["owner/none", "owner/gated"])
def test_a_dataset_that_is_not_there_or_refused_is_named(hub, name):
    with pytest.raises(StorageError, match=f"hf://datasets/{name}/"):
        expand_inputs([f"hf://datasets/{name}/*.parquet"])


def test_a_file_that_the_hub_refuses_while_it_is_read_is_named(hub):
    with open_input("hf://datasets/owner/name/README.md") as file:
        hub.failing = [403]
        with pytest.raises(StoreForbidden, match=r"access refused: 'README.md' in hf://datasets/owner/name"):
            file.read(1)
