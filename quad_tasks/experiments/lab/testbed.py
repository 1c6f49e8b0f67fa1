"""Build what experiments measure in: a sample of a pool, a checkpoint trained on it, and every document's influence.

A testbed is built once for its inputs and size, stored in the workspace, and shared by all experiments that ask for the
same one. Its documents are cut to one window each, so that a document is what is scored and what is trained on. Every
document is scored along four directions at once: `joint`, `split` and `mlp` (EK-FAC with query, key and value as one
block, as three, or left out) and `identity` (the reference gradient itself, no Hessian).

Owns a testbed's files and its measurements. Refuses to select documents: `simulation.py` and `baselines.py` do.

Shape suffixes: N documents of the sample, D embedding, H hidden state.
"""

import functools
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.config.schema import BanditConfig, RunConfig
from quad_tasks.config.values import Features
from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.clustering.embed_texts import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.clustering.kmeans import assign_arms, train_centroids
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_directions
from quad_tasks.core.lm.batching import Batch, make_batches
from quad_tasks.core.lm.hidden_states import losses_and_states
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.token_features import project_embeddings, token_features
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer
from quad_tasks.core.lm.training import METHOD, count_targets
from quad_tasks.core.selection.features import FeatureMatrix, document_features
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.corpus_sample import (
    DRAW,
    KINDS,
    Size,
    Texts,
    demo_config,
    read_inputs,
    read_size,
    scored_kinds,
)
from quad_tasks.experiments.lab.train_choice import begin, one_pass, train
from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.runtime.checkpoints import describe_checkpoint, load_checkpoint, save_checkpoint
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store, open_store
from quad_tasks.storage.tensors import load_tensors, save_tensors

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Directions = dict[str, dict[str, Tensor]]

FOLDER = "experiments/testbeds"
"""Where testbeds lie in a workspace."""
CHUNK_DOCUMENTS = 500
REPEATS = "seeds"
"""The field of a size that no testbed depends on: experiments that repeat more or less share testbeds."""
EMBEDDER_DOCUMENTS = 20_000
"""First documents of the sample, which is in random order, that the n-gram embedder is fitted on."""
TIMED_PART = 8
"""One batch in this many is scored again along one direction alone, to measure what that costs."""
PEAK_RATE = 6e-3
LATER_RATE = PEAK_RATE / 4
"""Peak learning rate of the first pass over the documents, and of every later one."""

SizeBody = dict[str, Any]
"""A size as JSON (`read_size`): workers are sent it, and cached results are keyed by it."""


@dataclass(frozen=True)
class Testbed:
    """A built testbed, as a process holds it.

    Attributes:
        workspace: URI it is stored under.
        key: of its files there.
        size: what it was built with.
        texts: its documents.
        documents: token ids of the pool's sample, N lists.
        model: the checkpoint; never changed.
        tokenizer: of the checkpoint.
        n_tokens: [N].
        influence: by kind of direction, [N] summed over a document's targets; > 0: training on it lowers the loss.
        loss: [N] nats per target under the checkpoint.
        embedding: [N, D] n-gram embeddings, unit rows.
        hidden: [N, H] mean hidden states.
        arm: [N] int32, k-means cluster of each embedding.
        seconds: what building took on one core, by part: `train`, `fit_<kind>`, `score` along one direction, `loss`,
            `embed`, `cluster`.
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

    def per_token(self, kind: str = "joint") -> Float64:
        """Return influence per target token along one kind of direction, [N]."""
        return self.influence[kind] / (self.n_tokens - 1)

    def token_ids(self, rows: Iterable[int]) -> list[list[int]]:
        """Return the token ids of some documents, in the order of the rows."""
        return [self.documents[row] for row in rows]


@stage_task("build testbeds")
def build_testbeds(workspace: str, config: RunConfig | None, size: Size, repeats: int = 1) -> list[str]:
    """Build the testbeds that the workspace lacks for these inputs and this size; return the keys of all.

    Each repeat is drawn with a seed one higher than the last one's: its sample, its reference and held-out documents,
    and so its checkpoint, are its own.

    Args:
        workspace: URI they are stored under.
        config: names pool, reference and held-out inputs, and the first seed; None: the demo's corpus.
        size: how large.
        repeats: how many.
    """
    store, body = open_store(workspace), _size_body(size)
    keys = [_write_sample(store, texts, body) for texts in _draw_texts(config, size, repeats)]
    missing = [key for key in keys if not store.exists(f"{key}/manifest.json")]
    kinds = [kind for kind in KINDS if kind in scored_kinds(size)]
    _measure_testbeds(workspace, missing, body, kinds)
    return keys


def _size_body(size: Size) -> SizeBody:
    return {name: value for name, value in json.loads(json.dumps(asdict(size))).items() if name != REPEATS}


def _write_sample(store: Store, texts: Texts, size: SizeBody) -> str:
    """Write a testbed's texts unless it is built; return its key."""
    key = f"{FOLDER}/{digest([METHOD, DRAW, asdict(texts), size])[:16]}"
    if not store.exists(f"{key}/manifest.json"):
        write_manifest(store, f"{key}/sample.json", ExperimentRecord(**asdict(texts)))
    return key


