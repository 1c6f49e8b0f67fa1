"""Sample a pool for a testbed: its size, the drawn texts, and the held-out texts measured beside them.

Owns sizes and the draw of the sample. A configuration names the inputs; without one they are the demo's corpus. A pool
document that holds held-out text is left out, as in a run. Refuses several reference sets: a testbed has one direction.
"""

import heapq
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from quad_tasks.config.schema import ConfigError, HeldoutConfig, PoolConfig, ReferenceConfig, RunConfig, SelectionConfig
from quad_tasks.core.blocks import Attention
from quad_tasks.core.random_order import order_key
from quad_tasks.core.selection.overlap import find_overlap, index_shingles
from quad_tasks.demo_corpus import build_corpus
from quad_tasks.records import Document
from quad_tasks.runtime.progress import notice
from quad_tasks.stages.influence.prepare_reference import split_reference
from quad_tasks.storage.input_documents import Fields, expand_inputs, read_documents

KINDS: dict[str, Attention] = {"joint": "joint", "split": "split", "mlp": "none"}
"""Kinds of curvature, and the attention blocks each tracks."""
SCORES = (*KINDS, "identity")
DRAW = 2
"""Version of how texts are drawn, in a testbed's key; since 2 no pool document holds held-out text."""


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a testbed.

    Attributes:
        documents: documents sampled from the pool.
        reference_documents: reference documents that the direction is made from.
        measured_documents: held-out documents that the reference loss is measured on.
        documents_per_domain: held-out documents of each other domain.
        factor_documents: documents that the EK-FAC factors are fitted on.
        trained_documents: documents that the checkpoint is trained on, the first of the sample.
        epochs: passes over them.
        window_tokens: most tokens of a document; the rest is cut off.
        batch_tokens: tokens of a scoring batch; a training step takes twice as many.
        vocabulary: size of the tokenizer's vocabulary.
        width: the Llama's hidden size.
        layers: the Llama's layers.
        heads: heads of its attention.
        arms: clusters of the documents.
        budget_tokens: tokens of a selection at most.
        seeds: repeats: selections and trainings in one testbed, or testbeds, as an experiment says.
        passage_characters: length of the passages that the pool's texts are cut into before sampling; None: uncut.
        kinds: directions that documents are scored along (`SCORES`); None: all.
    """

    documents: int = 16_000
    reference_documents: int = 400
    measured_documents: int = 200
    documents_per_domain: int = 24
    factor_documents: int = 768
    trained_documents: int = 6_400
    epochs: int = 1
    window_tokens: int = 128
    batch_tokens: int = 1024
    vocabulary: int = 2048
    width: int = 128
    layers: int = 3
    heads: int = 4
    arms: int = 100
    budget_tokens: int = 120_000
    seeds: int = 5
    passage_characters: int | None = None
    kinds: tuple[str, ...] | None = None


QUICK = Size(
    documents=1_000,
    reference_documents=100,
    measured_documents=60,
    documents_per_domain=8,
    factor_documents=128,
    trained_documents=800,
    layers=2,
    width=96,
    arms=30,
    budget_tokens=10_000,
    seeds=3,
    kinds=("joint", "identity"),
)
"""Minutes on two cores; of the curvatures only what selections rank by."""


@dataclass(frozen=True, slots=True)
class Texts:
    """A sample of a pool and what is measured beside it.

    Attributes:
        pool: texts of the sample.
        source: where each comes from.
        reference: texts that the direction is made from.
        measured: held-out texts that the reference loss is measured on.
        others: held-out texts of each other domain.
        overlapping: documents of the pool left out, since they hold text of `measured` or `others`.
    """

    pool: list[str]
    source: list[str]
    reference: list[str]
    measured: list[str]
    others: dict[str, list[str]]
    overlapping: int = 0


def read_size(body: Mapping[str, Any]) -> Size:
    """Read a size back from JSON."""
    return Size(**{**body, "kinds": tuple(body["kinds"]) if body.get("kinds") else None})


def scored_kinds(size: Size) -> tuple[str, ...]:
    """List the kinds of direction documents are scored along."""
    return size.kinds or SCORES


def demo_config(directory: Path) -> RunConfig:
    """Write the demo's corpus and configure its files as inputs."""
    paths = build_corpus(directory)
    return RunConfig(
        pool=PoolConfig(inputs=tuple(map(str, paths["pool"]))),
        reference=ReferenceConfig(inputs=tuple(map(str, paths["reference"])), heldout_share=0.3),
        heldout=HeldoutConfig(inputs=tuple(map(str, paths["heldout"]))),
        selection=SelectionConfig(budget_tokens=1),
    )


