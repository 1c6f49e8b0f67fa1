"""Documents out of files: JSON Lines (plain, gzip, zstd) and Parquet, bad ones set aside with a reason.

Owns what a record must look like and what is wrong with one that does not. Memory is bounded by one line or one row
group, whatever the file's size or compression ratio. Refuses, with the file named, what it cannot read to its end:
an unknown suffix, a missing, truncated or corrupt file. Decided: lines end at the newline byte alone, since U+2028 and
its kin may stand inside a JSON string (RFC 8259, section 7); blank lines are not records.

Reasons of `SetAside`: ``invalid_utf8``, ``line_too_long``, ``invalid_json``, ``not_an_object``, ``missing_text``,
``wrong_type``, ``empty_text``.
"""

import codecs
import datetime
import decimal
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from quad_tasks.records import Document, SetAside
from quad_tasks.storage.faults import StorageError, call_with_retries, redact
from quad_tasks.storage.store import connect, open_store

COMPRESSIONS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
PARQUET_SUFFIX = ".parquet"
MAX_LINE_BYTES = 64 * 2**20
READ_BYTES = 8 * 2**20
"""Read at a time; on S3 this is one range request."""
PARQUET_BATCH_ROWS = 256
"""Rows turned into Python objects at a time."""
MAX_COLUMN_BYTES = 2**30
MAX_COLUMN_RATIO = 200
"""A column of a Parquet row group may hold more than `MAX_COLUMN_BYTES` only if it is stored in a share of that."""
ID_HEX_DIGITS = 32
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
GLOB_CHARACTERS = frozenset("*?[")

Row = tuple[int, "dict[str, Any] | Rejection"]
"""A 1-based line or row number, and the record there or why there is none."""


class InputError(StorageError, ValueError):
    """An input file or pattern that cannot be read; names it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a record holds what; a dotted path reaches into objects, as in ``meta.lang``.

    Attributes:
        id: a string or integer; where it is absent the id is derived from the text.
        text: the document's text, required.
        source: where the text came from; where it is absent, the file's name without its suffixes.
        metadata: an object (or a string holding one) whose entries join the record's further fields.
        domain: a string kept as ``metadata["domain"]``; None to look for none.
    """

    id: str = "id"
    text: str = "text"
    source: str = "source"
    metadata: str = "metadata"
    domain: str | None = "domain"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a line holds no document: a reason word, and what was expected and got."""

    reason: str
    detail: str


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


def fingerprint(uri: str) -> str:
    """Return the SHA-256, in hex, of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    with _open(uri) as file:
        state = hashlib.sha256()
        while data := file.read(READ_BYTES):
            state.update(data)
    return state.hexdigest()


def input_size(uri: str) -> int:
    """Return the size of a file in bytes, as stored.

    Raises:
        InputError: the file cannot be read.
    """
    with _open(uri) as file:
        return file.seek(0, io.SEEK_END)


def read_documents(uri: str, fields: Fields | None = None) -> Iterator[Document | SetAside]:
    """Read a file's documents in order, as `number_documents` does, without their lines."""
    return (record for _, record in number_documents(uri, fields))


def number_documents(uri: str, fields: Fields | None = None) -> Iterator[tuple[int, Document | SetAside]]:
    """Read a file's documents in order; each non-blank line or row gives exactly one result.

    Args:
        uri: a local path or fsspec URI ending in .jsonl, .jsonl.gz, .jsonl.zst or .parquet.
        fields: names of the record's fields; by default id, text, source, metadata and domain.

    Yields:
        The 1-based line or row, and its document, or what was set aside with its reason.

    Raises:
        InputError: the suffix is unknown, or the file is missing, unreadable, truncated or corrupt.
    """
    fields = fields or Fields()
    name = uri.rpartition("/")[2]
    source = name.removesuffix(_suffix(uri))
    for number, record in _rows(uri):
        given_id = None if isinstance(record, Rejection) else _take(record, fields.id)
        document = record if isinstance(record, Rejection) else _to_document(record, given_id, fields, source)
        if isinstance(document, Rejection):
            known_id = str(given_id) if isinstance(given_id, (str, int)) else ""
            yield number, SetAside(redact(uri), number, document.reason, document.detail, known_id)
        else:
            yield number, document