def _measure_testbeds(workspace: str, keys: Sequence[str], size: SizeBody, kinds: Sequence[str]) -> None:
    """Train, fit, cluster and score in every testbed, each step in all of them at once; write their manifests."""
    testbeds = [(workspace, key, size) for key in keys]
    trained_s = map_cached(train_checkpoint, testbeds, "train", "models")
    fits = [(*testbed, kind) for testbed in testbeds for kind in kinds]
    fit_s = map_cached(fit_direction, fits, "fit", "directions")
    arranged_s = map_cached(arrange_pool, testbeds, "embed and cluster", "testbeds")
    starts = {key: range(0, len(_texts(workspace, key).pool), CHUNK_DOCUMENTS) for key in keys}
    chunks = [(*testbed, start) for testbed in testbeds for start in starts[testbed[1]]]
    scored_s = map_cached(score_chunk, chunks, "score", "chunks")
    store = open_store(workspace)
    for testbed, train_s, arrange_s in zip(testbeds, trained_s, arranged_s, strict=True):
        key = testbed[1]
        parts = [part_s for chunk, part_s in zip(chunks, scored_s, strict=True) if chunk[1] == key]
        seconds = {"train": train_s, **arrange_s, **{name: sum(part[name] for part in parts) for name in parts[0]}}
        seconds |= {f"fit_{fit[-1]}": took_s for fit, took_s in zip(fits, fit_s, strict=True) if fit[1] == key}
        _join_chunks(store, key, starts[key])
        write_manifest(store, f"{key}/manifest.json", ExperimentRecord(size=size, seconds=seconds))


def _draw_texts(config: RunConfig | None, size: Size, repeats: int) -> list[Texts]:
    with tempfile.TemporaryDirectory() as directory:
        first = config or demo_config(Path(directory))
        return [read_inputs(first.model_copy(update={"seed": first.seed + n}), size) for n in range(repeats)]


def _join_chunks(store: Store, key: str, starts: Sequence[int]) -> None:
    tables = [load_tensors(store, f"{key}/chunks/{start}.safetensors")[0] for start in starts]
    arrays = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    save_tensors(store, f"{key}/arrays.safetensors", arrays, {})


def train_checkpoint(workspace: str, key: str, size_body: SizeBody) -> float:
    """Train the testbed's tokenizer and model on a worker; write them, and the texts with a target; return seconds."""
    started = time.process_time()
    store, size = open_store(workspace), read_size(size_body)
    texts = _read_texts(store, f"{key}/sample.json")
    tokenizer = train_tokenizer(texts.pool, size.vocabulary)
    documents = encode_windows(tokenizer, texts.pool, size)
    scorable = [row for row, ids in enumerate(documents) if len(ids) > 1]  # one token has no target
    texts = replace(texts, pool=[texts.pool[i] for i in scorable], source=[texts.source[i] for i in scorable])
    trained = [documents[i] for i in scorable[: size.trained_documents]]
    mlp_width = round(size.width * 8 / 3 / 8) * 8
    llama = LlamaSize(size.width, size.layers, size.heads, size.heads, mlp_width)
    model = fresh_llama(llama, len(tokenizer), size.window_tokens, 0)
    for epoch in range(size.epochs):
        peak = PEAK_RATE if epoch == 0 else LATER_RATE
        settings = one_pass(count_targets(trained), peak, size.window_tokens, 2 * size.batch_tokens, size.batch_tokens)
        model = train(begin(model), trained, settings, np.random.default_rng(epoch)).model
    write_manifest(store, f"{key}/texts.json", ExperimentRecord(**asdict(texts)))
    described = describe_checkpoint("testbed", "byte-level BPE", model, tokenizer)
    save_checkpoint(store, f"{key}/checkpoint", model, tokenizer, described)
    return time.process_time() - started


