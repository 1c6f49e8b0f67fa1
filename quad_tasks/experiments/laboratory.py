"""What experiments measure in: a sample of a pool, a checkpoint trained on it, and every document's influence.

A laboratory is built once for its inputs and size, kept in the workspace, and shared by all experiments that ask for
the same one. Its documents are cut to one window each, so that a document is what is scored and what is trained on.
Every document is scored along four directions at once: `joint`, `split` and `mlp` (EK-FAC with query, key and value as
one block, as three, or left out) and `identity` (the reference gradient itself, no Hessian).

Owns sizes, the sample and its measurements. Refuses to choose: how documents are chosen is `lookup.py`, `baselines.py`.

Shape suffixes: N documents of the sample, D embedding, H hidden state.
"""

import functools
import heapq
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.checkpoints import load_checkpoint, save_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import HeldoutConfig, PoolConfig, ReferenceConfig, RunConfig, SelectionConfig
from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.embedding import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.influence import reference_gradient, score_directions
from quad_tasks.core.kmeans import assign_arms, train_centroids
from quad_tasks.core.loss import frozen, head_weight, hidden_states, losses, read_batch
from quad_tasks.core.model import Batch, LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.order import order_key
from quad_tasks.demo import build_corpus
from quad_tasks.experiments.outcome import continue_training
from quad_tasks.records import Document
from quad_tasks.reference import split_reference
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.readers import Fields, expand_inputs, read_documents
from quad_tasks.storage.store import open_store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Directions = dict[str, dict[str, Tensor]]

CHUNK_DOCUMENTS = 500
KINDS: dict[str, Attention] = {"joint": "joint", "split": "split", "mlp": "none"}
"""Kinds of curvature, and the attention blocks each tracks."""
SCORES = (*KINDS, "identity")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a laboratory is.

    Attributes:
        documents: N, sampled from the pool.
        reference_documents: of the direction.
        measured_documents: held-out ones that the reference loss is measured on.
        documents_per_domain: held-out ones of each other domain.
        factor_documents: of the EK-FAC fit.
        trained_documents: the checkpoint's training data, the first of the sample.
        epochs: passes over them.
        window_tokens: a document's tokens at most.
        batch_tokens: tokens of a scoring batch; a training step takes twice as many.
        vocabulary: of the tokenizer.
        width: hidden size.
        layers: of the Llama.
        heads: of its attention.
        arms: K.
        budget_tokens: of a selection.
        seeds: training runs of a selection.
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
    seeds: int = 3


QUICK = Size(
    documents=1_500,
    reference_documents=100,
    measured_documents=60,
    documents_per_domain=8,
    factor_documents=192,
    trained_documents=1_200,
    layers=2,
    width=96,
    arms=40,
    budget_tokens=15_000,
)
PEAK_RATE = 6e-3


@dataclass(frozen=True, slots=True)
class Texts:
    """A sample of a pool and what is measured beside it."""

    pool: list[str]
    source: list[str]
    reference: list[str]
    measured: list[str]
    others: dict[str, list[str]]


