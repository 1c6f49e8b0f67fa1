"""What experiments measure in: a sample of a pool, a checkpoint trained on it, and every document's influence.

A laboratory is built once for its inputs and size, kept in the workspace, and shared by all experiments that ask for
the same one. Its documents are cut to one window each, so that a document is what is scored and what is trained on.
Every document is scored along four directions at once: `joint`, `split` and `mlp` (EK-FAC with query, key and value as
one block, as three, or left out) and `identity` (the reference gradient itself, no Hessian).

Owns sizes, the sample and its measurements. Refuses to choose: how documents are chosen is `lookup.py`, `baselines.py`.

Shape suffixes: N documents of the sample, D embedding, H hidden state.
"""

import functools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.checkpoints import load_checkpoint, save_checkpoint
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.embedding import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.influence import reference_gradient, score_directions
from quad_tasks.core.kmeans import assign_arms, train_centroids
from quad_tasks.core.model import LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.prediction import document_features
from quad_tasks.core.states import losses_and_states
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.outcome import continue_training
from quad_tasks.experiments.sample import KINDS, Size, Texts, demo_config, read_inputs, read_size, scored_kinds
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store, open_store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Directions = dict[str, dict[str, Tensor]]

CHUNK_DOCUMENTS = 500
REPEATS = "seeds"
"""Of a size, what no laboratory is built from: experiments that repeat more or less share it."""
EMBEDDER_DOCUMENTS = 20_000
"""Of the sample, which is in random order, that the n-gram embedder is fitted on."""
TIMED_PART = 8
"""One batch in so many is scored again along one direction alone, to know what that costs."""
PEAK_RATE = 6e-3


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


@step("build laboratories")
def build_laboratories(workspace: str, config: RunConfig | None, size: Size, repeats: int = 1) -> list[str]:
    """Build the laboratories that the workspace lacks for these inputs and this size; return the keys of all.

    Each is drawn with the seed after the last one's: its sample, its reference and held-out documents, and so its
    checkpoint, are its own.

    Args:
        workspace: URI they are kept under.
        config: names pool, reference and held-out inputs, and the first seed; None: the demo's corpus.
        size: how large.
        repeats: how many.
    """
    store = open_store(workspace)
    said_size = {name: value for name, value in json.loads(json.dumps(asdict(size))).items() if name != REPEATS}
    keys = []
    for texts in _draw_texts(config, size, repeats):
        keys.append(f"experiments/laboratories/{digest([asdict(texts), said_size])[:16]}")
        if not store.exists(f"{keys[-1]}/manifest.json"):
            write_manifest(store, f"{keys[-1]}/sample.json", asdict(texts))
    missing = [(workspace, key, said_size) for key in keys if not store.exists(f"{key}/manifest.json")]
    kinds = [kind for kind in KINDS if kind in scored_kinds(size)]
    trained = kept(train_checkpoint, missing, "train", "models")
    fits = [(*item, kind) for item in missing for kind in kinds]
    fitted = kept(fit_direction, fits, "fit", "directions")
    arranged = kept(arrange_pool, missing, "embed and cluster", "laboratories")
    chunks = [(*item, start) for item in missing for start in range(0, len(_texts(*item[:2]).pool), CHUNK_DOCUMENTS)]
    scored = kept(score_chunk, chunks, "score", "chunks")
    for item, train_s, arranged_s in zip(missing, trained, arranged, strict=True):
        key, parts = item[1], [took for chunk, took in zip(chunks, scored, strict=True) if chunk[:3] == item]
        seconds = {"train": train_s, **arranged_s, **{name: sum(part[name] for part in parts) for name in parts[0]}}
        seconds |= {f"fit_{fit[3]}": took for fit, took in zip(fits, fitted, strict=True) if fit[:3] == item}
        _join_chunks(store, key, [chunk[3] for chunk in chunks if chunk[:3] == item])
        write_manifest(store, f"{key}/manifest.json", {"size": said_size, "volatile": {"seconds": seconds}})
    return keys


def _draw_texts(config: RunConfig | None, size: Size, repeats: int) -> list[Texts]:
    with tempfile.TemporaryDirectory() as directory:
        first = config or demo_config(Path(directory))
        return [read_inputs(first.model_copy(update={"seed": first.seed + n}), size) for n in range(repeats)]


