"""Input files: which can be read, how they are found, opened and decompressed, and why one cannot be read.

Whatever a file's compression ratio, little more is held than is asked for. A large file is cut into spans, read one by
one, where its kind has places to cut at; compressed files have none. Refuses, with the file named, what it cannot
read to its end, and a file that holds something else than its name says.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, cast

import pyarrow as pa
import zstandard

from quad_tasks.plugins import load_plugin, plugin_names
from quad_tasks.records import Span
from quad_tasks.storage.errors import StorageError, call_with_retries, redact
from quad_tasks.storage.store import connect, open_store

COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file with `git lfs pull`",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
"""First bytes of files that are often met under another name."""
SIGNATURE_BYTES = 32
READ_BYTES = 8 * 2**20
"""Read at a time; on S3 this is one range request."""
DECOMPRESSED_BYTES = 2**18
"""Most that is taken of a decompressor at a time."""
SPAN_BYTES = 2**28
"""A file of more bytes, as stored, is cut into spans of about this many."""
ZSTD_WINDOW_BYTES = 2**31
"""Largest window of a zstd file, that of `zstd --long=31`: so much memory its reading takes."""
ZSTD_FEED_BYTES = 4 * 2**10
"""Compressed bytes that are decompressed at a time: zstd makes at most some 32,000 bytes of each."""
UNNAMED = re.compile("[\ud800-\udfff]")
"""What stands in a file's name for bytes that are not UTF-8."""
GLOB_CHARACTERS = frozenset("*?[")
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, pa.ArrowException)

Chunks = Callable[[int], bytes]
"""Reads up to this many bytes; none at the end."""


class InputError(StorageError, ValueError):
    """An input file or pattern that cannot be read; names it."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a file is cut into spans.

    Attributes:
        starts: first bytes of the spans, ascending from 0; each ends where the next begins, the last at `tail`.
        tail: first byte of what is read with every span; the file's size where there is nothing.
        rows: rows of the file before each span; None: a row is a line, to be counted.
    """

    starts: tuple[int, ...]
    tail: int
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How files of one kind are read; registered under the suffix of their names, without its dot.

    Attributes:
        read: yields a file's records in order, each with its 1-based number, as a mapping or as a
            `readers.Rejection`; given the file's URI, the ending of its compression ("" for none), and the field
            that a text without fields becomes. Raises `InputError` where the file cannot be read to its end.
        compressed: whether files of this kind may be compressed as a whole, for `open_chunks` to decompress.
        cut: given a file's URI and the bytes of a span, finds where to cut the file, the same each time. `read` then
            takes a `span` too, and yields its records with their numbers in the file. None: files are read whole.
    """

    read: Callable[..., Iterator[tuple[int, Any]]]
    compressed: bool
    cut: Callable[[str, int], Cuts] | None = None


def expand_inputs(patterns: Sequence[str]) -> list[str]:
    """Turn file names and globs into the files they name.

    Args:
        patterns: local paths or fsspec URIs; ``*``, ``?``, ``[...]``, and ``**`` for any depth of folders.

    Returns:
        Absolute paths or URIs, sorted, each once.

    Raises:
        InputError: a pattern names no file.
    """
    return sorted({uri for pattern in patterns for uri in _expand(pattern)})


def fingerprint(uri: str, span: Span | None = None) -> str:
    """Return the SHA-256, in hex, of a file's bytes, or of those that a span is read from.

    Raises:
        InputError: the file cannot be read.
    """
    state = hashlib.sha256()
    with open_input(uri) as file:
        size = file.seek(0, io.SEEK_END)
        for start, end in [(0, size)] if span is None else [(span.start, span.end), (span.tail, size)]:
            for data in read_blocks(file, start, end):
                state.update(data)
    return state.hexdigest()


def read_blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Read bytes [start, end) of a file, some at a time."""
    read = read_within(file, start, end)
    return iter(lambda: read(READ_BYTES), b"")