@dataclass(frozen=True)
class Laboratory:
    """A built laboratory, as a process holds it.

    Attributes:
        workspace: URI it is kept under.
        key: of its files there.
        size: what it was built with.
        texts: its documents.
        documents: token ids of the pool's sample, N lists.
        model: the checkpoint; never changed.
        tokenizer: of the checkpoint.
        n_tokens: [N].
        influence: by kind of direction, [N] summed over a document's targets; > 0: training on it lowers the loss.
        loss: [N] nats per target under the checkpoint.
        embedding: [N, D] n-gram embeddings.
        hidden: [N, H] mean hidden states.
        arm: [N] int32, k-means of the embeddings.
        seconds: what building took on one core, by part: `train`, `fit` of each kind, `score` along one direction,
            `loss`, `embed`, `cluster`.
    """

    workspace: str
    key: str
    size: Size
    texts: Texts
    documents: list[list[int]]
    model: PreTrainedModel
    tokenizer: FastTokenizer
    n_tokens: Int64
    influence: Mapping[str, Float64]
    loss: Float64
    embedding: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]
    arm: npt.NDArray[np.int32]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def per_token(self) -> dict[str, Float64]:
        """Influence per target token, by kind of direction, [N]."""
        return {name: total / (self.n_tokens - 1) for name, total in self.influence.items()}


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
    """Draw a uniform sample of the pool's distinct texts, and the reference's and other domains' documents.

    Raises:
        ConfigError: a set is empty.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    seen: set[int] = set()

    def distinct() -> Any:
        fields = Fields(**config.pool.fields.model_dump())
        for uri in expand_inputs(config.pool.inputs):
            for record in read_documents(uri, fields):
                if isinstance(record, Document) and (content := hash(record.text)) not in seen:
                    seen.add(content)
                    yield record

    drawn = heapq.nsmallest(size.documents, distinct(), key=lambda d: order_key(config.seed, d.id))
    reference, measured, heldout = split_reference(config)
    others: dict[str, list[str]] = {}
    for document in heldout:
        domain = str(document.metadata["domain"])
        if domain != config.heldout.reference_domain:
            others.setdefault(domain, []).append(document.text)
    return Texts(
        [d.text for d in drawn],
        [d.source for d in drawn],
        [d.text for d in reference[: size.reference_documents]],
        [d.text for d in measured[: size.measured_documents]],
        {name: texts[: size.documents_per_domain] for name, texts in sorted(others.items())},
    )


@step("build laboratory")
def build_laboratory(workspace: str, config: RunConfig | None, size: Size) -> str:
    """Build a laboratory where the workspace has none of these inputs and this size; return its key.

    Args:
        workspace: URI it is kept under.
        config: names pool, reference and held-out inputs; None: the demo's corpus.
        size: how large.
    """
    if config is None:
        with tempfile.TemporaryDirectory() as directory:
            texts = read_inputs(demo_config(Path(directory)), size)
    else:
        texts = read_inputs(config, size)
    store = open_store(workspace)
    key = f"experiments/laboratories/{digest([asdict(texts), asdict(size)])[:16]}"
    if store.exists(f"{key}/manifest.json"):
        return key
    started = time.perf_counter()
    tokenizer = train_tokenizer(texts.pool, size.vocabulary)
    documents = encode_windows(tokenizer, texts.pool, size)
    keep = [row for row, ids in enumerate(documents) if len(ids) > 1]  # one token has no target
    texts = Texts([texts.pool[i] for i in keep], [texts.source[i] for i in keep], *_rest(texts))
    documents = [documents[i] for i in keep]
    mlp_width = round(size.width * 8 / 3 / 8) * 8
    llama = LlamaSize(size.width, size.layers, size.heads, size.heads, mlp_width)
    model = fresh_llama(llama, len(tokenizer), size.window_tokens, 0)
    for epoch in range(size.epochs):
        peak = PEAK_RATE if epoch == 0 else PEAK_RATE / 4
        trained = documents[: size.trained_documents]
        model = continue_training(model, trained, peak, size.window_tokens, 2 * size.batch_tokens, epoch)
    save_checkpoint(store, f"{key}/checkpoint", model, tokenizer, {})
    seconds = {"train": time.perf_counter() - started}
    write_manifest(store, f"{key}/texts.json", asdict(texts))
    started = time.perf_counter()
    embedder = fit_ngram_embedder(texts.pool)
    embedding = embed_ngrams(embedder, texts.pool)
    seconds["embed"], started = time.perf_counter() - started, time.perf_counter()
    arm = assign_arms(embedding, train_centroids(embedding, size.arms, 0))[0]
    seconds["cluster"] = time.perf_counter() - started
    for name, took in spread(fit_direction, [(workspace, key, size, kind) for kind in KINDS], "fit", "directions"):
        seconds[f"fit_{name}"] = took
    starts = range(0, len(documents), CHUNK_DOCUMENTS)
    scored = spread(score_chunk, [(workspace, key, size, start) for start in starts], "score", "chunks")
    arrays = {name: np.concatenate([part[name] for part, _ in scored]) for name in scored[0][0]}
    for name in ("score", "loss"):
        seconds[name] = sum(took[name] for _, took in scored)
    save_tensors(store, f"{key}/arrays.safetensors", {**arrays, "embedding": embedding, "arm": arm.astype("i8")}, {})
    write_manifest(store, f"{key}/manifest.json", {"size": asdict(size), "volatile": {"seconds": seconds}})
    return key


def _rest(texts: Texts) -> tuple[list[str], list[str], dict[str, list[str]]]:
    return texts.reference, texts.measured, texts.others


@functools.lru_cache(maxsize=1)
def open_laboratory(workspace: str, key: str) -> Laboratory:
    """Load a laboratory; a process keeps the last one."""
    store = open_store(workspace)
    manifest = read_manifest(store, f"{key}/manifest.json")
    size, texts = Size(**manifest["size"]), _texts(workspace, key)
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    documents = encode_windows(tokenizer, texts.pool, size)
    arrays, _ = load_tensors(store, f"{key}/arrays.safetensors")
    return Laboratory(
        workspace,
        key,
        size,
        texts,
        documents,
        model,
        tokenizer,
        np.array([len(ids) for ids in documents]),
        {name: arrays[name] for name in SCORES},
        arrays["loss"],
        arrays["embedding"],
        arrays["hidden"],
        arrays["arm"].astype(np.int32),
        manifest["volatile"]["seconds"],
    )


@functools.lru_cache(maxsize=1)
def _texts(workspace: str, key: str) -> Texts:
    body = read_manifest(open_store(workspace), f"{key}/texts.json")
    return Texts(**{name: body[name] for name in Texts.__slots__})


def encode_windows(tokenizer: FastTokenizer, texts: Sequence[str], size: Size) -> list[list[int]]:
    """Tokenize texts and keep each one's first window."""
    return [ids[: size.window_tokens] for ids in encode(tokenizer, texts)]


