"""Compressed files give their bytes whole or are refused, and a file of another kind than its name says is named."""

import bz2
import gzip
import lzma
import struct

import pytest
import zstandard

from quad_tasks.storage.input_files import InputError, suffix_of
from quad_tasks.storage.readers import read_documents

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