def read_within(file: BinaryIO, start: int, end: int) -> Chunks:
    """Give what reads bytes [start, end) of a file."""
    file.seek(start)
    return lambda size: file.read(min(size, max(0, end - file.tell())))


def input_size(uri: str) -> int:
    """Return the size of a file in bytes, as stored.

    Raises:
        InputError: the file cannot be read.
    """
    with open_input(uri) as file:
        return file.seek(0, io.SEEK_END)


def find_cuts(uri: str, span_bytes: int) -> Cuts | None:
    """Find where a file of more than `span_bytes` is cut; None: it is no larger, or read whole.

    Raises:
        InputError: the file cannot be read.
    """
    if input_size(uri) <= span_bytes:
        return None
    suffix, ending = suffix_of(uri)
    cut = find_reader(suffix[1:]).cut
    cuts = cut(uri, span_bytes) if cut and not ending else None
    return cuts if cuts and len(cuts.starts) > 1 else None


def digest_spans(uri: str, cuts: Cuts) -> tuple[str, list[Span]]:
    """Read a file once; return the SHA-256 of all its bytes, in hex, and its spans.

    Raises:
        InputError: the file cannot be read.
    """
    whole, spans, lines = hashlib.sha256(), [], 0
    with open_input(uri) as file:
        tail = b"".join(read_blocks(file, cuts.tail, file.seek(0, io.SEEK_END)))
        for number, (start, end) in enumerate(zip(cuts.starts, (*cuts.starts[1:], cuts.tail), strict=True)):
            own, before = hashlib.sha256(), lines if cuts.rows is None else cuts.rows[number]
            for data in read_blocks(file, start, end):
                whole.update(data)
                own.update(data)
                lines += data.count(b"\n")
            own.update(tail)
            spans.append(Span(start, end, cuts.tail, before, own.hexdigest()))
        whole.update(tail)
    return whole.hexdigest(), spans


def suffix_of(uri: str) -> tuple[str, str]:
    """Split off a file's suffix: its kind, and the ending of its compression or "".

    Raises:
        InputError: no reader has it.
    """
    for ending in sorted(COMPRESSIONS, key=len, reverse=True):
        stem = uri.removesuffix(ending)
        named = [name for name in plugin_names("readers") if stem.endswith(f".{name}") and uri.endswith(ending)]
        for name in sorted(named, key=len, reverse=True):
            if not ending or find_reader(name).compressed:
                return f".{name}", ending
    raise InputError(f"{redact(uri)}: expected a file ending in one of {', '.join(_suffixes())}")


def find_reader(name: str) -> Reader:
    """Return the reader of a suffix, given without its dot."""
    reader: Reader = load_plugin("readers", name)
    return reader


def _suffixes() -> Iterator[str]:
    for name in plugin_names("readers"):
        yield from (f".{name}{end}" for end in (COMPRESSIONS if find_reader(name).compressed else [""]))


def _expand(pattern: str) -> list[str]:
    files, path = connect(pattern)

    def find() -> list[str]:
        with suppress(FileNotFoundError):
            if files.info(path)["type"] == "file":
                return [path]
        if not GLOB_CHARACTERS & set(path):
            return []
        found = files.glob(path, detail=True)
        return [name for name, info in found.items() if info["type"] == "file"]

    names = call_with_retries(find, redact(pattern))
    strange = [name for name in names if UNNAMED.search(name)]
    if strange:
        raise InputError(f"expected file names in UTF-8, found {strange[0]!r} among {redact(pattern)!r}: rename it")
    if not names:
        raise InputError(f"expected a file or a glob that matches files, got {redact(pattern)!r}, which matches none")
    if "://" not in pattern:
        return names
    # what precedes the path in the pattern (scheme, and for some schemes the host) precedes it in every match
    prefix = pattern.removesuffix(path) if pattern.endswith(path) else f"{pattern.partition('://')[0]}://"
    return [prefix + name for name in names]


