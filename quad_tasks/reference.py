"""Stage: the reference set and the held-out domains become tables of their own.

The reference set is split by document: one part gives the direction, the rest is only ever measured on, unless a
held-out domain stands for the reference. Both sets are small and read whole.
"""

from itertools import chain
from typing import Any

import pyarrow as pa

from quad_tasks.compute import spread, step
from quad_tasks.config import ConfigError, RunConfig
from quad_tasks.core.order import order_key
from quad_tasks.records import Document, SetAside
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.readers import Fields, expand_inputs, fingerprint, read_documents
from quad_tasks.storage.store import open_store

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("domain", pa.string())])
REFERENCE_DOMAIN = "reference"
ROW_GROUP_ROWS = 64


@step("prepare reference")
def prepare_reference(config: RunConfig) -> str:
    """Write the reference and held-out tables and return their key.

    Raises:
        ConfigError: a set is empty, or `heldout.reference_domain` names no held-out domain.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    uris = [*expand_inputs(config.reference.inputs), *expand_inputs(config.heldout.inputs)]
    contents = spread(fingerprint, [(uri,) for uri in uris], "scan reference", "files")
    settings = [config.reference.model_dump(mode="json"), config.heldout.model_dump(mode="json"), config.seed]
    key = f"references/{digest([uris, contents, settings])[:12]}"
    store = open_store(config.workspace)
    if store.exists(f"{key}/manifest.json"):
        return key
    reference, measured, heldout = split_reference(config)
    body = {
        "inputs": dict(zip(uris, contents, strict=True)),
        "reference": _write(config, f"{key}/reference.parquet", reference, REFERENCE_DOMAIN),
        "measured": _write(config, f"{key}/measured.parquet", measured, REFERENCE_DOMAIN),
        "heldout": _write(config, f"{key}/heldout.parquet", heldout, None),
        "reference_domain": config.heldout.reference_domain,
    }
    write_manifest(store, f"{key}/manifest.json", body)
    return key


def split_reference(config: RunConfig) -> tuple[list[Document], list[Document], list[Document]]:
    """Read the reference and held-out inputs, each in the seeded order.

    Returns:
        The documents of the direction; those that the reference loss is measured on; those of every held-out domain,
        which `metadata["domain"]` names.

    Raises:
        ConfigError, InputError: as `prepare_reference`.
    """
    reference = read_documents_whole(config.reference.inputs, config.reference.fields.model_dump(), "reference.inputs")
    reference.sort(key=lambda d: order_key(config.seed, d.id))
    heldout = _heldout(config)
    if config.heldout.reference_domain is None:
        n = max(1, round(len(reference) * config.reference.heldout_share))
        measured, reference = reference[:n], reference[n:]
        if not reference:
            raise ConfigError(f"reference.inputs: expected at least 2 documents, found {len(measured)}")
    else:
        measured = [d for d in heldout if d.metadata["domain"] == config.heldout.reference_domain]
        if not measured:
            known = sorted({str(d.metadata["domain"]) for d in heldout})
            raise ConfigError(
                f"heldout.reference_domain: expected one of {known}, found {config.heldout.reference_domain!r}"
            )
    return reference[: config.reference.max_documents], measured, heldout


def read_documents_whole(inputs: tuple[str, ...], fields: dict[str, str], key: str) -> list[Document]:
    """Read small inputs whole; what the readers set aside is left out.

    Raises:
        ConfigError: nothing is left; the message names the config key and the first bad line.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    records = list(chain.from_iterable(read_documents(uri, Fields(**fields)) for uri in expand_inputs(inputs)))
    documents = [r for r in records if isinstance(r, Document)]
    if not documents:
        first = next((f" ({r.input}:{r.line}: {r.detail})" for r in records if isinstance(r, SetAside)), "")
        raise ConfigError(f"{key}: expected documents, found none{first}")
    return documents


def _heldout(config: RunConfig) -> list[Document]:
    """Read up to `documents_per_domain` random documents of each held-out domain; a file is a domain by default."""
    if not config.heldout.inputs:
        return []
    fields = Fields(**config.heldout.fields.model_dump())
    chosen: list[Document] = []
    by_domain: dict[str, list[Document]] = {}
    for uri in expand_inputs(config.heldout.inputs):
        stem = uri.rsplit("/", 1)[-1].split(".", 1)[0]
        for record in read_documents(uri, fields):
            if isinstance(record, Document):
                domain = str(record.metadata.get("domain", stem))
                metadata = {**record.metadata, "domain": domain}
                by_domain.setdefault(domain, []).append(Document(record.id, record.text, record.source, metadata))
    for _, documents in sorted(by_domain.items()):
        documents.sort(key=lambda d: order_key(config.seed, d.id))
        chosen += documents[: config.heldout.documents_per_domain]
    if not chosen:
        raise ConfigError("heldout.inputs: expected documents, found none")
    return chosen


def _write(config: RunConfig, key: str, documents: list[Document], domain: str | None) -> dict[str, Any]:
    rows = [{"id": d.id, "text": d.text, "domain": domain or d.metadata["domain"]} for d in documents]
    table = pa.Table.from_pylist(rows, SCHEMA)
    store = open_store(config.workspace)
    n, sha256 = tables.write_table_stream(store, key, SCHEMA, table.to_batches(), ROW_GROUP_ROWS)
    return {"documents": n, "sha256": sha256}
