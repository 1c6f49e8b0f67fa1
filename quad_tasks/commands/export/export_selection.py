"""Write a published selection for training, in one of the formats there are (`quad_tasks.commands.export.formats`).

Owns the layout of an export: files in the order of the selection, cut at a size of text; `mixture.json` with each
source's weight; and `export.json`, written last, which makes the export whole. The same selection gives the same bytes.
Refuses a folder that holds anything but an interrupted attempt at the same export.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.commands.export.formats import TOKEN_IDS, ExportedRun, Exporter, ExportForm, json_bytes
from quad_tasks.commands.export.tokens import encode_documents
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.manifests.run import SelectionManifest
from quad_tasks.plugins import load_plugin, plugin_names
from quad_tasks.runtime.checkpoints import load_checkpoint_tokenizer
from quad_tasks.runtime.run import starting_checkpoint
from quad_tasks.stages.selection.publish import read_selection
from quad_tasks.storage.keys import manifest_key, selection_folder, selection_part_key
from quad_tasks.storage.manifest import check_digest
from quad_tasks.storage.store import Store, StoreKeyError, open_store

UNFINISHED = "export.unfinished.json"
"""Stands in a folder from an export's first moment to its last, and tells whose the files there are."""
SHARD_BYTES = 256 * 2**20
UNSTATED = "other"
"""The licence of a card where none is given, by the Hub's identifiers."""
BATCH_ROWS = 256
PIECES_PER_SHARD = 16
"""A file passes the size asked for by one of this many pieces of it, or by one document."""


def export_selection(
    config: RunConfig,
    out: str,
    format: str = "parquet",
    shard_bytes: int = SHARD_BYTES,
    license: str = UNSTATED,
    tokenize: bool = False,
) -> dict[str, Any]:
    """Write a run's published selection somewhere else, ready to train on.

    Args:
        config: the run's configuration.
        out: path or URI of the folder.
        format: name of an exporter: `parquet`; `jsonl.zst`, a line a document as datatrove and Dolma lay out theirs:
            `id`, `text`, `source`, `added` (when the selection was published), `created` (the record's own, where it
            has one), `metadata` with its further fields, `token_count`, and what Quad knows under `quad`; `hf`, Parquet
            beside a dataset card; `mds`, shards that MosaicML's `streaming` reads; `megatron`, pairs of `.bin` and
            `.idx`; or one of an installed package.
        shard_bytes: text bytes, in UTF-8, after which a new file starts.
        license: licence identifier of the card; `hf` only.
        tokenize: write each document's token ids too, of the tokenizer the pool was counted with and ending with its
            end-of-document token: as `input_ids` beside the text (`parquet`, `hf`), as `tokens` in its place (`mds`).
            `megatron` has token ids always.

    Returns:
        What `export.json` holds: run, format, rows, tokens, and each file's name, rows and sha256; with token ids, how
        many were written (`token_ids`) and which of them ends a document (`end_of_document`).

    Raises:
        StoreKeyError: the run has no published selection.
        ConfigError: there is no such format; the folder holds another export or files of somebody else's, or `data/` in
            it other files, which a reader would read too; the format holds no token ids or no licence; the tokenizer
            has no end-of-document token.
        DigestMismatch: a part's bytes are not those published.
    """
    exporter = _find_exporter(format)
    source, target = open_store(config.workspace), open_store(out)
    manifest = _published(source, config.run)
    if license != UNSTATED and not exporter.licensed:
        raise ConfigError(f"--license: expected a format that writes it, as hf does, found {format!r}")
    tokenizer = _tokenizer(source, manifest, format) if tokenize or exporter.tokens == "always" else None
    body = _describe(manifest, format, shard_bytes, license if exporter.licensed else None, tokenizer)
    if target.exists("export.json"):
        return _same_export(target, body, out)
    _claim_folder(target, out, body)
    tables = _shards(source, selection_folder(config.run), manifest, shard_bytes)
    form = ExportForm(config.pool.fields, manifest.created, tokenizer)
    run = ExportedRun(config, manifest, license, tokenizer is not None)
    files, token_ids = _write_files(target, exporter, tables, form, run)
    _refuse_strays(target, out, files)
    target.put("mixture.json", json_bytes({source: entry.model_dump() for source, entry in manifest.mixture.items()}))
    body |= {"token_ids": token_ids} if tokenizer else {}
    target.put("export.json", json_bytes({**body, "files": files}))
    target.delete(UNFINISHED)
    return {**body, "files": files}


def _published(store: Store, run: str) -> SelectionManifest:
    if not store.exists(manifest_key(selection_folder(run))):
        raise StoreKeyError(
            f"run {run!r} in {store.uri}: expected a published selection, found none yet: "
            f"`quad resume {run}` goes on with it"
        )
    return read_selection(store, run)


def _same_export(target: Store, body: dict[str, Any], out: str) -> dict[str, Any]:
    """Return what a finished export holds.

    Raises:
        ConfigError: it is not the one that is asked for, or files of it are gone.
    """
    found = _read_object(target, "export.json")
    if found != {**found, **body} or ("end_of_document" in found) != ("end_of_document" in body):
        raise ConfigError(f"{out}: expected an empty folder or the same export, found another one (export.json)")
    gone = sorted({file["name"] for file in found.get("files", [])} - set(target.list()))
    if gone:
        raise ConfigError(f"{out}: expected the files that its export.json names, found no {gone[0]}: name another")
    return found


