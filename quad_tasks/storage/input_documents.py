"""Documents out of input files, bad ones set aside with a reason.

Owns what a record must look like and what is wrong with one that does not; `readers.py` reads rows. Decided: the
text alone costs a document. Any other field that is not what it should be becomes null or a string, and its name is
kept in `Document.dropped`.

Reasons of `SetAside`: those of `readers.Rejection`, ``missing_text``, ``wrong_type``, ``empty_text``.
"""

import base64
import datetime
import decimal
import hashlib
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quad_tasks.records import Document, SetAside, Span
from quad_tasks.storage.errors import redact
from quad_tasks.storage.input_files import (
    SPAN_BYTES,
    InputError,
    digest_spans,
    expand_inputs,
    find_cuts,
    fingerprint,
    input_size,
    suffix_of,
)
from quad_tasks.storage.readers import Rejection, Unreadable, kind_of, parse_object, read_rows

__all__ = [
    "SPAN_BYTES",
    "Fields",
    "InputError",
    "Rejection",
    "digest_spans",
    "expand_inputs",
    "find_cuts",
    "fingerprint",
    "input_size",
    "make_document",
    "none_kept",
    "number_documents",
    "read_documents",
    "read_records",
]

ID_HEX_DIGITS = 32
SURROGATES = re.compile("[\ud800-\udfff]")
SHOWN_FIELDS = 12


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


def read_documents(uri: str, fields: Fields | None = None, span: Span | None = None) -> Iterator[Document | SetAside]:
    """Read a file's documents in order, as `number_documents` does, without their lines."""
    return (record for _, record in number_documents(uri, fields, span))


def number_documents(
    uri: str, fields: Fields | None = None, span: Span | None = None
) -> Iterator[tuple[int, Document | SetAside]]:
    """Read a file's documents in order; each non-blank line or row gives exactly one result.

    Args:
        uri: a local path or fsspec URI whose suffix a reader has (`quad_tasks.plugins`).
        fields: names of the record's fields; by default id, text, source, metadata and domain.
        span: read the documents of this part of the file alone, by their lines or rows in the file.

    Yields:
        The 1-based line or row, and its document, or what was set aside with its reason.

    Raises:
        InputError: the suffix is unknown, or the file is missing, unreadable, truncated, corrupt or of another kind.
    """
    fields = fields or Fields()
    source = default_source(uri)
    for number, record in read_rows(uri, fields.text, span):
        document = record if isinstance(record, Rejection) else make_document(record, fields, source)
        if isinstance(document, Rejection):
            given = {} if isinstance(record, Rejection) else record
            yield number, SetAside(redact(uri), number, document.reason, document.detail, _given_id(given, fields))
        else:
            yield number, document


def default_source(uri: str) -> str:
    """Return the source of a file's documents that state none: its name without its suffixes."""
    return uri.rpartition("/")[2].removesuffix("".join(suffix_of(uri)))


def read_records(uri: str) -> Iterator[dict[str, Any] | Rejection]:
    """Read a file's records in order as they stand, whatever their fields are called.

    Raises:
        InputError: as `number_documents`.
    """
    return (record for _, record in read_rows(uri))


def make_document(record: Mapping[str, Any], fields: Fields, source: str) -> Document | Rejection:
    """Build a document out of a record, or say why it gives none.

    Args:
        record: the row's fields; not changed.
        fields: names of the fields.
        source: of a document that states none.
    """
    rest = _copy(record)
    text = _as_text(_take(rest, fields.text))
    if isinstance(text, Unreadable) or (isinstance(text, str) and SURROGATES.search(text)):
        why = text.why if isinstance(text, Unreadable) else "expected valid Unicode, got an escaped lone surrogate"
        return Rejection("invalid_utf8", why)
    if text is None:
        known = ", ".join(sorted(map(str, record))[:SHOWN_FIELDS])
        return Rejection("missing_text", f"expected text in field {fields.text!r}, got none (fields: {known})")
    if not isinstance(text, str):
        return Rejection("wrong_type", f"expected a string in field {fields.text!r}, got {kind_of(text)}")
    if not text.strip():
        return Rejection("empty_text", f"expected text in field {fields.text!r}, got {len(text)} blank characters")
    dropped: list[str] = []
    given_id = _name(rest, fields.id, dropped)
    given_source = _name(rest, fields.source, dropped)
    metadata = _metadata(rest, fields, dropped)
    return Document(
        id=given_id or _derive_id(text),
        text=text,
        source=given_source or source,
        metadata=metadata,
        dropped=tuple(sorted(set(dropped))),
    )


