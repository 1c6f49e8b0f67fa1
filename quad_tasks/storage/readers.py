"""Rows out of input files, by the product's own readers: JSON Lines, delimited text, plain text, Parquet and Arrow.

Memory is bounded by one line or one row group. Decided: lines end at the newline byte alone, since U+2028 and its kin
may stand inside a JSON string (RFC 8259, section 7); blank lines are not records; control characters in JSON strings,
Python's NaN, and bytes of a column that are not UTF-8 are let pass, since the field they stand in decides what they
cost; quotes mean something in comma-separated text alone, as tab-separated text has none (IANA's registration).

Reasons of `Rejection`: ``invalid_utf8``, ``line_too_long``, ``invalid_json``, ``not_an_object``, ``wrong_columns``.
"""

import codecs
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from quad_tasks.records import Span
from quad_tasks.storage import input_files
from quad_tasks.storage.errors import redact
from quad_tasks.storage.input_files import (
    COMPRESSIONS,
    UNREADABLE,
    Chunks,
    Cuts,
    InputError,
    Reader,
    find_reader,
    name_kind,
    open_chunks,
    open_input,
    read_within,
    refuse,
    refuse_other_kind,
    suffix_of,
)
from quad_tasks.storage.tables import iter_row_group

MAX_LINE_BYTES = 64 * 2**20
PROBE_BYTES = 2**16
"""Read first where a line's end is looked for."""
ROWS_AT_A_TIME = 256
"""Rows turned into Python objects at a time."""
INT_DIGITS = 4000
"""Python reads and writes no whole number of many more digits."""
PARQUET_MAGIC = b"PAR1"
"""Begins and ends a Parquet file."""
PARQUET_END_BYTES = 8
"""The footer's length and the magic number, after the footer."""
MAX_COLUMN_BYTES = 2**30
MAX_COLUMN_RATIO = 200
"""A column of a Parquet row group may hold more than `MAX_COLUMN_BYTES` only if it is stored in a share of that."""

Row = tuple[int, "dict[str, Any] | Rejection"]
"""A 1-based line or row number, and the record there or why there is none."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a line holds no document: a reason word, and what was expected and got."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that stands in a row but cannot be held: a time out of range, a string that is not UTF-8."""

    why: str


def read_rows(uri: str, text_field: str = "text", span: Span | None = None) -> Iterator[Row]:
    """Read a file's rows in order; each non-blank line or row gives exactly one.

    Args:
        uri: a local path or fsspec URI whose suffix a reader has.
        text_field: the field that the whole of a text file becomes.
        span: read the rows of this part of the file alone, by their numbers in the file.

    Raises:
        InputError: the suffix is unknown, or the file is missing, unreadable, truncated, corrupt or of another kind.
    """
    suffix, ending = suffix_of(uri)
    read = find_reader(suffix[1:]).read
    return read(uri, ending, text_field) if span is None else read(uri, ending, text_field, span=span)


def _json_rows(uri: str, ending: str, _text_field: str, span: Span | None = None) -> Iterator[Row]:
    number = before = span.before if span else 0
    with open_input(uri) as file:
        try:
            read = read_within(file, span.start, span.end) if span else open_chunks(uri, file, ending)
            for number, line in _lines(read, before + 1):
                if line is None:
                    yield number, Rejection("line_too_long", f"expected at most {MAX_LINE_BYTES} bytes, got more")
                    continue
                if number == 1:
                    refuse_other_kind(uri, line.removeprefix(codecs.BOM_UTF8), "JSON lines")
                if line.strip():
                    yield number, parse_object(line.removeprefix(codecs.BOM_UTF8))
        except UNREADABLE as error:
            refuse(uri, f"a whole {COMPRESSIONS[ending] or 'readable'} file", f"after line {number}", error)