def fit_direction(workspace: str, key: str, size: Size, kind: str) -> tuple[str, float]:
    """Fit one kind of direction at the laboratory's checkpoint and keep it, on a worker.

    Returns:
        The kind, and the seconds its factors and direction took.
    """
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    texts = _texts(workspace, key)
    started = time.perf_counter()
    sample = texts.pool[-size.factor_documents :]
    inverse, gradient = directions(model, tokenizer, sample, texts.reference, KINDS[kind], size)
    took = time.perf_counter() - started
    store = open_store(workspace)
    save_tensors(store, f"{key}/{kind}.safetensors", {name: v.numpy() for name, v in inverse.items()}, {})
    if kind == "joint":
        save_tensors(store, f"{key}/identity.safetensors", {name: v.numpy() for name, v in gradient.items()}, {})
    return kind, took


def directions(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    sample: Sequence[str],
    reference: Sequence[str],
    attention: Attention,
    size: Size,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fit factors on a sample and aim at the reference.

    Returns:
        The reference gradient with the Hessian's inverse applied, and without, block name to [O, I].
    """
    batches, _ = make_batches(encode_windows(tokenizer, sample, size), size.window_tokens, size.batch_tokens)
    factors = fit_factors(model, batches, attention, generator=torch.Generator().manual_seed(0))
    batches, _ = make_batches(encode_windows(tokenizer, reference, size), size.window_tokens, size.batch_tokens)
    gradient = reference_gradient(model, batches, find_blocks(model, attention))
    return apply_inverse(factors, gradient), gradient


def score_chunk(
    workspace: str, key: str, size: Size, start: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
    """Score some of the laboratory's documents along every direction, on a worker.

    Returns:
        `joint`, `split`, `mlp`, `identity`, `loss`, `hidden`, each [documents, ...]; and seconds of scoring along one
        direction (`joint`), and of the loss and hidden states alone.
    """
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    texts = _texts(workspace, key).pool[start : start + CHUNK_DOCUMENTS]
    batches, owners = make_batches(encode_windows(tokenizer, texts, size), size.window_tokens, size.batch_tokens)
    rows = np.argsort(owners.numpy())
    arrays: dict[str, npt.NDArray[Any]] = {}
    seconds: dict[str, float] = {}
    store = open_store(workspace)
    for name in SCORES:
        direction, _ = load_tensors(store, f"{key}/{name}.safetensors")
        started = time.perf_counter()
        along = {name: {block: torch.from_numpy(v) for block, v in direction.items()}}
        arrays[name] = score_directions(model, batches, along)[name].influence[rows]
        seconds["score"] = seconds.get("score", time.perf_counter() - started)  # of the first, `joint`
    started = time.perf_counter()
    loss, hidden = losses_and_states(model, batches)
    seconds["loss"] = time.perf_counter() - started
    return {**arrays, "loss": loss[rows], "hidden": hidden[rows]}, seconds


def losses_and_states(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[Float64, npt.NDArray[np.float32]]:
    """Measure every document's loss per target, [N], and its mean hidden state over positions with a target, [N, H]."""
    means, states, head = [], [], head_weight(model)
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            documents = read_batch(batch, head.device)
            hidden = hidden_states(model, documents)
            parts = losses(hidden, head, documents).split(documents.n_targets_N)  # type: ignore[no-untyped-call]
            means += [float(part.mean()) for part in parts]
            rows = batch["attention_mask"].to(hidden.dtype)
            states.append((hidden * rows[..., None]).sum(1) / rows.sum(1, keepdim=True))
    return np.array(means), torch.cat(states).float().numpy()
