"""A published selection, written for training: Parquet, JSON lines, or a folder Hugging Face `datasets` opens.

Owns the layout of an export: files in the order of the selection, cut at a size of text; the user's own names for id,
text, source and metadata; what Quad knows of a document beside them; `mixture.json` with each source's weight; and
`export.json`, written last, which makes the export whole. The same selection gives the same bytes. Refuses to write
over another export.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from jinja2 import Environment, PackageLoader, StrictUndefined

from quad_tasks.config import ConfigError, FieldNames, RunConfig
from quad_tasks.storage.manifest import check_digest, read_manifest
from quad_tasks.storage.store import Store, StoreKeyError, open_store

FORMATS = ("parquet", "jsonl.zst", "hf")
SHARD_BYTES = 256 * 2**20
BATCH_ROWS = 256
PIECES_PER_SHARD = 16
"""A file passes the size asked for by one of so many pieces of it, or by one document."""
ROW_GROUP_ROWS = 1024
ZSTD_LEVEL = 9
OWN_COLUMNS = ("id", "text", "source", "metadata")
QUAD_COLUMNS = ("n_tokens", "arm", "stage", "round", "influence", "scored")
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGER_CATEGORIES = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))


def export_selection(
    config: RunConfig, out: str, format: str = "parquet", shard_bytes: int = SHARD_BYTES, license: str = "other"
) -> dict[str, Any]:
    """Write a run's published selection somewhere else, ready to train on.

    Args:
        config: the run's configuration.
        out: path or URI of the folder.
        format: `parquet`; `jsonl.zst`, a line a document as datatrove and Dolma lay out theirs: `id`, `text`,
            `source`, `added` (when the selection was published), `created` (the record's own, where it has one),
            `metadata` with its further fields, `token_count`, and what Quad knows under `quad`; `hf`, Parquet beside a
            dataset card.
        shard_bytes: text bytes, in UTF-8, after which a new file starts.
        license: licence identifier of the card; `hf` only.

    Returns:
        What `export.json` holds: run, format, rows, tokens, and each file's name, rows and sha256.

    Raises:
        StoreKeyError: the run has no published selection.
        ConfigError: the folder holds another export, or `data/` in it other files, which a reader would read too.
        DigestMismatch: a part's bytes are not those published.
    """
    source, target = open_store(config.workspace), open_store(out)
    selection = f"runs/{config.run}/selection"
    if not source.exists(f"{selection}/manifest.json"):
        raise StoreKeyError(
            f"run {config.run!r} in {source.uri}: expected a published selection, found none yet: "
            f"`quad resume {config.run}` goes on with it"
        )
    manifest = read_manifest(source, f"{selection}/manifest.json")
    body: dict[str, Any] = {
        "run": config.run,
        "selection": manifest["uuid"],
        "format": format,
        "shard_bytes": shard_bytes,
        "rows": manifest["rows"],
        "tokens": manifest["n_tokens"],
        "tokenizer": manifest["tokenizer"],
        **({"license": license} if format == "hf" else {}),
    }
    if target.exists("export.json"):
        found = json.loads(target.get("export.json"))
        if any(found.get(key) != value for key, value in body.items()):
            raise ConfigError(f"{out}: expected an empty folder or the same export, found another one (export.json)")
        return dict(found)
    suffix = "jsonl.zst" if format == "jsonl.zst" else "parquet"
    files = []
    for number, tables in enumerate(_shards(source, selection, manifest, shard_bytes)):
        name = f"data/part-{number:05d}.{suffix}"
        if suffix == "parquet":
            rows = _write_parquet(target, name, tables, config)
        else:
            rows = _write_lines(target, name, tables, config, manifest["volatile"]["created"])
        files.append({"name": name, "rows": rows, "sha256": hashlib.sha256(target.get(name)).hexdigest()})
    strays = sorted(set(target.list("data/")) - {file["name"] for file in files})
    if strays:
        raise ConfigError(f"{out}: expected only this export's files in data/, found {strays[0]} too: remove it")
    target.put("mixture.json", _json(manifest["mixture"]))
    if format == "hf":
        target.put("README.md", _card(config, manifest, license).encode())
    target.put("export.json", _json({**body, "files": files}))
    return {**body, "files": files}


def _shards(store: Store, selection: str, manifest: dict[str, Any], shard_bytes: int) -> Iterator[Iterator[pa.Table]]:
    """Cut the selection's rows into files: each an iterator to be used up before the next is asked for."""
    batches = (
        piece
        for batch in _batches(store, selection, manifest)
        for piece in _pieces(batch, shard_bytes // PIECES_PER_SHARD)
    )
    first = next(batches, None)
    while first is not None:
        state: dict[str, pa.Table | None] = {"next": None}
        yield _one_shard(first, batches, shard_bytes, state)
        first = state["next"]


def _one_shard(
    first: pa.Table, batches: Iterator[pa.Table], shard_bytes: int, state: dict[str, pa.Table | None]
) -> Iterator[pa.Table]:
    size, table = 0, first
    while True:
        yield table
        size += sum(len(text.encode()) for text in table["text"].to_pylist())
        following = next(batches, None)
        if following is None or size >= shard_bytes:
            state["next"] = following
            return
        table = following


def _batches(store: Store, selection: str, manifest: dict[str, Any]) -> Iterator[pa.Table]:
    for part in manifest["parts"]:
        key = f"{selection}/{part['name']}"
        with store.local_copy(key) as path:
            with path.open("rb") as file:
                check_digest(store, key, expected=part["sha256"], got=hashlib.file_digest(file, "sha256").hexdigest())
            for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
                yield pa.Table.from_batches([batch])


def _pieces(table: pa.Table, most_bytes: int) -> Iterator[pa.Table]:
    """Cut a table where the text of a piece passes a size, so that a file ends near the size asked for."""
    start, size = 0, 0
    for row, text in enumerate(table["text"].to_pylist()):
        size += len(text.encode())
        if size >= most_bytes:
            yield table.slice(start, row + 1 - start)
            start, size = row + 1, 0
    if start < table.num_rows:
        yield table.slice(start)


def _write_parquet(store: Store, name: str, tables: Iterable[pa.Table], config: RunConfig) -> int:
    rows = 0
    with store.spool(name) as path:
        writer = None
        for table in tables:
            named = _rename(table, config.pool.fields)
            writer = writer or pq.ParquetWriter(path, named.schema, compression="zstd")
            writer.write_table(named, row_group_size=ROW_GROUP_ROWS)
            rows += named.num_rows
        if writer is not None:
            writer.close()
    return rows


def _rename(table: pa.Table, fields: FieldNames) -> pa.Table:
    """Give columns the user's names, and Quad's own the prefix `quad_`.

    A dotted path gives its last part, or all of it where two end alike.
    """
    paths = [getattr(fields, name) for name in OWN_COLUMNS]
    short = [path.rsplit(".", 1)[-1] for path in paths]
    names = short if len(set(short)) == len(short) else paths
    ours = [(f"quad_{name}", table[name]) for name in QUAD_COLUMNS]
    return pa.table(dict([*zip(names, (table[name] for name in OWN_COLUMNS), strict=True), *ours]))


def _write_lines(store: Store, name: str, tables: Iterable[pa.Table], config: RunConfig, published: str) -> int:
    rows, fields = 0, config.pool.fields
    with store.spool(name) as path, zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(ZSTD_LEVEL)) as file:
        for table in tables:
            for row in table.to_pylist():
                metadata = json.loads(row["metadata"])
                line: dict[str, Any] = {"added": metadata.pop("added", published)}
                if "created" in metadata:
                    line["created"] = metadata.pop("created")
                metadata = {"token_count": row["n_tokens"]} | metadata
                metadata["quad"] = {key: row[key] for key in QUAD_COLUMNS}
                for key in ("id", "text", "source"):
                    _set(line, getattr(fields, key), row[key])
                _set(line, fields.metadata, metadata)
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            rows += table.num_rows
    return rows


def _set(record: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        record = record.setdefault(parent, {})
    record[last] = value


def _card(config: RunConfig, manifest: dict[str, Any], license: str) -> str:
    environment = Environment(
        loader=PackageLoader("quad_tasks", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    taken = {name: row for name, row in manifest["mixture"].items() if row["tokens"]}
    return environment.get_template("dataset_card.md.j2").render(
        config=config, manifest=manifest, license=license, size=_size_category(manifest["rows"]), taken=taken
    )


def _size_category(rows: int) -> str:
    return next((name for limit, name in (*SIZE_CATEGORIES, *LARGER_CATEGORIES) if rows < limit), "n>1T")


def _json(body: Any) -> bytes:
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()
