"""Stage: input files become the pool's document tables, one per shard, and every document is accounted for.

A shard is a file, or a span of a large one, so that workers share it and an interrupted ingest goes on inside it. Its
table is named by its file, the file's digest, the span, the field names and the tokenizer, so that a rerun skips what
is there and a changed file never meets its old table. Documents in = kept + set aside, in every shard manifest.
Refuses to guess: a bad document is set aside with its reason, a bad file stops the run with its name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import pyarrow as pa

from quad_tasks.config.schema import ConfigError, PoolConfig
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.manifests.pool import InputFile, InputSpan, ShardManifest
from quad_tasks.records import Document, SetAside, Shard
from quad_tasks.runtime.checkpoints import load_checkpoint_tokenizer, read_checkpoint_manifest
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.storage import tables
from quad_tasks.storage.errors import redact
from quad_tasks.storage.input_documents import (
    SPAN_BYTES,
    Fields,
    InputError,
    digest_spans,
    expand_inputs,
    find_cuts,
    fingerprint,
    input_size,
    none_kept,
    number_documents,
)
from quad_tasks.storage.keys import documents_key, set_aside_key, shard_manifest_key
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store

BLOCK_ROWS, BLOCK_CHARACTERS = 1024, 2**24
"""Documents, and characters of their texts, that are tokenized at once."""
MIN_TOKENS = 2  # one target
DROPPED = "field dropped: "
SET_ASIDE_RECORDS = 10_000
"""Of one shard: the manifest counts all that is set aside, the table tells of the first this many."""
ASIDE = "set aside: "
"""Starts the names of counts by reason."""
SET_ASIDE_SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("id", pa.string()),
    ]
)


@stage_task("scan inputs")
def scan_inputs(inputs: Sequence[str]) -> list[Shard]:
    """Find the pool's input files, digest their bytes, and cut large ones into spans; return shards in files' order.

    Raises:
        InputError: a pattern matches nothing, or a file cannot be read or changes.
    """
    items = [(uri, SPAN_BYTES) for uri in expand_inputs(inputs)]
    return list(chain.from_iterable(map_tasks(scan_input, items, "scan inputs", "files")))


def scan_input(uri: str, span_bytes: int) -> list[Shard]:
    """Digest one input file, and cut one of more than `span_bytes` into spans where its kind allows it.

    Raises:
        InputError: the file cannot be read, or changes meanwhile.
    """
    size, cuts = input_size(uri), find_cuts(uri, span_bytes)
    if cuts is None:
        return [Shard(uri, fingerprint(uri), size)]
    sha256, spans = digest_spans(uri, cuts)
    if find_cuts(uri, span_bytes) != cuts:
        raise InputError(f"{redact(uri)}: expected a file that stays as it is, found it changed while it was scanned")
    return [Shard(uri, sha256, size, span) for span in spans]


@stage_task("ingest shards")
def ingest_shards(store: Store, pool: PoolConfig, shards: list[Shard], model_key: str, budget_tokens: int) -> list[str]:
    """Write every shard's documents and return the shards' names, in the order of the inputs.

    Args:
        store: the workspace.
        pool: the pool.
        shards: its input files and spans, as `scan_inputs` returns them.
        model_key: key of the checkpoint whose tokenizer counts the tokens.
        budget_tokens: tokens that are to be selected of it.

    Raises:
        ConfigError: no document is left, or the token budget is larger than the pool.
        InputError: a file is unreadable, or holds no usable document.
    """
    items = [(store, pool.name, shard, pool.fields.model_dump(), model_key) for shard in shards]
    names = map_tasks(ingest_shard, items, "ingest", "shards")
    manifests = [read_shard(store, pool.name, name) for name in names]
    for _, of_file in groupby(manifests, key=lambda m: m.input.uri):
        _refuse_empty(store, pool.name, list(of_file))
    if not any(m.documents for m in manifests):
        reasons = sum((Counter(m.set_aside) for m in manifests), Counter[str]())
        raise ConfigError(f"pool.inputs: expected documents, found none to keep (set aside: {dict(reasons)})")
    tokens = sum(m.tokens for m in manifests)
    if budget_tokens > tokens:
        raise ConfigError(
            f"selection.budget_tokens: expected at most the pool's {tokens} tokens, found {budget_tokens}: "
            "lower it, or add inputs"
        )
    return names


def _refuse_empty(store: Store, pool: str, spans: list[ShardManifest]) -> None:
    """Refuse a file that gave no document in any of its spans; one of its spans alone may hold none."""
    rejected = sum((Counter(m.set_aside) for m in spans), Counter[str]())
    if rejected and not any(m.documents for m in spans):
        first = next(m for m in spans if m.set_aside)
        table = read_table(store, set_aside_key(pool, first.shard), sha256=first.set_aside_sha256)
        raise InputError(none_kept(first.input.uri, rejected, table["detail"][0].as_py()))


def ingest_shard(store: Store, pool: str, shard: Shard, fields: dict[str, str], model_key: str) -> str:
    """Read one shard into the pool's tables and return its name; skip it where that is done.

    Raises:
        InputError: the file is unreadable, holds no usable document, or is no longer the one that was looked at.
    """
    tokenizer_sha256 = read_checkpoint_manifest(store, model_key).tokenizer.sha256
    name = shard_name(shard, fields, tokenizer_sha256)
    if store.exists(shard_manifest_key(pool, name)):
        return name
    set_aside: list[SetAside] = []
    counts: Counter[str] = Counter()
    tokenizer = load_checkpoint_tokenizer(store, model_key)
    records = number_documents(shard.uri, Fields(**fields), shard.span)
    batches = _document_batches(records, shard.uri, tokenizer, set_aside, counts)
    rows, documents_sha256 = tables.write_table_stream(
        store, documents_key(pool, name), tables.DOCUMENT_SCHEMA, batches, BLOCK_ROWS
    )
    rejected = _counted_by_name(counts, ASIDE)
    if rows == 0 and set_aside and shard.span is None:
        raise InputError(none_kept(shard.uri, Counter(rejected), set_aside[0].detail))
    if fingerprint(shard.uri, shard.span) != (shard.span or shard).sha256:
        raise InputError(f"{redact(shard.uri)}: expected the file that was scanned, found it changed while it was read")
    aside = pa.Table.from_pylist([_set_aside_row(s) for s in set_aside], SET_ASIDE_SCHEMA)
    aside_key = set_aside_key(pool, name)
    _, aside_sha256 = tables.write_table_stream(store, aside_key, SET_ASIDE_SCHEMA, aside.to_batches(), BLOCK_ROWS)
    manifest = ShardManifest(
        shard=name,
        input=_describe_input(shard),
        fields=fields,
        tokenizer_sha256=tokenizer_sha256,
        documents_sha256=documents_sha256,
        documents_seal=tables.read_seal(store, documents_key(pool, name)),
        set_aside_sha256=aside_sha256,
        documents=rows,
        tokens=counts["tokens"],
        bytes=counts["bytes"],
        set_aside=rejected,
        fields_dropped=_counted_by_name(counts, DROPPED),
    )
    write_manifest(store, shard_manifest_key(pool, name), manifest)
    return name


def _counted_by_name(counts: Counter[str], start: str) -> dict[str, int]:
    """Pick the counts whose names begin with `start`, which is left off."""
    return {name.removeprefix(start): n for name, n in sorted(counts.items()) if name.startswith(start)}


def _describe_input(shard: Shard) -> InputFile:
    """Describe a shard's file, and which part of it the shard is."""
    file = {"uri": shard.uri, "sha256": shard.sha256, "size_bytes": shard.size_bytes}
    span = shard.span
    return InputSpan(**file, start=span.start, end=span.end, before=span.before) if span else InputFile(**file)