def _join_chunks(store: Store, key: str, starts: Sequence[int]) -> None:
    tables = [load_tensors(store, f"{key}/chunks/{start}.safetensors")[0] for start in starts]
    arrays = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    save_tensors(store, f"{key}/arrays.safetensors", arrays, {})


def train_checkpoint(workspace: str, key: str, said_size: Mapping[str, Any]) -> float:
    """Train the laboratory's tokenizer and model; write them, and the texts they can read, on a worker.

    Returns:
        Seconds.
    """
    started = time.process_time()
    store, size = open_store(workspace), read_size(said_size)
    texts = _read_texts(store, f"{key}/sample.json")
    tokenizer = train_tokenizer(texts.pool, size.vocabulary)
    documents = encode_windows(tokenizer, texts.pool, size)
    keep = [row for row, ids in enumerate(documents) if len(ids) > 1]  # one token has no target
    texts = replace(texts, pool=[texts.pool[i] for i in keep], source=[texts.source[i] for i in keep])
    trained = [documents[i] for i in keep[: size.trained_documents]]
    mlp_width = round(size.width * 8 / 3 / 8) * 8
    llama = LlamaSize(size.width, size.layers, size.heads, size.heads, mlp_width)
    model = fresh_llama(llama, len(tokenizer), size.window_tokens, 0)
    for epoch in range(size.epochs):
        peak = PEAK_RATE if epoch == 0 else PEAK_RATE / 4
        model = continue_training(model, trained, peak, size.window_tokens, 2 * size.batch_tokens, epoch)
    write_manifest(store, f"{key}/texts.json", asdict(texts))
    save_checkpoint(store, f"{key}/checkpoint", model, tokenizer, {})
    return time.process_time() - started


def arrange_pool(workspace: str, key: str, said_size: Mapping[str, Any]) -> dict[str, float]:
    """Embed and cluster the documents, on a worker; write `embedding` and `arm`; return seconds of both."""
    pool, started = _texts(workspace, key).pool, time.process_time()
    embedding = embed_ngrams(fit_ngram_embedder(pool[:EMBEDDER_DOCUMENTS]), pool)
    embedded = time.process_time()
    arm = assign_arms(embedding, train_centroids(embedding, read_size(said_size).arms, 0))[0]
    seconds = {"embed": embedded - started, "cluster": time.process_time() - embedded}
    save_tensors(
        open_store(workspace), f"{key}/arms.safetensors", {"embedding": embedding, "arm": arm.astype("i8")}, {}
    )
    return seconds


@functools.lru_cache(maxsize=1)
def open_laboratory(workspace: str, key: str) -> Laboratory:
    """Load a laboratory; a process keeps the last one. How often trainings repeat is not its own affair."""
    store = open_store(workspace)
    manifest = read_manifest(store, f"{key}/manifest.json")
    size, texts = read_size(manifest["size"]), _texts(workspace, key)
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    documents = encode_windows(tokenizer, texts.pool, size)
    arrays, _ = load_tensors(store, f"{key}/arrays.safetensors")
    arrays |= load_tensors(store, f"{key}/arms.safetensors")[0]
    return Laboratory(
        workspace,
        key,
        size,
        texts,
        documents,
        model,
        tokenizer,
        np.array([len(ids) for ids in documents]),
        {name: arrays[name] for name in scored_kinds(size)},
        arrays["loss"],
        arrays["embedding"],
        arrays["hidden"],
        arrays["arm"].astype(np.int32),
        manifest["volatile"]["seconds"],
    )


def find_laboratory(workspace: str, config: RunConfig | None, size: Size) -> Laboratory:
    """Build the laboratory where the workspace lacks it, and open it."""
    return find_laboratories(workspace, config, size, 1)[0]


def find_laboratories(workspace: str, config: RunConfig | None, size: Size, repeats: int) -> list[Laboratory]:
    """Build the laboratories that the workspace lacks, and open all; arguments as `build_laboratories`."""
    keys = build_laboratories(workspace, config, size, repeats)
    return [replace(open_laboratory(workspace, key), size=size) for key in keys]


def prediction_features(laboratory: Laboratory, states: bool = False) -> Float64:
    """Compute what a run's regression predicts influence from, [N, any].

    Args:
        laboratory: whose documents.
        states: whether the model's hidden states are among them.
    """
    n_bytes_N = np.array([len(text.encode()) for text in laboratory.texts.pool])
    hidden = laboratory.hidden if states else None
    return document_features(laboratory.embedding, laboratory.n_tokens, n_bytes_N, hidden)


