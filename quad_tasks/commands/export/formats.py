"""The formats an export may have: Parquet, JSON lines, a folder Hugging Face `datasets` opens, and two kinds of tokens.

Owns what an exporter is, and the product's own: the user's names for id, text, source and metadata, and what Quad knows
of a document beside them. A shard is written in one pass over its documents, through `Store.spool`, so that a file
appears whole or not at all; the same documents give the same bytes.
"""

import html
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.commands.export.tokens import TokenIds, write_mds, write_megatron
from quad_tasks.config.schema import FieldNames, RunConfig
from quad_tasks.manifests.run import SelectionManifest
from quad_tasks.storage.store import Store

ROW_GROUP_ROWS = 1024
ZSTD_LEVEL = 9
OWN_COLUMNS = ("id", "text", "source", "metadata")
QUAD_COLUMNS = ("n_tokens", "arm", "stage", "round", "influence", "scored")
TOKEN_IDS, MDS_TOKENS = "input_ids", "tokens"
"""The names that `transformers` and MosaicML's trainers look for."""
MDS_INDEX = "data/index.json"
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGER_CATEGORIES = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
LARGEST_CATEGORIES = ((10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"))


@dataclass(frozen=True)
class ExportForm:
    """What every file of an export is written by.

    Attributes:
        fields: the user's names of a document's fields.
        published: when the selection was published, in ISO 8601: the only time that may stand in a file.
        tokenizer: where token ids are asked for: tables then have them as `input_ids`.
    """

    fields: FieldNames
    published: str
    tokenizer: FastTokenizer | None = None


@dataclass(frozen=True)
class Written:
    """Keys of the files that one shard became, and what `Exporter.finish` is to know of it."""

    names: Sequence[str]
    entry: Any = None


@dataclass(frozen=True)
class ExportedRun:
    """The run whose selection was exported, for what stands beside its shards; `token_ids`: whether these have any."""

    config: RunConfig
    manifest: SelectionManifest
    license: str
    token_ids: bool = False


@dataclass(frozen=True)
class Exporter:
    """How a published selection is written in one format.

    Attributes:
        write: writes a shard, given the store, its key without an ending (`data/part-00000`), its tables in order, and
            the form. A table has the columns `OWN_COLUMNS`, `metadata` as JSON, `QUAD_COLUMNS`, and `input_ids` where
            the form has a tokenizer.
        tokens: whether the format can hold token ids; `always`: it holds nothing else.
        finish: writes what stands beside the shards, given their entries; returns the keys of what belongs to the data.
        licensed: whether the licence is part of what is written.
    """

    write: Callable[[Store, str, Iterable[pa.Table], ExportForm], Written]
    tokens: Literal["never", "optional", "always"] = "never"
    finish: Callable[[Store, Sequence[Any], ExportedRun], Sequence[str]] = field(default=lambda store, entries, run: [])
    licensed: bool = False


def _write_parquet(store: Store, stem: str, tables: Iterable[pa.Table], form: ExportForm) -> Written:
    name = f"{stem}.parquet"
    with store.spool(name) as path:
        writer = None
        for table in tables:
            named = _rename(table, form.fields)
            writer = writer or pq.ParquetWriter(path, named.schema, compression="zstd")
            writer.write_table(named, row_group_size=ROW_GROUP_ROWS)
        if writer is not None:
            writer.close()
    return Written([name])


def _rename(table: pa.Table, fields: FieldNames) -> pa.Table:
    """Give columns the user's names, and Quad's own the prefix `quad_`."""
    ours = [(f"quad_{name}", table[name]) for name in QUAD_COLUMNS]
    ids = [(TOKEN_IDS, table[TOKEN_IDS])] if TOKEN_IDS in table.column_names else []
    return pa.table(dict([*((name, table[own]) for own, name in _short_names(fields).items()), *ids, *ours]))


def _short_names(fields: FieldNames) -> dict[str, str]:
    """Name a document's own columns: a dotted path gives its last part, or all of it where two end alike."""
    paths = _own_paths(fields)
    short = {name: path.rsplit(".", 1)[-1] for name, path in paths.items()}
    return short if len(set(short.values())) == len(short) else paths


def _own_paths(fields: FieldNames) -> dict[str, str]:
    """Return the paths of a document's own columns; Quad's names for them where one is another's, or stands in it.

    Any may stand in the metadata.
    """
    paths = {name: str(getattr(fields, name)) for name in OWN_COLUMNS}
    holders = [f"{path}." for name, path in paths.items() if name != "metadata"]
    alike = len(set(paths.values())) < len(paths) or any(path.startswith(tuple(holders)) for path in paths.values())
    return dict(zip(OWN_COLUMNS, OWN_COLUMNS, strict=True)) if alike else paths


def _write_lines(store: Store, stem: str, tables: Iterable[pa.Table], form: ExportForm) -> Written:
    """Write a line a document, as datatrove and Dolma lay out theirs."""
    name = f"{stem}.jsonl.zst"
    with store.spool(name) as path, zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(ZSTD_LEVEL)) as file:
        for table in tables:
            for row in table.to_pylist():
                file.write((json.dumps(_line(row, form), ensure_ascii=False) + "\n").encode())
    return Written([name])


def _line(row: dict[str, Any], form: ExportForm) -> dict[str, Any]:
    metadata = json.loads(row["metadata"])
    line: dict[str, Any] = {"added": metadata.pop("added", form.published)}
    if "created" in metadata:
        line["created"] = metadata.pop("created")
    metadata = {"token_count": row["n_tokens"]} | metadata
    metadata["quad"] = {key: row[key] for key in QUAD_COLUMNS}
    paths = _own_paths(form.fields)
    _set(line, paths["metadata"], metadata)  # the others may stand in it
    for key in ("id", "text", "source"):
        _set(line, paths[key], row[key])
    return line


def _set(record: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path, or under that very name where something on the way holds no fields."""
    *parents, last = path.split(".")
    holder: Any = record
    for parent in parents:
        holder = holder.setdefault(parent, {}) if isinstance(holder, dict) else None
    if isinstance(holder, dict):
        holder[last] = value
    else:
        record[path] = value


def _write_mds(store: Store, stem: str, tables: Iterable[pa.Table], form: ExportForm) -> Written:
    names = _short_names(form.fields)
    text = {MDS_TOKENS: "ndarray:int32"} if form.tokenizer else {names["text"]: "str"}
    columns = {names["id"]: "str", names["source"]: "str", names["metadata"]: "json", "quad": "json", **text}
    return Written([f"{stem}.mds"], write_mds(store, f"{stem}.mds", columns, _mds_samples(tables, form)))


def _mds_samples(tables: Iterable[pa.Table], form: ExportForm) -> Iterator[dict[str, Any]]:
    names = _short_names(form.fields)
    for table in tables:
        ids = _token_ids(table) if form.tokenizer else itertools.repeat(None)
        for row, tokens in zip(table.drop_columns(TOKEN_IDS if form.tokenizer else []).to_pylist(), ids, strict=False):
            own = {names[name]: row[name] for name in ("id", "source", "text")}
            quad = {name: row[name] for name in QUAD_COLUMNS}
            yield own | {names["metadata"]: json.loads(row["metadata"]), "quad": quad, MDS_TOKENS: tokens}


def _index_mds(store: Store, entries: Sequence[Any], _run: ExportedRun) -> list[str]:
    store.put(MDS_INDEX, json_bytes({"version": 2, "shards": list(entries)}))
    return [MDS_INDEX]


def _write_megatron(store: Store, stem: str, tables: Iterable[pa.Table], form: ExportForm) -> Written:
    assert form.tokenizer is not None, "megatron holds token ids alone"
    documents = (ids for table in tables for ids in _token_ids(table))
    return Written(write_megatron(store, stem, documents, len(form.tokenizer)))


def _token_ids(table: pa.Table) -> Iterator[TokenIds]:
    for ids in table[TOKEN_IDS]:
        yield ids.values.to_numpy()


def _write_card(store: Store, _entries: Sequence[Any], run: ExportedRun) -> list[str]:
    """Write a dataset card, which is no part of the data."""
    environment = Environment(
        loader=PackageLoader("quad_tasks.commands.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": _plain, "code": _code, "yaml": _yaml}
    manifest = run.manifest
    taken = {name: row for name, row in manifest.mixture.items() if row.tokens}
    card = environment.get_template("dataset_card.md.j2").render(
        config=run.config,
        manifest=manifest,
        license=run.license,
        size=_size_category(manifest.rows),
        taken=taken,
        names=_short_names(run.config.pool.fields),
        token_ids=TOKEN_IDS if run.token_ids else None,
    )
    store.put("README.md", card.encode())
    return []


def _plain(text: str) -> str:
    """Write what comes from the pool as Markdown that shows it as it is: one line, no markup, no HTML."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|~-])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    """Write what comes from the configuration so that a code span in a table holds it."""
    return " ".join(text.split()).replace("`", "'").replace("|", "¦")


def _yaml(text: str) -> str:
    """Write a text as one YAML value."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def _size_category(rows: int) -> str:
    categories = (*SIZE_CATEGORIES, *LARGER_CATEGORIES, *LARGEST_CATEGORIES)
    return next((name for limit, name in categories if rows < limit), "n>1T")


def json_bytes(body: Any) -> bytes:
    """Write JSON as the files beside the data hold it."""
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()


PARQUET = Exporter(_write_parquet, tokens="optional")
LINES = Exporter(_write_lines)
DATASET_FOLDER = Exporter(_write_parquet, tokens="optional", finish=_write_card, licensed=True)
MDS = Exporter(_write_mds, tokens="optional", finish=_index_mds)
MEGATRON = Exporter(_write_megatron, tokens="always")
