"""A look at input files before anything is spent: how many records, how large, what a few of them hold.

Owns the estimates that `quad init` and `quad plan` start from. Inputs of up to `WHOLE_BYTES` are read whole, so that
their counts are exact and a file that breaks off is found; of larger ones the first records of some files are read, and
counts follow from the files' sizes. Refuses nothing: what cannot be read is reported with its reason.
"""

import bz2
import itertools
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zstandard

from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.storage.input_documents import (
    SPAN_BYTES,
    Fields,
    InputError,
    Rejection,
    expand_inputs,
    find_cuts,
    input_size,
    make_document,
    none_kept,
    read_records,
)
from quad_tasks.storage.input_files import open_input, suffix_of

WHOLE_BYTES = 64 * 2**20
"""Inputs up to this size, as stored, are read whole."""
SAMPLED_FILES = 24
SAMPLED_RECORDS = 500
MOST_BAD = 50_000
"""Bad records of a large file that are read before it is taken to hold no good one."""
PROBED_BYTES = 2_000_000
"""Text the probe works on, at most."""
KEPT_RECORDS = 1000
"""Records kept, at least where there are as many: every second, fourth, ... of those read."""
MOST_DOCUMENTS = 10**15
"""Beyond any pool: numbers up to it are exact as floating point."""
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": zlib.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
"""By the ending of a file's name."""
VALUES_ALONE = (".csv", ".tsv", ".arrow")
"""Kinds of files whose records do not each hold their fields' names."""
LISTED_FILES = 2**16
"""Files, and shards, of a larger pool whose sizes are listed, at most: more keep workers no busier."""


@dataclass
class Sample:
    """What was seen of some input files.

    Attributes:
        files: their number.
        files_read: how many of them were looked into.
        sizes: bytes of each, as stored, but for those that cannot be found.
        shards: bytes of the shards they become: of the spans of a large file that was looked into.
        documents: records in all of them, estimated unless `exact`.
        record_bytes: of all records as JSON.
        read_bytes: of those read, as JSON.
        kept_bytes: of `records`, as JSON.
        records: some of the records, each `every`-th of those read.
        names: of the fields of records read.
        bad: bad records seen, by reason.
        broken: files that cannot be read to their end, or hold no usable document, with the reason.
        exact: whether every file was read whole.
    """

    files: int = 0
    files_read: int = 0
    sizes: list[int] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    documents: int = 0
    record_bytes: int = 0
    read_bytes: int = 0
    kept_bytes: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    bad: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)
    exact: bool = True
    every: int = 1


def look_at(uris: Sequence[str], fields: Fields | None = None, whole_bytes: int | None = None) -> Sample:
    """Look at input files.

    Args:
        uris: paths or URIs, as `input_files.expand_inputs` gives them.
        fields: names of the records' fields; a record that gives no document by them is bad. None: any record counts.
        whole_bytes: inputs up to this size, as stored, are read whole; None: `WHOLE_BYTES`.
    """
    sample = Sample(files=len(uris))
    sizes = {}
    for uri in uris:
        try:
            sizes[uri] = input_size(uri)
        except InputError as error:
            sample.broken[uri] = str(error)
    sample.sizes = list(sizes.values())
    sample.exact = sum(sample.sizes) <= (WHOLE_BYTES if whole_bytes is None else whole_bytes)
    chosen = list(sizes) if sample.exact else _spread(list(sizes), SAMPLED_FILES)
    seen = sum(_read(uri, sizes[uri], sample, fields) for uri in chosen)
    sample.files_read, looked_into = len(chosen), set(chosen)
    sample.shards = [
        n for uri, size in sizes.items() for n in (_shard_sizes(uri, size) if uri in looked_into else [size])
    ]
    sample.read_bytes = sample.record_bytes
    sample.kept_bytes = sum(len(_as_json(record)) for record in sample.records)
    if not sample.exact and seen:
        scale = sum(sample.sizes) / seen
        sample.documents, sample.record_bytes = round(sample.documents * scale), round(sample.record_bytes * scale)
    return sample


def _spread(uris: list[str], files: int) -> list[str]:
    """Take this many files at most, from the first to the last at equal distances."""
    return [uris[i] for i in np.unique(np.linspace(0, len(uris) - 1, files).astype(int))]


def _shard_sizes(uri: str, size_bytes: int) -> list[int]:
    """Return the sizes of the shards that a file becomes; one that cannot be read is one."""
    try:
        cuts = find_cuts(uri, SPAN_BYTES)
    except InputError:
        cuts = None
    return [size_bytes] if cuts is None else np.diff([*cuts.starts, size_bytes]).tolist()