def read_records(uri: str) -> Iterator[dict[str, Any] | Rejection]:
    """Read a file's records in order as they stand, whatever their fields are called.

    Raises:
        InputError: as `number_documents`.
    """
    return (record for _, record in _rows(uri))


def _rows(uri: str) -> Iterator[Row]:
    suffix = _suffix(uri)
    return _parquet_rows(uri) if suffix == PARQUET_SUFFIX else _json_rows(uri, COMPRESSIONS[suffix])


def _suffix(uri: str) -> str:
    for suffix in (*COMPRESSIONS, PARQUET_SUFFIX):
        if uri.endswith(suffix):
            return suffix
    expected = ", ".join((*COMPRESSIONS, PARQUET_SUFFIX))
    raise InputError(f"{redact(uri)}: expected a file ending in one of {expected}")


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
    if not names:
        raise InputError(f"expected a file or a glob that matches files, got {redact(pattern)!r}, which matches none")
    if "://" not in pattern:
        return names
    # what precedes the path in the pattern (scheme, and for some schemes the host) precedes it in every match
    prefix = pattern.removesuffix(path) if pattern.endswith(path) else f"{pattern.partition('://')[0]}://"
    return [prefix + name for name in names]


def _open(uri: str) -> BinaryIO:
    try:
        name = uri.rpartition("/")[2]
        return open_store(uri.removesuffix(name) or ".").open_input(name)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        raise InputError(f"cannot read {redact(uri)}: {error}") from error


def _json_rows(uri: str, compression: str | None) -> Iterator[Row]:
    number = 0
    with _open(uri) as file:
        if compression and file.seek(0, io.SEEK_END) == 0:
            raise InputError(f"{redact(uri)}: expected a whole {compression} file, got an empty one")
        file.seek(0)
        try:
            stream = pa.BufferedInputStream(pa.PythonFile(file, "r"), READ_BYTES)
            stream = pa.CompressedInputStream(stream, compression) if compression else stream
            for number, line in _lines(stream):
                if line is None:
                    yield number, Rejection("line_too_long", f"expected at most {MAX_LINE_BYTES} bytes, got more")
                elif line.strip():
                    yield number, _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except (OSError, pa.ArrowException) as error:
            _refuse(uri, f"a whole {compression or 'readable'} file", f"after line {number}", error)


def _lines(stream: Any) -> Iterator[tuple[int, bytes | None]]:
    """Yield (1-based number, line without its newline); None in place of a line over the bound, which is not kept."""
    number, pending, too_long = 1, bytearray(), False
    while chunk := stream.read(READ_BYTES):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            too_long = too_long or len(pending) + end - start > MAX_LINE_BYTES
            yield number, None if too_long else bytes(pending) + chunk[start:end]
            number, start, too_long = number + 1, end + 1, False
            pending.clear()
        too_long = too_long or len(pending) + len(chunk) - start > MAX_LINE_BYTES
        if too_long:
            pending.clear()
        else:
            pending += chunk[start:]
    if pending or too_long:
        yield number, None if too_long else bytes(pending)


def _parse(line: bytes) -> dict[str, Any] | Rejection:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"expected UTF-8, got byte 0x{line[error.start]:02x} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Rejection("invalid_json", f"expected one JSON object, got {error}")
    if not isinstance(record, dict):
        return Rejection("not_an_object", f"expected a JSON object, got {_kind(record)}")
    if SURROGATE_ESCAPE.search(line) and not _is_unicode(record):
        return Rejection("invalid_utf8", "expected valid Unicode, got an escaped lone surrogate")
    return record


def _parquet_rows(uri: str) -> Iterator[Row]:
    number = 0
    with _open(uri) as file:
        try:
            with pq.ParquetFile(file) as parquet:
                _refuse_bombs(uri, parquet.metadata)
                for group in range(parquet.num_row_groups):
                    for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=[group]):
                        for row in _batch_rows(batch):
                            number += 1
                            yield number, row
        except (OSError, pa.ArrowException) as error:
            _refuse(uri, "a whole Parquet file", f"after row {number}", error)