def arrange_pool(workspace: str, key: str, size_body: SizeBody) -> dict[str, float]:
    """Embed and cluster the documents on a worker; write `embedding` and `arm`; return seconds of both."""
    pool, started = _texts(workspace, key).pool, time.process_time()
    embedding = embed_ngrams(fit_ngram_embedder(pool[:EMBEDDER_DOCUMENTS]), pool)
    embedded = time.process_time()
    arm = assign_arms(embedding, train_centroids(embedding, read_size(size_body).arms, 0))[0]
    seconds = {"embed": embedded - started, "cluster": time.process_time() - embedded}
    save_tensors(
        open_store(workspace), f"{key}/arms.safetensors", {"embedding": embedding, "arm": arm.astype("i8")}, {}
    )
    return seconds


@functools.lru_cache(maxsize=1)
def open_testbed(workspace: str, key: str) -> Testbed:
    """Load a testbed; a process keeps the last one. Its size's `seeds` is the default: no testbed depends on it."""
    store = open_store(workspace)
    manifest = read_manifest(ExperimentRecord, store, f"{key}/manifest.json").model_dump()
    size, texts = read_size(manifest["size"]), _texts(workspace, key)
    model, tokenizer = load_checkpoint(open_store(workspace), f"{key}/checkpoint", "float32", "cpu")
    documents = encode_windows(tokenizer, texts.pool, size)
    arrays, _ = load_tensors(store, f"{key}/arrays.safetensors")
    arrays |= load_tensors(store, f"{key}/arms.safetensors")[0]
    return Testbed(
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
        manifest["seconds"],
    )


def find_testbed(workspace: str, config: RunConfig | None, size: Size) -> Testbed:
    """Open a testbed; build it first where the workspace lacks it."""
    return find_testbeds(workspace, config, size, 1)[0]


def find_testbeds(workspace: str, config: RunConfig | None, size: Size, repeats: int) -> list[Testbed]:
    """Open testbeds; build those that the workspace lacks first; arguments as `build_testbeds`."""
    keys = build_testbeds(workspace, config, size, repeats)
    return [replace(open_testbed(workspace, key), size=size) for key in keys]


def prediction_features(testbed: Testbed, features: Features | None = None) -> FeatureMatrix:
    """Compute the features that a run's regression predicts influence from.

    Args:
        testbed: holds the documents.
        features: which, as `bandit.features`, without losses; None: a run's default.
    """
    features = features or BanditConfig().features
    n_bytes_N = np.array([len(text.encode()) for text in testbed.texts.pool])
    tokens_NF = None
    if features != "embedding":
        embedding_VE = testbed.model.get_input_embeddings().weight.detach().numpy()
        tokens_NF = token_features(testbed.documents, project_embeddings(embedding_VE))
    hidden_NH = testbed.hidden if features == "hidden_states" else None
    return document_features(testbed.embedding, testbed.n_tokens, n_bytes_N, tokens_NF=tokens_NF, states_NH=hidden_NH)


@functools.lru_cache(maxsize=1)
def _texts(workspace: str, key: str) -> Texts:
    return _read_texts(open_store(workspace), f"{key}/texts.json")


def _read_texts(store: Store, key: str) -> Texts:
    body = read_manifest(ExperimentRecord, store, key).model_dump()
    return Texts(**{name: body[name] for name in Texts.__slots__})


def encode_windows(tokenizer: FastTokenizer, texts: Sequence[str], size: Size) -> list[list[int]]:
    """Tokenize texts and keep each one's first window."""
    return [ids[: size.window_tokens] for ids in encode(tokenizer, texts)]