def none_kept(uri: str, rejected: Counter[str], first: str) -> str:
    """Say of a file without a single usable document what stands in its place.

    Args:
        uri: of the file.
        rejected: its records by the reason.
        first: detail of the first.
    """
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in rejected.most_common())
    return (
        f"pool.inputs: expected documents in {redact(uri)}, found none in {rejected.total():,} records ({reasons}); "
        f"the first: {first}"
    )


def _copy(value: Any) -> Any:
    """Copy a record's objects, out of which fields are taken; lists are shared."""
    return {name: _copy(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _as_text(value: Any) -> Any:
    """Return bytes as the UTF-8 text they hold; anything else as it is."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return Unreadable(f"expected UTF-8, got byte 0x{value[error.start]:02x} at byte {error.start}")


def _given_id(record: Mapping[str, Any], fields: Fields) -> str:
    """Return the id of a record that gives no document, so that a message can name it."""
    return _name(_copy(record), fields.id, []) or ""


def _name(rest: dict[str, Any], path: str, dropped: list[str]) -> str | None:
    """Take a field that names something: a string, a whole number or a UUID; anything else is left where it is."""
    value = _as_text(_look_up(rest, path))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        _take(rest, path)
        return None
    if isinstance(value, str) and not SURROGATES.search(value):
        _take(rest, path)
        return value
    if isinstance(value, (int, uuid.UUID)) and not isinstance(value, bool):
        _take(rest, path)
        return str(value)
    dropped.append(path)
    return None


def _metadata(rest: dict[str, Any], fields: Fields, dropped: list[str]) -> dict[str, Any]:
    """Gather the further fields as JSON values."""
    domain = _name(rest, fields.domain, dropped) if fields.domain else None
    given = _as_text(_look_up(rest, fields.metadata))
    parsed = parse_object(given.encode(errors="replace")) if isinstance(given, str) else given
    if isinstance(parsed, dict):
        _take(rest, fields.metadata)
        rest = rest | parsed
    elif given is None or given == "":
        _take(rest, fields.metadata)
    else:
        dropped.append(fields.metadata)  # kept under its own name, as what it is
    if domain is not None:
        rest = rest | {"domain": domain}
    further: dict[str, Any] = {}
    for name, value in rest.items():
        changed: list[str] = []
        further[_clean(str(name), changed)] = _json_value(value, changed)
        if changed:
            dropped.append(_clean(str(name), []))
    return further


def _look_up(record: Any, path: str) -> Any:
    """Return the value at ``path``: a field of that very name, else a dotted path; None if absent."""
    if path in record:
        return record[path]
    for name in path.split("."):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _take(record: dict[str, Any], path: str) -> Any:
    """Remove and return the value at ``path``: a field of that very name, else a dotted path; None if absent."""
    if path in record:
        return record.pop(path)
    *folders, name = path.split(".")
    holder: Any = record
    for folder in folders:
        holder = holder.get(folder) if isinstance(holder, dict) else None
    return holder.pop(name, None) if isinstance(holder, dict) else None


def _json_value(value: Any, changed: list[str]) -> Any:
    """Return ``value`` in JSON's types; what they cannot hold becomes null or a string, and is noted in ``changed``.

    Dates and times are written in ISO 8601 and decimals as text, as they are; NaN is a data frame's "none".
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _clean(value, changed)
    if isinstance(value, float):
        if not math.isfinite(value):
            changed.append("float")
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_json_value(item, changed) for item in value]
    if isinstance(value, dict):
        return {_clean(str(name), changed): _json_value(item, changed) for name, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    changed.append(type(value).__name__)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.timedelta):
        return f"PT{value.total_seconds():f}".rstrip("0").rstrip(".") + "S"
    return None if isinstance(value, Unreadable) else str(value)


def _clean(text: str, changed: list[str]) -> str:
    """Replace lone surrogates, which no file can hold."""
    if not SURROGATES.search(text):
        return text
    changed.append("surrogate")
    return SURROGATES.sub("\ufffd", text)


def _derive_id(text: str) -> str:
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:ID_HEX_DIGITS]}"