def _read_object(target: Store, name: str) -> dict[str, Any]:
    """Read a JSON object; somebody else's file of that name is none with entries."""
    try:
        found = json.loads(target.get(name))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_strays(target: Store, out: str, files: list[dict[str, Any]]) -> None:
    strays = sorted(set(target.list("data/")) - {file["name"] for file in files})
    if strays:
        raise ConfigError(f"{out}: expected only this export's files in data/, found {strays[0]} too: remove it")


def _find_exporter(format: str) -> Exporter:
    if format not in (names := plugin_names("exporters")):
        raise ConfigError(f"--format: expected one of {', '.join(names)}, found {format!r}")
    exporter: Exporter = load_plugin("exporters", format)
    return exporter


def _describe(
    manifest: SelectionManifest, format: str, shard_bytes: int, license: str | None, tokenizer: FastTokenizer | None
) -> dict[str, Any]:
    """Say what an export is of and by: two of the same description are the same bytes."""
    return {
        "run": manifest.run,
        "selection": manifest.uuid,
        "format": format,
        "shard_bytes": shard_bytes,
        "rows": manifest.rows,
        "tokens": manifest.n_tokens,
        "tokenizer": manifest.tokenizer.model_dump(),
        **({"license": license} if license is not None else {}),
        **({"end_of_document": tokenizer.eos_token_id} if tokenizer else {}),
    }


def _write_files(
    target: Store, exporter: Exporter, shards: Iterable[Iterator[pa.Table]], form: ExportForm, run: ExportedRun
) -> tuple[list[dict[str, Any]], int]:
    """Write all shards and what stands beside them; return each file's name, rows and digest, and the token ids."""
    files: list[dict[str, Any]] = []
    entries, token_ids = [], 0
    for number, tables in enumerate(shards):
        counts = {"rows": 0, "token_ids": 0}
        written = exporter.write(target, f"data/part-{number:05d}", _counted(tables, form.tokenizer, counts), form)
        files += [{"name": name, "rows": counts["rows"], "sha256": _sha256(target, name)} for name in written.names]
        entries.append(written.entry)
        token_ids += counts["token_ids"]
    more = exporter.finish(target, entries, run)
    return [*files, *({"name": name, "rows": 0, "sha256": _sha256(target, name)} for name in more)], token_ids


def _claim_folder(target: Store, out: str, body: dict[str, Any]) -> None:
    """Mark an empty folder as this export's before anything else is written to it.

    Raises:
        ConfigError: it holds files that are not of an interrupted attempt at the same export.
    """
    there = target.list()
    if UNFINISHED in there:
        if _read_object(target, UNFINISHED) == json.loads(json_bytes(body)):
            return
        raise ConfigError(f"{out}: expected an empty folder, found another export that was interrupted ({UNFINISHED})")
    if there:
        more = f" and {len(there) - 1:,} more files" if len(there) > 1 else ""
        raise ConfigError(f"{out}: expected an empty folder, found {there[0]}{more}: nothing was written; name another")
    if not target.put_if_absent(UNFINISHED, json_bytes(body)):  # somebody else's export began meanwhile
        _claim_folder(target, out, body)


def _shards(
    store: Store, selection: str, manifest: SelectionManifest, shard_bytes: int
) -> Iterator[Iterator[pa.Table]]:
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


def _batches(store: Store, selection: str, manifest: SelectionManifest) -> Iterator[pa.Table]:
    for part in manifest.parts:
        key = selection_part_key(selection, part.name)
        with store.local_copy(key) as path:
            with path.open("rb") as file:
                check_digest(store, key, expected=part.sha256, got=hashlib.file_digest(file, "sha256").hexdigest())
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


def _tokenizer(store: Store, manifest: SelectionManifest, format: str) -> FastTokenizer:
    if _find_exporter(format).tokens == "never":
        able = (name for name in plugin_names("exporters") if _find_exporter(name).tokens != "never")
        raise ConfigError(f"--tokenize: expected --format {', '.join(able)}, found {format!r}")
    tokenizer = load_checkpoint_tokenizer(store, starting_checkpoint(store, manifest.pool))
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"--tokenize: expected a tokenizer with an end-of-document token (eos_token), found "
            f"{manifest.tokenizer.name!r}, which has none: export text instead"
        )
    return tokenizer


def _counted(tables: Iterable[pa.Table], tokenizer: FastTokenizer | None, counts: dict[str, int]) -> Iterator[pa.Table]:
    """Pass tables on, with token ids where there is a tokenizer, and count what passes."""
    for table in tables:
        counts["rows"] += table.num_rows
        if tokenizer:
            ids = encode_documents(tokenizer, table["text"].to_pylist())
            counts["token_ids"] += sum(len(document) for document in ids)
            table = table.append_column(TOKEN_IDS, pa.array(ids, pa.large_list(pa.int32())))
        yield table


def _sha256(store: Store, key: str) -> str:
    with store.local_copy(key) as path, path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