def _read(uri: str, size_bytes: int, sample: Sample, fields: Fields | None) -> float:
    """Add one file's records to the sample; return how many of its bytes, as stored, they take.

    A file that cannot be read to its end adds none: a run refuses it, and records before a cut may repeat others.
    """
    read: list[dict[str, Any]] = []
    bad: list[Rejection] = []
    before, n, whole = sample.documents, 0, False
    earlier = replace(sample, records=list(sample.records), names=set(sample.names), bad=Counter(sample.bad))
    try:
        for n, record in enumerate(read_records(uri), 1):
            if isinstance(record, dict):
                sample.names.update(map(str, record))
            usable = _usable(record, fields)
            if isinstance(usable, Rejection):
                sample.bad[usable.reason] += 1
                bad.append(usable)
            else:
                sample.documents += 1
                sample.record_bytes += len(_as_json(usable))
                if sample.documents % sample.every == 0:
                    sample.records.append(usable)
                if len(sample.records) == 2 * KEPT_RECORDS:
                    sample.records, sample.every = sample.records[1::2], 2 * sample.every
            if not sample.exact:
                read += [record] if isinstance(record, dict) else []
                good = n - len(bad)
                if good == SAMPLED_RECORDS or len(bad) >= (SAMPLED_RECORDS if good else MOST_BAD):
                    break
        else:
            read, whole = [], True
    except InputError as error:
        read = []
        vars(sample).update(vars(earlier))
        sample.broken[uri] = str(error)
    if bad and whole and sample.documents == before and fields is not None:
        sample.broken.setdefault(uri, none_kept(uri, Counter(one.reason for one in bad), bad[0].detail))
    if not read:
        return float(size_bytes)
    if suffix_of(uri)[0] == ".parquet":
        with open_input(uri) as file:
            n_rows: int = pq.read_metadata(file).num_rows
        return size_bytes * n / n_rows
    return min(float(size_bytes), _stored(uri, read) * n / len(read))  # a record that is no JSON counts as the others


def _usable(record: dict[str, Any] | Rejection, fields: Fields | None) -> dict[str, Any] | Rejection:
    """Return a record that gives a document by the fields' names, or why it gives none."""
    if isinstance(record, Rejection) or fields is None:
        return record
    made = make_document(record, fields, "")
    return made if isinstance(made, Rejection) else record


def _as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=str).encode(errors="replace")


def _stored(uri: str, records: Sequence[dict[str, Any]]) -> float:
    """Tell about how many bytes records take in a file of this name."""
    kind, ending = suffix_of(uri)
    lines = [
        ",".join(map(str, one.values())).encode(errors="replace") if kind in VALUES_ALONE else _as_json(one)
        for one in records
    ]
    data = b"\n".join([*lines, b""])
    compress = COMPRESSORS.get(ending)
    return len(compress(data) if compress else data)


def look_at_pool(config: RunConfig, files: int | None = None, whole_bytes: int | None = None) -> Sample:
    """Look at the pool's inputs as ingest will read them.

    Args:
        config: the run's.
        files: look at this many of them at most, and take the others to be as large; None: at any number.
        whole_bytes: as in `look_at`.

    Raises:
        ConfigError: there is no document in them.
        InputError: a pattern names no file, or a file cannot be read or holds no document.
    """
    fields = config.pool.fields
    every = expand_inputs(config.pool.inputs)
    uris = every if files is None else _spread(every, files)
    sample = look_at(uris, Fields(**fields.model_dump()), whole_bytes)
    if sample.bad["missing_text"] and not sample.documents:
        known = ", ".join(sorted(sample.names))
        raise ConfigError(
            f"pool.fields.text: expected a field that holds text, found none in {fields.text!r} ({known})"
        )
    if sample.broken:
        raise InputError("\n".join(sample.broken.values()))
    if not sample.records:
        raise ConfigError("pool.inputs: expected records, found none")
    if len(uris) < len(every):
        sample = replace(scale_sample(sample, round(sample.documents * len(every) / len(uris))), files=len(every))
    return sample


def parse_documents(text: str) -> int:
    """Read a number of documents: `1e9`, `1_000_000_000`.

    Raises:
        ConfigError: it is not a whole number above 0.
    """
    try:
        number = float(text)
        found = int(number) if number == int(number) and 0 < number <= MOST_DOCUMENTS else None
    except (ValueError, OverflowError):
        found = None
    if found is None:
        raise ConfigError(f"--documents: expected a whole number above 0, such as 1e9, found {text!r}")
    return found


def scale_sample(sample: Sample, documents: int) -> Sample:
    """Scale a sample up to a larger pool: files and bytes grow in proportion to documents.

    Args:
        sample: of the files at hand.
        documents: of the pool.

    Raises:
        ConfigError: the files have more documents than that.
    """
    if documents < sample.documents:
        raise ConfigError(
            f"--documents: expected at least the {sample.documents:,} of pool.inputs, its sample, found {documents:,}"
        )
    factor = documents / sample.documents
    return replace(
        sample,
        files=round(sample.files * factor),
        sizes=_repeat(sample.sizes, factor),
        shards=_repeat(sample.shards, factor),
        documents=documents,
        record_bytes=round(sample.record_bytes * factor),
        exact=False,
    )


def _repeat(sizes: list[int], factor: float) -> list[int]:
    """List this many times as many sizes, `LISTED_FILES` at most."""
    return list(itertools.islice(itertools.cycle(sizes), min(round(len(sizes) * factor), LISTED_FILES)))


def value_at(record: dict[str, Any], path: str) -> Any:
    """Return the value at a field's name or dotted path, as the readers find it; None where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def sample_texts(sample: Sample, field: str) -> list[str]:
    """Return texts of a sample, about `PROBED_BYTES` of them, in one order for one sample.

    Raises:
        ConfigError: no record has text in the field.
    """
    values = [value_at(record, field) for record in sample.records]
    given = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    texts = [value for value in given if isinstance(value, str) and value.strip()]
    if not texts:
        known = ", ".join(sorted({name for record in sample.records for name in record}))
        raise ConfigError(f"pool.fields.text: expected a field that holds text, found none in {field!r} ({known})")
    order = np.random.default_rng(0).permutation(len(texts))
    taken, size = [], 0
    for i in order:
        if size >= PROBED_BYTES:
            break
        taken.append(texts[i])
        size += len(texts[i].encode())
    return taken