def read_shard(store: Store, pool: str, name: str) -> ShardManifest:
    """Read the manifest of one of the pool's shards."""
    return read_manifest(ShardManifest, store, shard_manifest_key(pool, name))


def iter_documents(
    store: Store, pool: str, name: str, columns: Sequence[str], batch_rows: int = BLOCK_ROWS
) -> Iterator[pa.RecordBatch]:
    """Read columns of a shard's documents in order, held against the shard's manifest."""
    seal = read_shard(store, pool, name).documents_seal
    yield from tables.iter_batches(store, documents_key(pool, name), columns, batch_rows, seal)


def shard_name(shard: Shard, fields: dict[str, str], tokenizer_sha256: str) -> str:
    """Name a shard by its file's stem and by all that determines its tables."""
    file = shard.uri.rsplit("/", 1)[-1].split(".", 1)[0]
    stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in file)[:40]
    return f"{stem}-{digest([*identify(shard), fields, tokenizer_sha256])[:12]}"


def identify(shard: Shard) -> list[str | int]:
    """Return what tells a shard's contents from any other's: its file, the file's digest, and the span."""
    return [shard.uri, shard.sha256, *([shard.span.start, shard.span.end] if shard.span else [])]


def _document_batches(
    records: Iterator[tuple[int, Document | SetAside]],
    uri: str,
    tokenizer: Any,
    set_aside: list[SetAside],
    counts: Counter[str],
) -> Iterator[pa.RecordBatch]:
    """Tokenize blocks of documents; what cannot be kept goes to `set_aside`, sums go to `counts`."""
    block: list[tuple[int, Document]] = []
    characters = 0
    for line, record in records:
        if isinstance(record, SetAside):
            _put_aside(record, set_aside, counts)
            continue
        block.append((line, record))
        characters += len(record.text)
        if len(block) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield tokenize_block(block, uri, tokenizer, set_aside, counts)
            block, characters = [], 0
    if block:
        yield tokenize_block(block, uri, tokenizer, set_aside, counts)


