"""A look at input files before anything is spent: how many records, how large, what a few of them hold.

Owns the estimates that `quad init` and `quad plan` start from. Inputs of up to `WHOLE_BYTES` are read whole, so that
their counts are exact and a file that breaks off is found; of larger ones the first records of some files are read, and
counts follow from the files' sizes. Refuses nothing: what cannot be read is reported with its reason.
"""

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard

from quad_tasks.storage.readers import InputError, Rejection, input_size, read_records

WHOLE_BYTES = 64 * 2**20
"""Inputs up to this size, as stored, are read whole."""
SAMPLED_FILES = 24
SAMPLED_RECORDS = 500
KEPT_RECORDS = 1000
"""Records kept, at least where there are as many: every second, fourth, ... of those read."""


@dataclass
class Sample:
    """What was seen of some input files.

    Attributes:
        files: their number.
        files_read: how many of them were looked into.
        sizes: bytes of each, as stored, but for those that cannot be found.
        documents: records in all of them, estimated unless `exact`.
        record_bytes: of all records as JSON.
        read_bytes: of those read, as JSON.
        kept_bytes: of `records`, as JSON.
        records: some of the records, each `every`-th of those read.
        bad: bad records seen, by reason.
        broken: files that cannot be read to their end, with the reason.
        exact: whether every file was read whole.
    """

    files: int = 0
    files_read: int = 0
    sizes: list[int] = field(default_factory=list)
    documents: int = 0
    record_bytes: int = 0
    read_bytes: int = 0
    kept_bytes: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    exact: bool = True
    every: int = 1


def look_at(uris: Sequence[str]) -> Sample:
    """Look at input files.

    Args:
        uris: paths or URIs, as `readers.expand_inputs` gives them.
    """
    sample = Sample(files=len(uris))
    sizes = {}
    for uri in uris:
        try:
            sizes[uri] = input_size(uri)
        except InputError as error:
            sample.broken[uri] = str(error)
    sample.sizes = list(sizes.values())
    sample.exact = sum(sample.sizes) <= WHOLE_BYTES
    chosen = list(sizes)
    if not sample.exact:
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, SAMPLED_FILES).astype(int))]
    seen = sum(_read(uri, sizes[uri], sample) for uri in chosen)
    sample.files_read = len(chosen)
    sample.read_bytes = sample.record_bytes
    sample.kept_bytes = sum(len(_as_json(record)) for record in sample.records)
    if not sample.exact and seen:
        scale = sum(sample.sizes) / seen
        sample.documents, sample.record_bytes = round(sample.documents * scale), round(sample.record_bytes * scale)
    return sample


def _read(uri: str, size_bytes: int, sample: Sample) -> float:
    """Add one file's records to the sample; return how many of its bytes, as stored, they take."""
    lines: list[bytes] = []
    try:
        for record in read_records(uri):
            if isinstance(record, Rejection):
                sample.bad[record.reason] += 1
                continue
            line = _as_json(record)
            sample.documents += 1
            sample.record_bytes += len(line)
            if sample.documents % sample.every == 0:
                sample.records.append(record)
            if len(sample.records) == 2 * KEPT_RECORDS:
                sample.records, sample.every = sample.records[1::2], 2 * sample.every
            if not sample.exact:
                lines.append(line)
                if len(lines) == SAMPLED_RECORDS:
                    return min(float(size_bytes), _stored(uri, b"\n".join(lines)))
    except InputError as error:
        sample.broken[uri] = str(error)
    return float(size_bytes)


def _as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=str).encode(errors="replace")


def _stored(uri: str, data: bytes) -> float:
    """Tell about how many bytes the lines take in a file of this name."""
    if uri.endswith(".gz"):
        return len(zlib.compress(data))
    if uri.endswith((".zst", ".parquet")):
        return len(zstandard.compress(data))
    return len(data)


def value_at(record: dict[str, Any], path: str) -> Any:
    """Return the value at a field's name or dotted path, as the readers find it; None where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
