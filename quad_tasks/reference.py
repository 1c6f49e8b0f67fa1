"""Stage: the reference sets and the held-out domains become tables of their own.

Each reference set is split by document: one part gives the direction, the rest is only ever measured on, unless a
held-out domain stands for the reference. All are small and read whole. A table's column `domain` names a document's
reference set, set by set in the manifest's order, or its held-out domain.
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
ROW_GROUP_ROWS = 64


@step("prepare reference")
def prepare_reference(config: RunConfig) -> str:
    """Write the reference and held-out tables and return their key.

    Raises:
        ConfigError: a set is empty, or `heldout.reference_domain` names no held-out domain.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    sets = config.reference.named_sets()
    patterns = [pattern for one in sets.values() for pattern in one.inputs]
    uris = [*expand_inputs(patterns), *expand_inputs(config.heldout.inputs)]
    contents = spread(fingerprint, [(uri,) for uri in uris], "scan reference", "files")
    settings = [config.reference.model_dump(mode="json"), config.heldout.model_dump(mode="json"), config.seed]
    key = f"references/{digest([uris, contents, settings])[:12]}"
    store = open_store(config.workspace)
    if store.exists(f"{key}/manifest.json"):
        return key
    split = _split_sets(config)
    heldout = _heldout(config)
    body = {
        "inputs": dict(zip(uris, contents, strict=True)),
        "reference": _write(config, f"{key}/reference.parquet", {name: own for name, (own, _) in split.items()})
        | {"sets": [{"name": n, "documents": len(split[n][0]), "weight": one.weight} for n, one in sets.items()]},
        "measured": _write(config, f"{key}/measured.parquet", _measured(config, split, heldout)),
        "heldout": _write(config, f"{key}/heldout.parquet", _by_domain(heldout)),
        "reference_domain": config.heldout.reference_domain,
    }
    write_manifest(store, f"{key}/manifest.json", body)
    return key


def split_reference(config: RunConfig) -> tuple[list[Document], list[Document], list[Document]]:
    """Read the reference and held-out inputs, each in the seeded order.

    Returns:
        The documents of the direction, set by set; those that the reference loss is measured on; those of every
        held-out domain, which `metadata["domain"]` names.

    Raises:
        ConfigError, InputError: as `prepare_reference`.
    """
    split, heldout = _split_sets(config), _heldout(config)
    measured = _measured(config, split, heldout)
    return [d for own, _ in split.values() for d in own], list(chain.from_iterable(measured.values())), heldout


def _split_sets(config: RunConfig) -> dict[str, tuple[list[Document], list[Document]]]:
    """Split each reference set into the documents of the direction and those held out, by its name."""
    split: dict[str, tuple[list[Document], list[Document]]] = {}
    for name, one in config.reference.named_sets().items():
        key = config.reference.set_key(name)
        documents = read_documents_whole(one.inputs, config.reference.fields.model_dump(), key)
        documents.sort(key=lambda d: order_key(config.seed, d.id))
        n = 0
        if config.heldout.reference_domain is None:
            n = max(1, round(len(documents) * config.reference.heldout_share))
            if len(documents) == n:
                raise ConfigError(f"{key}: expected at least 2 documents, found {n}")
        split[name] = documents[n:][: config.reference.max_documents], documents[:n]
    return split


def _measured(
    config: RunConfig, split: dict[str, tuple[list[Document], list[Document]]], heldout: list[Document]
) -> dict[str, list[Document]]:
    """Choose what the reference loss is measured on: what each set holds out, or one held-out domain."""
    domain = config.heldout.reference_domain
    if domain is None:
        return {name: measured for name, (_, measured) in split.items()}
    domains = _by_domain(heldout)
    if domain not in domains:
        raise ConfigError(f"heldout.reference_domain: expected one of {sorted(domains)}, found {domain!r}")
    return {domain: domains[domain]}


def _by_domain(heldout: list[Document]) -> dict[str, list[Document]]:
    domains: dict[str, list[Document]] = {}
    for document in heldout:
        domains.setdefault(str(document.metadata["domain"]), []).append(document)
    return domains


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


def _write(config: RunConfig, key: str, documents: dict[str, list[Document]]) -> dict[str, Any]:
    rows = [{"id": d.id, "text": d.text, "domain": name} for name, part in documents.items() for d in part]
    table = pa.Table.from_pylist(rows, SCHEMA)
    store = open_store(config.workspace)
    n, sha256 = tables.write_table_stream(store, key, SCHEMA, table.to_batches(), ROW_GROUP_ROWS)
    return {"documents": n, "sha256": sha256}
