"""Stage: the reference sets and the held-out domains become tables of their own.

Each reference set is split by document: one part gives the direction, the rest is only ever measured on, unless a
held-out domain stands for the reference. A document of the direction that holds text of a measured one is left out and
counted: the direction would lead to what it is measured on. All are small and read whole. A table's column `domain`
names a document's reference set, set by set in the manifest's order, or its held-out domain.
"""

from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from quad_tasks.config.schema import ConfigError, HeldoutConfig, ReferenceConfig
from quad_tasks.core.random_order import order_key
from quad_tasks.core.selection.overlap import find_overlap, index_shingles
from quad_tasks.manifests.influence import ReferenceManifest, ReferenceSet, ReferenceTable, TableInfo
from quad_tasks.records import Document, SetAside
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.storage import tables
from quad_tasks.storage.input_documents import Fields, expand_inputs, fingerprint, read_documents
from quad_tasks.storage.keys import manifest_key, reference_folder, reference_table_key
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.store import Store

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("domain", pa.string())])
ROW_GROUP_ROWS = 64


@stage_task("prepare reference")
def prepare_reference(store: Store, reference: ReferenceConfig, heldout: HeldoutConfig, seed: int) -> str:
    """Write the reference and held-out tables and return their key.

    Raises:
        ConfigError: a set is empty, all of it holds measured text, or `heldout.reference_domain` names no held-out
            domain.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    sets = reference.named_sets()
    patterns = [pattern for one in sets.values() for pattern in one.inputs]
    uris = [*expand_inputs(patterns), *expand_inputs(heldout.inputs)]
    contents = map_tasks(fingerprint, [(uri,) for uri in uris], "scan reference", "files")
    settings = [reference.model_dump(mode="json"), heldout.model_dump(mode="json"), seed]
    key = reference_folder(digest([uris, contents, settings]))
    if store.exists(manifest_key(key)):
        return key
    split = split_by_set(reference, heldout, seed)
    own = _write(store, reference_table_key(key, "reference"), split.direction)
    described = [ReferenceSet(name=n, documents=len(split.direction[n]), weight=one.weight) for n, one in sets.items()]
    manifest = ReferenceManifest(
        inputs=dict(zip(uris, contents, strict=True)),
        reference=ReferenceTable(documents=own.documents, sha256=own.sha256, sets=tuple(described)),
        measured=_write(store, reference_table_key(key, "measured"), split.measured),
        heldout=_write(store, reference_table_key(key, "heldout"), split.domains),
        reference_domain=heldout.reference_domain,
        overlapping=split.overlapping,
    )
    write_manifest(store, manifest_key(key), manifest)
    return key


def split_reference(
    reference: ReferenceConfig, heldout: HeldoutConfig, seed: int
) -> tuple[list[Document], list[Document], list[Document]]:
    """Read the reference and held-out inputs, each in the seeded order.

    Returns:
        The documents of the direction, set by set; those that the reference loss is measured on; those of every
        held-out domain, which `metadata["domain"]` names.

    Raises:
        ConfigError, InputError: as `prepare_reference`.
    """
    split = split_by_set(reference, heldout, seed)
    direction, measured, others = (
        list(chain.from_iterable(part.values())) for part in (split.direction, split.measured, split.domains)
    )
    return direction, measured, others


class ReferenceSplit(NamedTuple):
    """Documents of the direction, measured ones and held-out ones, by set or domain.

    `overlapping` counts what is left out of the direction because it holds measured text.
    """

    direction: dict[str, list[Document]]
    measured: dict[str, list[Document]]
    domains: dict[str, list[Document]]
    overlapping: int


def split_by_set(reference: ReferenceConfig, heldout: HeldoutConfig, seed: int) -> ReferenceSplit:
    """Read and split the inputs; no document of the direction holds measured text.

    Raises:
        ConfigError, InputError: as `prepare_reference`.
    """
    sets = _split_sets(reference, _keeps_all(heldout), seed)
    domains = _by_domain(_read_heldout(heldout, seed))
    measured = _measured(heldout, sets, domains)
    direction, overlapping = {}, 0
    for name, (own, _) in sets.items():
        clean = _without_overlap(own, measured, heldout.overlap_words)
        if not clean:
            raise ConfigError(
                f"{reference.set_key(name)}: expected documents for the direction, found none: all {len(own)} hold "
                "text that is measured (heldout.overlap_words)"
            )
        direction[name] = clean[: reference.max_documents]
        overlapping += len(own) - len(clean)
    return ReferenceSplit(direction, measured, domains, overlapping)


def _without_overlap(
    documents: list[Document], measured: dict[str, list[Document]], words: int | None
) -> list[Document]:
    """Keep the documents that hold no measured text; all where it is not looked for."""
    if words is None:
        return documents
    index = index_shingles([d.text for part in measured.values() for d in part], words)
    return [document for document in documents if find_overlap(index, document.text) is None]


def _keeps_all(heldout: HeldoutConfig) -> bool:
    """Say whether a held-out domain stands for the reference, so that no set holds a part of its own out."""
    return heldout.reference_domain is not None


def _split_sets(
    reference: ReferenceConfig, keeps_all: bool, seed: int
) -> dict[str, tuple[list[Document], list[Document]]]:
    """Split each reference set into the documents for the direction and those held out, by its name."""
    split: dict[str, tuple[list[Document], list[Document]]] = {}
    for name, one in reference.named_sets().items():
        key = reference.set_key(name)
        documents = read_documents_whole(one.inputs, reference.fields.model_dump(), key)
        documents.sort(key=lambda d: order_key(seed, d.id))
        n = 0
        if not keeps_all:
            n = max(1, round(len(documents) * reference.heldout_share))
            if len(documents) < 2:
                raise ConfigError(f"{key}: expected at least 2 documents, found {len(documents)}")
            if len(documents) == n:
                raise ConfigError(
                    f"reference.heldout_share: expected a share that leaves documents for the direction, found "
                    f"{reference.heldout_share}, which holds out all {n} documents of {key}"
                )
        split[name] = documents[n:], documents[:n]
    return split


def _measured(
    heldout: HeldoutConfig,
    split: dict[str, tuple[list[Document], list[Document]]],
    domains: dict[str, list[Document]],
) -> dict[str, list[Document]]:
    """Choose what the reference loss is measured on: what each set holds out, or one held-out domain."""
    domain = heldout.reference_domain
    if domain is None:
        return {name: measured for name, (_, measured) in split.items()}
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


def _read_heldout(heldout: HeldoutConfig, seed: int) -> list[Document]:
    """Read up to `documents_per_domain` random documents of each held-out domain; a file is a domain by default."""
    if not heldout.inputs:
        return []
    fields = Fields(**heldout.fields.model_dump())
    chosen: list[Document] = []
    by_domain: dict[str, list[Document]] = {}
    for uri in expand_inputs(heldout.inputs):
        stem = uri.rsplit("/", 1)[-1].split(".", 1)[0]
        for record in read_documents(uri, fields):
            if isinstance(record, Document):
                domain = str(record.metadata.get("domain", stem))
                metadata = {**record.metadata, "domain": domain}
                by_domain.setdefault(domain, []).append(Document(record.id, record.text, record.source, metadata))
    for _, documents in sorted(by_domain.items()):
        documents.sort(key=lambda d: order_key(seed, d.id))
        chosen += documents[: heldout.documents_per_domain]
    if not chosen:
        raise ConfigError("heldout.inputs: expected documents, found none")
    return chosen


def _write(store: Store, key: str, documents: dict[str, list[Document]]) -> TableInfo:
    rows = [{"id": d.id, "text": d.text, "domain": name} for name, part in documents.items() for d in part]
    table = pa.Table.from_pylist(rows, SCHEMA)
    n, sha256 = tables.write_table_stream(store, key, SCHEMA, table.to_batches(), ROW_GROUP_ROWS)
    return TableInfo(documents=n, sha256=sha256)
