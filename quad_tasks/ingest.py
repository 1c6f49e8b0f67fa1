"""Stage: input files become the pool's document tables, one per shard, and every document is accounted for.

A shard's table is named by its file, the file's digest, the field names and the tokenizer, so that a rerun skips what
is there and a changed file never meets its old table. Documents in = kept + set aside, in every shard manifest.
Refuses to guess: a bad document is set aside with its reason, a bad file stops the run with its name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.checkpoints import load_checkpoint_tokenizer
from quad_tasks.compute import spread, step
from quad_tasks.config import ConfigError, RunConfig
from quad_tasks.core.model import encode
from quad_tasks.records import Document, SetAside, Shard
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.readers import Fields, InputError, expand_inputs, fingerprint, input_size, number_documents
from quad_tasks.storage.store import open_store

BLOCK_ROWS = 1024
MIN_TOKENS = 2  # one target
Duplicates = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Rows of a shard with a text, and with an id, that the pool has already."""
SET_ASIDE_SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("id", pa.string()),
    ]
)


@step("scan inputs")
def scan_inputs(config: RunConfig) -> list[Shard]:
    """Find the pool's input files and digest their bytes.

    Raises:
        InputError: a pattern matches nothing, or a file cannot be read.
    """
    return spread(scan_input, [(uri,) for uri in expand_inputs(config.pool.inputs)], "scan inputs", "files")


def scan_input(uri: str) -> Shard:
    """Digest one input file."""
    return Shard(uri, fingerprint(uri), input_size(uri))


@step("ingest shards")
def ingest_shards(config: RunConfig, shards: list[Shard], model_key: str) -> list[str]:
    """Write every shard's documents and return the shards' names, in the order of the inputs.

    Raises:
        ConfigError: no document is left, or the token budget is larger than the pool.
        InputError: a file is unreadable.
    """
    items = [
        (config.workspace, config.pool.name, shard, config.pool.fields.model_dump(), model_key) for shard in shards
    ]
    names = spread(ingest_shard, items, "ingest", "shards")
    store = open_store(config.workspace)
    manifests = [read_manifest(store, shard_manifest_key(config.pool.name, name)) for name in names]
    if not any(m["documents"] for m in manifests):
        reasons = sum((Counter(m["set_aside"]) for m in manifests), Counter[str]())
        raise ConfigError(f"pool.inputs: expected documents, found none to keep (set aside: {dict(reasons)})")
    tokens = sum(m["tokens"] for m in manifests)
    if config.selection.budget_tokens > tokens:
        found = config.selection.budget_tokens
        raise ConfigError(
            f"selection.budget_tokens: expected at most the pool's {tokens} tokens, found {found}: "
            "lower it, or add inputs"
        )
    return names


def ingest_shard(workspace: str, pool: str, shard: Shard, fields: dict[str, str], model_key: str) -> str:
    """Read one input file into the pool's tables and return the shard's name; skip it where that is done.

    Raises:
        InputError: the file is unreadable, or is no longer the one that was looked at.
    """
    store = open_store(workspace)
    tokenizer_sha256 = read_manifest(store, f"{model_key}/manifest.json")["tokenizer"]["sha256"]
    name = shard_name(shard, fields, tokenizer_sha256)
    if store.exists(shard_manifest_key(pool, name)):
        return name
    set_aside: list[SetAside] = []
    counts: Counter[str] = Counter()
    tokenizer = load_checkpoint_tokenizer(workspace, model_key)
    records = number_documents(shard.uri, Fields(**fields))
    batches = _document_batches(records, shard.uri, tokenizer, set_aside, counts)
    rows, documents_sha256 = tables.write_table_stream(
        store, documents_key(pool, name), tables.DOCUMENT_SCHEMA, batches, BLOCK_ROWS
    )
    if fingerprint(shard.uri) != shard.sha256:
        raise InputError(f"{shard.uri}: expected the file that was scanned, found it changed while it was read")
    aside = pa.Table.from_pylist([_set_aside_row(s) for s in set_aside], SET_ASIDE_SCHEMA)
    tables.write_table_stream(store, set_aside_key(pool, name), SET_ASIDE_SCHEMA, aside.to_batches(), BLOCK_ROWS)
    body = {
        "shard": name,
        "input": {"uri": shard.uri, "sha256": shard.sha256, "size_bytes": shard.size_bytes},
        "fields": fields,
        "tokenizer_sha256": tokenizer_sha256,
        "documents_sha256": documents_sha256,
        "documents": rows,
        "tokens": counts["tokens"],
        "bytes": counts["bytes"],
        "set_aside": dict(sorted(Counter(s.reason for s in set_aside).items())),
    }
    write_manifest(store, shard_manifest_key(pool, name), body)
    return name