def _cut_lines(uri: str, span_bytes: int) -> Cuts:
    """Cut a file of lines into spans of about equal size, each beginning with a line."""
    with open_input(uri) as file:
        size = file.seek(0, io.SEEK_END)
        starts, n = [0], -(-size // span_bytes)
        for place in (size * i // n for i in range(1, n)):
            if place > starts[-1]:
                starts.append(_next_line(file, place))
    return Cuts(tuple(start for start in starts if start < size), size)


def _next_line(file: BinaryIO, place: int) -> int:
    """Return where the first line begins at `place` (of 1 or more) or later; where none does, the file's size."""
    place, at_once = place - 1, PROBE_BYTES
    file.seek(place)
    while chunk := file.read(at_once):
        if (end := chunk.find(b"\n")) >= 0:
            return place + end + 1
        place, at_once = place + len(chunk), input_files.READ_BYTES
    return place


def _lines(read: Chunks, number: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (its number, line without its newline); None in place of a line over the bound, which is not kept.

    Args:
        read: reads the lines' bytes.
        number: of the first line.
    """
    pending, too_long = bytearray(), False
    while chunk := read(input_files.READ_BYTES):
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


def parse_object(line: bytes) -> dict[str, Any] | Rejection:
    """Parse one JSON object; NaN and infinities become floats, control characters may stand in strings."""
    try:
        record = json.loads(line.decode(), strict=False, parse_int=_whole_number)
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"expected UTF-8, got byte 0x{line[error.start]:02x} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Rejection("invalid_json", f"expected one JSON object, got {error}")
    return (
        record
        if isinstance(record, dict)
        else Rejection("not_an_object", f"expected a JSON object, got {kind_of(record)}")
    )


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= INT_DIGITS else math.inf


def kind_of(value: Any) -> str:
    """Name a value's type in JSON's words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _text_row(uri: str, ending: str, text_field: str) -> Iterator[Row]:
    """Read a text file as one record."""
    whole = bytearray()
    with open_input(uri) as file:
        try:
            read = open_chunks(uri, file, ending)
            while (chunk := read(input_files.READ_BYTES)) and len(whole) <= MAX_LINE_BYTES:
                whole += chunk
        except UNREADABLE as error:
            refuse(uri, f"a whole {COMPRESSIONS[ending] or 'readable'} file", f"after {len(whole)} bytes", error)
    refuse_other_kind(uri, bytes(whole[: input_files.SIGNATURE_BYTES]), "text")
    if len(whole) > MAX_LINE_BYTES:
        yield 1, Rejection("line_too_long", f"expected at most {MAX_LINE_BYTES} bytes, got more")
        return
    try:
        yield 1, {text_field: whole.removeprefix(codecs.BOM_UTF8).decode()}
    except UnicodeDecodeError as error:
        yield 1, Rejection("invalid_utf8", f"expected UTF-8, got byte 0x{whole[error.start]:02x} at byte {error.start}")


class _ChunkFile(io.RawIOBase):
    """What reads chunks, as a file for Arrow's CSV reader, to which a read is a block, longer than any row."""

    def __init__(self, read: Chunks) -> None:
        self._read, self._rest = read, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            self._rest = self._rest or self._read(len(buffer) - filled)
            if not self._rest:
                break
            taken = self._rest[: len(buffer) - filled]
            buffer[filled : filled + len(taken)] = taken
            self._rest = self._rest[len(taken) :]
            filled += len(taken)
        return filled


def _delimited_rows(delimiter: str, quotes: bool, uri: str, ending: str, _text_field: str) -> Iterator[Row]:
    """Read delimited text with a header; every value is a string, an empty one none."""
    number, bad = 0, dict[int, str]()

    def skip(row: pacsv.InvalidRow) -> str:
        bad[row.number - 1] = f"expected {row.expected_columns} columns, got {row.actual_columns}"  # the header is 1
        return "skip"

    quote = {"quote_char": '"' if quotes else False, "newlines_in_values": quotes}
    parse = pacsv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip, **quote)
    try:
        with open_input(uri) as file:
            refuse_other_kind(uri, open_chunks(uri, file, ending)(input_files.SIGNATURE_BYTES), "delimited text")
        with open_input(uri) as file:
            names = _delimited_batches(uri, file, ending, parse, ()).schema.names
        _refuse_repeats(uri, names)
        bad.clear()
        with open_input(uri) as file:
            for batch in _delimited_batches(uri, file, ending, parse, names):
                for row in _batch_rows(batch):
                    while (number := number + 1) in bad:
                        yield number, Rejection("wrong_columns", bad.pop(number))
                    yield number, {name: value or None for name, value in row.items()}
        yield from ((after, Rejection("wrong_columns", bad[after])) for after in sorted(bad))
    except (*UNREADABLE, UnicodeDecodeError) as error:  # the latter of a column's name
        refuse(uri, "whole delimited text with a header", f"after row {number}", error)


def _delimited_batches(
    uri: str, file: BinaryIO, ending: str, parse: pacsv.ParseOptions, names: Sequence[str]
) -> pacsv.CSVStreamingReader:
    read = pacsv.ReadOptions(block_size=input_files.READ_BYTES, use_threads=False)  # threads would number no rows
    strings = dict.fromkeys(names, pa.string())
    convert = pacsv.ConvertOptions(check_utf8=False, column_types=strings, strings_can_be_null=False)
    stream = _ChunkFile(open_chunks(uri, file, ending))
    return pacsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def _parquet_rows(uri: str, _ending: str, _text_field: str, span: Span | None = None) -> Iterator[Row]:
    number = span.before if span else 0
    with open_input(uri) as file:
        refuse_other_kind(uri, file.read(input_files.SIGNATURE_BYTES), "Parquet")
        file.seek(0)
        try:
            with pq.ParquetFile(file) as parquet:
                _refuse_repeats(uri, parquet.schema_arrow.names)
                _refuse_bombs(uri, parquet.metadata)
                for group in _groups_of(parquet.metadata, span):
                    for batch in iter_row_group(parquet, group, ROWS_AT_A_TIME):
                        for row in _batch_rows(batch):
                            number += 1
                            yield number, row
        except UNREADABLE as error:
            refuse(uri, "a whole Parquet file", f"after row {number}", _parquet_cut(file) or error)


def _parquet_cut(file: BinaryIO) -> EOFError | None:
    """Return the error of a Parquet file that lacks its end, None of one that has it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    begins = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    file.seek(max(size - len(PARQUET_MAGIC), 0))
    ends = size > len(PARQUET_MAGIC) + PARQUET_END_BYTES and file.read() == PARQUET_MAGIC
    return EOFError("no footer") if begins and not ends else None


def _cut_row_groups(uri: str, span_bytes: int) -> Cuts:
    """Cut a Parquet file between row groups into spans of at most `span_bytes`, or of one row group."""
    with open_input(uri) as file:
        refuse_other_kind(uri, file.read(input_files.SIGNATURE_BYTES), "Parquet")
        size = file.seek(0, io.SEEK_END)
        try:
            metadata = pq.read_metadata(file)
            places = _group_places(metadata)
        except UNREADABLE as error:
            refuse(uri, "a whole Parquet file", "after row 0", _parquet_cut(file) or error)
    tail = size - metadata.serialized_size - PARQUET_END_BYTES
    limits = [*(start for start, _ in places[1:]), tail]
    if any(end > limit for (_, end), limit in zip(places, limits, strict=False)):
        return Cuts((0,), tail, (0,))  # groups that do not follow one another
    starts, rows, before = [0], [0], 0
    for group, (start, end) in enumerate(places):
        own = metadata.row_group(group).num_rows
        if own and before > rows[-1] and end - starts[-1] > span_bytes:
            starts.append(start)
            rows.append(before)
        before += own
    return Cuts(tuple(starts), tail, tuple(rows))


def _groups_of(metadata: pq.FileMetaData, span: Span | None) -> Sequence[int]:
    """List a file's row groups, or those that begin in a span."""
    if span is None:
        return range(metadata.num_row_groups)
    return [i for i, (start, _) in enumerate(_group_places(metadata)) if span.start <= start < span.end]


def _group_places(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """Return the first byte of each row group, and the one after its last; one without rows may have no place."""
    places, end = [], 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns if group.num_rows else 0)]
        starts = [min(filter(None, (c.dictionary_page_offset, c.data_page_offset)), default=0) for c in columns]
        ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
        places.append((min(starts, default=end), end := max(ends, default=end)))
    return places


def _arrow_rows(uri: str, _ending: str, _text_field: str) -> Iterator[Row]:
    """Read an Arrow file or stream, as `datasets` keeps them."""
    number = 0
    with open_input(uri) as file:
        head = file.read(input_files.SIGNATURE_BYTES)
        file.seek(0)
        if name_kind(head) != "Arrow":
            refuse_other_kind(uri, head, "Arrow")
        try:
            reader = pa.ipc.open_file(file) if name_kind(head) == "Arrow" else pa.ipc.open_stream(file)
            _refuse_repeats(uri, reader.schema.names)
            many = range(reader.num_record_batches) if name_kind(head) == "Arrow" else None
            for batch in reader if many is None else (reader.get_batch(i) for i in many):
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    for row in _batch_rows(batch.slice(start, ROWS_AT_A_TIME)):
                        number += 1
                        yield number, row
        except UNREADABLE as error:
            refuse(uri, "a whole Arrow file", f"after row {number}", error)


def _refuse_repeats(uri: str, names: Sequence[str]) -> None:
    """Refuse two columns of one name: nothing says which of them is meant."""
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise InputError(f"{redact(uri)}: expected columns of different names, found {repeated[0]!r} more than once")


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


def _batch_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except (ValueError, OverflowError):
        # Arrow checks neither strings nor times before it converts them: find the bad values one by one.
        columns = [[_value(value) for value in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"expected UTF-8, got {error.reason}")
    except (ValueError, OverflowError) as error:
        return Unreadable(f"expected a value that Python can hold, got {error}")


JSON_LINES = Reader(_json_rows, compressed=True, cut=_cut_lines)
TEXT = Reader(_text_row, compressed=True)
CSV = Reader(partial(_delimited_rows, ",", True), compressed=True)
TSV = Reader(partial(_delimited_rows, "\t", False), compressed=True)
PARQUET = Reader(_parquet_rows, compressed=False, cut=_cut_row_groups)
ARROW = Reader(_arrow_rows, compressed=False)