@functools.lru_cache(maxsize=1)
def _texts(workspace: str, key: str) -> Texts:
    return _read_texts(open_store(workspace), f"{key}/texts.json")


def _read_texts(store: Store, key: str) -> Texts:
    body = read_manifest(store, key)
    return Texts(**{name: body[name] for name in Texts.__slots__})


def encode_windows(tokenizer: FastTokenizer, texts: Sequence[str], size: Size) -> list[list[int]]:
    """Tokenize texts and keep each one's first window."""
    return [ids[: size.window_tokens] for ids in encode(tokenizer, texts)]


def fit_direction(workspace: str, key: str, said_size: Mapping[str, Any], kind: str) -> float:
    """Fit one kind of direction at the laboratory's checkpoint and write it, on a worker; return its seconds."""
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    size, texts = read_size(said_size), _texts(workspace, key)
    started = time.process_time()
    sample = texts.pool[-size.factor_documents :]
    inverse, gradient = directions(model, tokenizer, sample, texts.reference, KINDS[kind], size)
    took = time.process_time() - started
    store = open_store(workspace)
    save_tensors(store, f"{key}/{kind}.safetensors", {name: v.numpy() for name, v in inverse.items()}, {})
    if kind == "joint":
        save_tensors(store, f"{key}/identity.safetensors", {name: v.numpy() for name, v in gradient.items()}, {})
    return took


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


def score_chunk(workspace: str, key: str, said_size: Mapping[str, Any], start: int) -> dict[str, float]:
    """Score some of the laboratory's documents along every direction, on a worker.

    Writes `joint`, `split`, `mlp`, `identity`, `loss`, `hidden`, each [documents, ...].

    Returns:
        Seconds of scoring along one direction (`score`), and of the loss and hidden states alone (`loss`).
    """
    model, tokenizer = load_checkpoint(workspace, f"{key}/checkpoint", "float32", "cpu")
    size = read_size(said_size)
    texts = _texts(workspace, key).pool[start : start + CHUNK_DOCUMENTS]
    batches, owners = make_batches(encode_windows(tokenizer, texts, size), size.window_tokens, size.batch_tokens)
    rows = np.argsort(owners.numpy())
    store = open_store(workspace)
    found = {name: load_tensors(store, f"{key}/{name}.safetensors")[0] for name in scored_kinds(size)}
    along = together(model, {name: {b: torch.from_numpy(v) for b, v in d.items()} for name, d in found.items()})
    scores = score_directions(model, batches, along)
    arrays: dict[str, npt.NDArray[Any]] = {name: scores[name].influence[rows] for name in along}
    timed = batches[: max(len(batches) // TIMED_PART, 1)]
    started = time.process_time()
    score_directions(model, timed, {"joint": along["joint"]})
    share = sum(b["input_ids"].numel() for b in timed) / sum(b["input_ids"].numel() for b in batches)
    seconds = {"score": (time.process_time() - started) / share}
    started = time.process_time()
    loss, hidden = losses_and_states(model, batches)
    seconds["loss"] = time.process_time() - started
    save_tensors(store, f"{key}/chunks/{start}.safetensors", {**arrays, "loss": loss[rows], "hidden": hidden[rows]}, {})
    return seconds


def together(model: PreTrainedModel, directions: Mapping[str, Mapping[str, Tensor]]) -> Directions:
    """Write directions of every kind of curvature over the joint blocks, so that one backward pass serves all.

    <v, g> is a sum over a matrix's rows: those of query, key and value stand one below the other in the joint block,
    and what a direction leaves out is zero.
    """
    joint, split = find_blocks(model, "joint"), find_blocks(model, "split")
    written: Directions = {}
    for name, direction in directions.items():
        written[name] = {}
        for block in joint:
            parts = [part for part in split if set(part.modules) <= set(block.modules)]
            if block.name in direction:
                written[name][block.name] = direction[block.name]
            elif all(part.name in direction for part in parts):
                written[name][block.name] = torch.cat([direction[part.name] for part in parts])
            else:
                written[name][block.name] = torch.zeros(block.shape)
    return written