def shard_name(shard: Shard, fields: dict[str, str], tokenizer_sha256: str) -> str:
    """Name a shard by its file's stem and by all that determines its tables."""
    file = shard.uri.rsplit("/", 1)[-1].split(".", 1)[0]
    stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in file)[:40]
    return f"{stem}-{digest([shard.uri, shard.sha256, fields, tokenizer_sha256])[:12]}"


def documents_key(pool: str, shard: str) -> str:
    """Return the key of a shard's documents."""
    return f"pools/{pool}/documents/{shard}.parquet"


def set_aside_key(pool: str, shard: str) -> str:
    """Return the key of what a shard set aside."""
    return f"pools/{pool}/set_aside/{shard}.parquet"


def shard_manifest_key(pool: str, shard: str) -> str:
    """Return the key of the manifest that commits a shard."""
    return f"pools/{pool}/shards/{shard}.json"


def _document_batches(
    records: Iterator[tuple[int, Document | SetAside]],
    uri: str,
    tokenizer: Any,
    set_aside: list[SetAside],
    counts: Counter[str],
) -> Iterator[pa.RecordBatch]:
    """Tokenize blocks of documents; what cannot be kept goes to `set_aside`, sums go to `counts`."""
    block: list[tuple[int, Document]] = []
    for line, record in records:
        if isinstance(record, SetAside):
            set_aside.append(record)
            continue
        block.append((line, record))
        if len(block) == BLOCK_ROWS:
            yield tokenize_block(block, uri, tokenizer, set_aside, counts)
            block = []
    if block:
        yield tokenize_block(block, uri, tokenizer, set_aside, counts)


def tokenize_block(
    block: list[tuple[int, Document]], uri: str, tokenizer: Any, set_aside: list[SetAside], counts: Counter[str]
) -> pa.RecordBatch:
    """Turn documents and their lines into rows; what is too short goes to `set_aside`, sums go to `counts`."""
    rows = []
    token_ids = encode(tokenizer, [document.text for _, document in block])
    for (line, document), ids in zip(block, token_ids, strict=True):
        if len(ids) < MIN_TOKENS:
            detail = f"expected at least {MIN_TOKENS} tokens, got {len(ids)}"
            set_aside.append(SetAside(uri, line, "too_short", detail, document.id))
            continue
        text = document.text.encode()
        counts["tokens"] += len(ids)
        counts["bytes"] += len(text)
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


def find_duplicates(config: RunConfig, names: list[str]) -> list[Duplicates]:
    """Find documents whose text, or whose id, an earlier document of the pool has already.

    Earlier means: in the order of the shards, then of their rows. Memory is 24 bytes per document.

    Returns:
        For each shard the rows with a duplicate text and the rows with a duplicate id, int64, ascending, disjoint.
    """
    store = open_store(config.workspace)
    text_hashes, id_hashes, sizes = [], [], []
    for name in names:
        rows = 0
        for batch in tables.iter_batches(store, documents_key(config.pool.name, name), ["id", "text_hash"], BLOCK_ROWS):
            rows += batch.num_rows
            text_hashes.append(np.frombuffer(b"".join(batch["text_hash"].to_pylist()), dtype=np.uint64))
            ids = [hashlib.blake2b(i.encode(), digest_size=8).digest() for i in batch["id"].to_pylist()]
            id_hashes.append(np.frombuffer(b"".join(ids), dtype=np.uint64))
        sizes.append(rows)
    same_text = _repeats(np.concatenate(text_hashes).reshape(-1, 2))
    same_id = _repeats(np.concatenate(id_hashes).reshape(-1, 1)) & ~same_text
    bounds = np.cumsum([0, *sizes])
    return [
        (np.flatnonzero(same_text[a:b]).astype(np.int64), np.flatnonzero(same_id[a:b]).astype(np.int64))
        for a, b in pairwise(bounds)
    ]


def _repeats(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mark every row of `values` [N, C] that equals an earlier row."""
    order = np.lexsort(values.T)
    mask = np.zeros(len(values), dtype=bool)
    mask[order[1:]] = (values[order[1:]] == values[order[:-1]]).all(axis=1)
    return mask