def fit_direction(workspace: str, key: str, size_body: SizeBody, kind: str) -> float:
    """Fit one kind of direction at the testbed's checkpoint on a worker and write it; return its seconds."""
    model, tokenizer = load_checkpoint(open_store(workspace), f"{key}/checkpoint", "float32", "cpu")
    size, texts = read_size(size_body), _texts(workspace, key)
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
    """Fit EK-FAC factors on a sample; compute the reference gradient and apply their inverse to it.

    Returns:
        The reference gradient with the Hessian's inverse applied, and without, block name to [O, I].
    """
    sample_batches, _ = make_batches(encode_windows(tokenizer, sample, size), size.window_tokens, size.batch_tokens)
    factors = fit_factors(model, sample_batches, attention, generator=torch.Generator().manual_seed(0))
    reference_ids = encode_windows(tokenizer, reference, size)
    reference_batches, _ = make_batches(reference_ids, size.window_tokens, size.batch_tokens)
    gradient = reference_gradient(model, reference_batches, find_blocks(model, attention))
    return apply_inverse(factors, gradient), gradient


def score_chunk(workspace: str, key: str, size_body: SizeBody, start: int) -> dict[str, float]:
    """Score some of the testbed's documents along every direction, on a worker.

    Writes `joint`, `split`, `mlp`, `identity`, `loss`, `hidden`, each [documents, ...].

    Returns:
        Seconds of scoring along one direction (`score`), and of the loss and hidden states alone (`loss`).
    """
    model, tokenizer = load_checkpoint(open_store(workspace), f"{key}/checkpoint", "float32", "cpu")
    size, store = read_size(size_body), open_store(workspace)
    texts = _texts(workspace, key).pool[start : start + CHUNK_DOCUMENTS]
    batches, owners = make_batches(encode_windows(tokenizer, texts, size), size.window_tokens, size.batch_tokens)
    rows = np.argsort(owners.numpy())  # batches are sorted by length: back to the texts' order
    # influence along all directions in one backward pass
    along = stack_on_joint_blocks(model, {kind: load_direction(store, key, kind) for kind in scored_kinds(size)})
    scores = score_directions(model, batches, along)
    influence = {kind: scores[kind].influence[rows] for kind in along}
    # seconds of one direction alone, from a part of the batches
    timed = batches[: max(len(batches) // TIMED_PART, 1)]
    started = time.process_time()
    score_directions(model, timed, {"joint": along["joint"]})
    score_s = (time.process_time() - started) * _positions(batches) / _positions(timed)
    # loss and hidden states
    started = time.process_time()
    loss, hidden = losses_and_states(model, batches)
    loss_s = time.process_time() - started
    arrays: dict[str, npt.NDArray[Any]] = {**influence, "loss": loss[rows], "hidden": hidden[rows]}
    save_tensors(store, f"{key}/chunks/{start}.safetensors", arrays, {})
    return {"score": score_s, "loss": loss_s}


def load_direction(store: Store, key: str, kind: str) -> dict[str, Tensor]:
    """Load one kind of a testbed's directions, block name to [O, I]."""
    arrays, _ = load_tensors(store, f"{key}/{kind}.safetensors")
    return {block: torch.from_numpy(values) for block, values in arrays.items()}


def _positions(batches: Sequence[Batch]) -> int:
    """Count token positions, padding included."""
    return sum(batch["input_ids"].numel() for batch in batches)


def stack_on_joint_blocks(model: PreTrainedModel, directions: Mapping[str, Mapping[str, Tensor]]) -> Directions:
    """Write directions of every kind of curvature over the joint blocks, so that one backward pass serves all.

    <v, g> is a sum over a matrix's rows: those of query, key and value stand one below the other in the joint block,
    and what a direction leaves out is zero.
    """
    return {kind: _on_joint_blocks(model, direction) for kind, direction in directions.items()}


def _on_joint_blocks(model: PreTrainedModel, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stacked: dict[str, Tensor] = {}
    for block in find_blocks(model, "joint"):
        parts = [part.name for part in find_blocks(model, "split") if set(part.modules) <= set(block.modules)]
        if block.name in direction:
            stacked[block.name] = direction[block.name]
        elif all(part in direction for part in parts):
            stacked[block.name] = torch.cat([direction[part] for part in parts])
        else:
            stacked[block.name] = torch.zeros(block.shape)
    return stacked