def open_input(uri: str) -> BinaryIO:
    """Open an input file.

    Raises:
        InputError: it is missing, or access is refused.
    """
    try:
        name = uri.rpartition("/")[2]
        return open_store(uri.removesuffix(name) or ".").open_input(name)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        raise InputError(f"cannot read {redact(uri)}: {error}") from error


def name_kind(head: bytes) -> str | None:
    """Name what a file's first bytes say it is, where that is known."""
    return next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None)


def refuse_other_kind(uri: str, head: bytes, expected: str) -> None:
    """Refuse a file whose first bytes are those of another kind of file.

    Raises:
        InputError: it is of another kind, which the message names.
    """
    kind = name_kind(head)
    if kind is None and expected == "JSON lines" and head.lstrip().startswith(b"["):
        kind = "a JSON array: write one object a line (`jq -c '.[]'`)"
    if kind is not None and kind != expected:
        raise InputError(f"{redact(uri)}: expected {expected}, found {kind}")


def open_chunks(uri: str, file: BinaryIO, ending: str) -> Chunks:
    """Give what reads a file's bytes decompressed, whatever their ratio not many more than asked for.

    Raises:
        InputError: the file is empty, or of another kind than its ending says.
    """
    compression = COMPRESSIONS[ending]
    if compression is None:
        return file.read
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(Any, file), READ_BYTES)
    head = buffered.peek()[:SIGNATURE_BYTES]
    if not head:
        raise InputError(f"{redact(uri)}: expected a whole {compression} file, got an empty one")
    refuse_other_kind(uri, head, compression)
    if compression == "zstd":
        return _open_zstd(buffered)
    openers: dict[str, Callable[[BinaryIO], Any]] = {"gzip": lambda f: gzip.GzipFile(fileobj=f), "bz2": bz2.BZ2File}
    stream = openers.get(compression, lzma.LZMAFile)(buffered)
    # `read` would lose what precedes a fault
    return lambda size: cast(bytes, stream.read1(min(size, DECOMPRESSED_BYTES)))


def _open_zstd(file: BinaryIO) -> Chunks:
    """Decompress with Arrow, which is fast; where it fails, go on from there frame by frame.

    Arrow takes windows of up to 128 MB, and loses what precedes a fault.
    """
    chunks = _arrow_then_frames(file)
    return lambda _size: next(chunks, b"")


def _arrow_then_frames(file: BinaryIO) -> Iterator[bytes]:
    stream, given = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"), 0
    try:
        while chunk := stream.read(READ_BYTES):
            yield chunk
            given += len(chunk)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
    else:
        return
    file.seek(0)
    for chunk in _zstd_chunks(file):
        if len(chunk) > given:
            yield chunk[given:]
        given = max(given - len(chunk), 0)


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress the frames of a zstd file with wide windows; bytes after a frame belong to the next."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    frame: Any = None
    while block := file.read(READ_BYTES):
        for start in range(0, len(block), ZSTD_FEED_BYTES):
            data = block[start : start + ZSTD_FEED_BYTES]
            while data:
                frame = frame or decompressor.decompressobj()
                if piece := frame.decompress(data):
                    yield piece
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed data end inside a frame")


def refuse(uri: str, expected: str, reached: str, error: Exception) -> NoReturn:
    """Refuse a file that cannot be read to its end; an `EOFError` says that it was cut.

    Raises:
        InputError: what went wrong, and how far the file was read.
        StorageError: the fault of its store, as it is.
    """
    if isinstance(error, StorageError):
        raise error
    if isinstance(error, EOFError):
        found = f"found that it ends early, {reached}: it is truncated, copy it again ({error})"
        raise InputError(f"{redact(uri)}: expected {expected}, {found}") from error
    raise InputError(f"{redact(uri)}: expected {expected}, got an error {reached}: {error}") from error