def read_inputs(config: RunConfig, size: Size) -> Texts:
    """Draw a uniform sample of the pool's distinct texts; read the reference's and other domains' documents.

    Raises:
        ConfigError: several reference sets; or a set is empty, or the pool once held-out text is left out.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    if len(config.reference.named_sets()) > 1:
        raise ConfigError("reference.sets: expected one reference set in an experiment, found several: name one")
    reference, measured, heldout = split_reference(config.reference, config.heldout, config.seed)
    domains: dict[str, list[str]] = {}
    for document in heldout:
        domain = str(document.metadata["domain"])
        if domain != config.heldout.reference_domain:
            domains.setdefault(domain, []).append(document.text)
    measured_texts = [document.text for document in measured[: size.measured_documents]]
    others = {name: texts[: size.documents_per_domain] for name, texts in sorted(domains.items())}
    overlapping: list[str] = []
    documents = _leave_out(_read_pool(config), [*measured_texts, *chain(*others.values())], config, overlapping)
    passages = _distinct_passages(documents, size.passage_characters)
    drawn = heapq.nsmallest(size.documents, passages, key=lambda p: order_key(config.seed, p[0]))
    if overlapping:
        notice(f"pool.inputs: {len(overlapping)} documents hold held-out text and are left out")
    if not drawn:
        which = " without held-out text (heldout.overlap_words)" if overlapping else ""
        raise ConfigError(f"pool.inputs: expected documents{which}, found none")
    return Texts(
        [text for _, text, _ in drawn],
        [source for _, _, source in drawn],
        [document.text for document in reference[: size.reference_documents]],
        measured_texts,
        others,
        len(overlapping),
    )


def _read_pool(config: RunConfig) -> Iterator[Document]:
    fields = Fields(**config.pool.fields.model_dump())
    for uri in expand_inputs(config.pool.inputs):
        yield from (record for record in read_documents(uri, fields) if isinstance(record, Document))


def _leave_out(
    documents: Iterator[Document], held_out: Sequence[str], config: RunConfig, overlapping: list[str]
) -> Iterator[Document]:
    """Yield the documents that hold no held-out text; add the ids of the others to `overlapping`."""
    words = config.heldout.overlap_words
    index = index_shingles(held_out if words else [], words or 1)
    for document in documents:
        if find_overlap(index, document.text) is None:
            yield document
        else:
            overlapping.append(document.id)


def _distinct_passages(documents: Iterator[Document], characters: int | None) -> Iterator[tuple[str, str, str]]:
    """Yield name, text and source of the documents' passages, equal texts once."""
    seen: set[int] = set()
    for document in documents:
        for number, text in enumerate(cut_passages(document.text, characters)):
            if (content := hash(text)) not in seen:
                seen.add(content)
                yield f"{document.id}#{number}" if number else document.id, text, document.source


def cut_passages(text: str, characters: int | None) -> list[str]:
    """Cut a text at spaces into passages of at most about this many characters; a short end joins the one before it."""
    if characters is None:
        return [text]
    passages = textwrap.wrap(text, characters, break_long_words=True, break_on_hyphens=False)
    if len(passages) > 1 and len(passages[-1]) < characters // 2:
        passages[-2:] = [" ".join(passages[-2:])]
    return passages