def _refuse_bombs(uri: str, metadata: pq.FileMetaData) -> None:
    """Refuse a column that says it would blow up: its pages are decompressed whole, and no text shrinks so far."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            stored, size = chunk.total_compressed_size, chunk.total_uncompressed_size
            if size > max(MAX_COLUMN_BYTES, MAX_COLUMN_RATIO * stored):
                expected = f"at most {MAX_COLUMN_RATIO} bytes out of each one stored"
                got = f"{size} out of {stored} in column {chunk.path_in_schema!r}"
                raise InputError(f"{redact(uri)}: expected {expected}, got {got}")


def _batch_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | Rejection]:
    try:
        return cast(list[dict[str, Any] | Rejection], batch.to_pylist())
    except (ValueError, OverflowError):
        # Arrow checks neither strings nor times before it converts them: find the bad rows one by one.
        return [_one_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _one_row(batch: pa.RecordBatch) -> dict[str, Any] | Rejection:
    try:
        return cast(dict[str, Any], batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"expected UTF-8, got {error.reason}")
    except (ValueError, OverflowError) as error:
        return Rejection("wrong_type", f"expected values that Python can hold, got {error}")


def _to_document(record: dict[str, Any], given_id: Any, fields: Fields, default_source: str) -> Document | Rejection:
    """Build a document out of ``record``, whose fields are used up; its id has been taken out already."""
    text = _take(record, fields.text)
    if text is None:
        return Rejection("missing_text", f"expected text in field {fields.text!r}, got none")
    if not isinstance(text, str):
        return _wrong_type(fields.text, "a string", text)
    if not text.strip():
        return Rejection("empty_text", f"expected text in field {fields.text!r}, got {len(text)} blank characters")
    if given_id is not None and (isinstance(given_id, bool) or not isinstance(given_id, (str, int))):
        return _wrong_type(fields.id, "a string or an integer", given_id)
    source = _take(record, fields.source)
    if source is not None and not isinstance(source, str):
        return _wrong_type(fields.source, "a string", source)
    metadata = _metadata(record, fields)
    if isinstance(metadata, Rejection):
        return metadata
    return Document(
        id=_derive_id(text) if given_id in (None, "") else str(given_id),
        text=text,
        source=source or default_source,
        metadata=metadata,
    )


def _metadata(record: dict[str, Any], fields: Fields) -> dict[str, Any] | Rejection:
    domain = _take(record, fields.domain) if fields.domain else None
    if domain is not None and not isinstance(domain, str):
        return _wrong_type(str(fields.domain), "a string", domain)
    given = _take(record, fields.metadata)
    parsed = _parse(given.encode()) if isinstance(given, str) else given
    if parsed is not None and not isinstance(parsed, dict):
        return _wrong_type(fields.metadata, "an object or a string holding one", given)
    further = record | (parsed or {}) | ({} if domain is None else {"domain": domain})
    try:
        return {str(name): _json_value(value) for name, value in further.items()}
    except TypeError as error:
        return Rejection("wrong_type", f"expected JSON values in the further fields, got {error}")


def _take(record: dict[str, Any], path: str) -> Any:
    """Remove and return the value at ``path``: a field of that very name, else a dotted path; None if absent."""
    if path in record:
        return record.pop(path)
    *folders, name = path.split(".")
    holder: Any = record
    for folder in folders:
        holder = holder.get(folder) if isinstance(holder, dict) else None
    return holder.pop(name, None) if isinstance(holder, dict) else None


def _json_value(value: Any) -> Any:
    """Return ``value`` in JSON's types: times in ISO 8601, decimals as text, NaN (a data frame's "none") as null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(_kind(value))


def _derive_id(text: str) -> str:
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:ID_HEX_DIGITS]}"


def _wrong_type(field: str, expected: str, got: Any) -> Rejection:
    return Rejection("wrong_type", f"expected {expected} in field {field!r}, got {_kind(got)}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"a number out of range: {digits[:20]}")
    return number


def _refuse(uri: str, expected: str, reached: str, error: Exception) -> NoReturn:
    if isinstance(error, StorageError):
        raise error
    raise InputError(f"{redact(uri)}: expected {expected}, got an error {reached}: {error}") from error