def _put_aside(record: SetAside, set_aside: list[SetAside], counts: Counter[str]) -> None:
    """Count what is set aside by its reason, and keep the first `SET_ASIDE_RECORDS` for people to look at."""
    counts[f"{ASIDE}{record.reason}"] += 1
    if len(set_aside) < SET_ASIDE_RECORDS:
        set_aside.append(record)


def tokenize_block(
    block: list[tuple[int, Document]], uri: str, tokenizer: Any, set_aside: list[SetAside], counts: Counter[str]
) -> pa.RecordBatch:
    """Turn documents and their lines into rows; what is too short goes to `set_aside`, sums go to `counts`."""
    rows = []
    token_ids = encode(tokenizer, [document.text for _, document in block])
    for (line, document), ids in zip(block, token_ids, strict=True):
        if len(ids) < MIN_TOKENS:
            detail = f"expected at least {MIN_TOKENS} tokens, got {len(ids)}"
            _put_aside(SetAside(uri, line, "too_short", detail, document.id), set_aside, counts)
            continue
        text = document.text.encode()
        counts["tokens"] += len(ids)
        counts["bytes"] += len(text)
        counts.update(f"{DROPPED}{name}" for name in document.dropped)
        rows.append(
            {
                "id": document.id,
                "text": document.text,
                "source": document.source,
                "metadata": json.dumps(dict(document.metadata), sort_keys=True, ensure_ascii=False),
                "n_tokens": len(ids),
                "n_bytes": len(text),
                "text_hash": hashlib.blake2b(text, digest_size=16).digest(),
                "line": line,
            }
        )
    return pa.RecordBatch.from_pylist(rows, tables.DOCUMENT_SCHEMA)


def _set_aside_row(item: SetAside) -> dict[str, Any]:
    return {"input": item.input, "line": item.line, "reason": item.reason, "detail": item.detail, "id": item.id}
