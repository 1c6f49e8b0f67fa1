"""What a unit of each kind of work takes on this machine, measured in seconds on a few of the run's own documents.

The probe runs the functions the run will run, on a model of the run's shape and batches of its size, so that nothing
about the machine is assumed. What the run's workers do is measured in as many processes at once: they share caches,
memory and cores, and a forward pass beside another may take half as long again. Refuses to spend: each measurement
stops after about `LEAST_S`, or after one call where that takes longer.
"""

import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.config import RunConfig
from quad_tasks.core import covariance, ekfac, embedding, influence, kmeans, training
from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.model import (
    Batch,
    LlamaSize,
    encode,
    fresh_llama,
    load_model,
    load_tokenizer,
    make_batches,
    pick_device,
    split_windows,
    train_tokenizer,
)
from quad_tasks.ingest import MIN_TOKENS, tokenize_block
from quad_tasks.model import FRESH, FRESH_BATCH_TOKENS
from quad_tasks.records import Document
from quad_tasks.storage import pool as tables
from quad_tasks.storage.store import open_store

LEAST_S = 0.5
TOO_LONG_S = 2.0
"""A first call that takes this long is the measurement; a shorter one warms up."""
PROBED_DOCUMENTS = 32
PROBED_TEXTS = 200
PROBED_EMBEDDED = 16
"""By an encoder or the model."""
FIT_PRODUCTS = 3
"""Products with the counts that a fit of the embedder takes: embedding takes one."""
PROBED_VECTORS = 4000


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of what one process does alone, with all threads.

    Attributes:
        tokenizer_byte: training a tokenizer, per byte of text.
        encode_byte: tokenizing, per byte of text.
        embed_fit: fitting the embedder on hardly any text.
        embed_fit_byte: and per byte of text.
        centroid_product: k-means, per document, arm, dimension and iteration.
        pretrain_token: training the fresh model.
        decompose: the eigenbases, in all.
        workers: what the workers do at once.
    """

    tokenizer_byte: float
    encode_byte: float
    embed_fit: float
    embed_fit_byte: float
    centroid_product: float
    pretrain_token: float
    decompose: float
    workers: "WorkerRates"


@dataclass(frozen=True)
class WorkerRates:
    """Seconds per unit in one of the run's workers while all of them work.

    Attributes:
        ingest_byte: tokenizing documents and writing their table, per byte of text.
        write_byte: writing a table, per byte of text.
        embed_byte: embedding, per byte of text.
        train_token: training on a selection.
        measure_token: forward pass with loss.
        fit_token: both passes of the EK-FAC fit.
        gradient_token: the reference gradient.
        score_token: scoring.
    """

    ingest_byte: float
    write_byte: float
    embed_byte: float
    train_token: float
    measure_token: float
    fit_token: float
    gradient_token: float
    score_token: float


@dataclass(frozen=True)
class Shape:
    """What the model is, in numbers.

    Attributes:
        parameters: all of them.
        forward_flops: of a forward pass, per token of a full window.
        factor_values: numbers the factors hold: two eigenbases and the eigenvalues of every block.
        tracked: numbers a direction holds.
        bytes_per_token: UTF-8 bytes of text per token, by the run's tokenizer or one trained on the sample.
        dimension: of an embedding.
        width: of a hidden state.
    """

    parameters: int
    forward_flops: float
    factor_values: int
    tracked: int
    bytes_per_token: float
    dimension: int
    width: int


def probe(config: RunConfig, texts: Sequence[str]) -> tuple[Rates, Shape]:
    """Measure on `texts`, a sample of the pool.

    Raises:
        ModelError: the model cannot be loaded.
        UnsupportedLayer: no block of it is supported.
    """
    started = time.perf_counter()
    model, tokenizer = _model(config, texts)
    built_s = time.perf_counter() - started
    blocks = find_blocks(model, config.factors.attention)
    workers = _at_once(probe_worker, config.compute.workers, config, texts, LEAST_S)
    started = time.perf_counter()
    documents = encode(tokenizer, list(texts))
    encoded_s = time.perf_counter() - started
    some = texts[:PROBED_TEXTS]
    started = time.perf_counter()
    embed = _embedder(config, some, model, tokenizer)
    embed_fit = time.perf_counter() - started
    dimension = embed(some[:1]).shape[1]
    fresh, counted = config.model.source == FRESH, config.embedding.method == "ngrams"
    rates = Rates(
        tokenizer_byte=built_s / _n_bytes(texts) if fresh else 0.0,
        encode_byte=encoded_s / _n_bytes(texts),
        embed_fit=embed_fit if counted else 0.0,
        embed_fit_byte=FIT_PRODUCTS * _seconds(lambda: embed(some), _n_bytes(some), LEAST_S) if counted else 0.0,
        centroid_product=_centroid_rate(dimension, LEAST_S),
        pretrain_token=_train_rate(config, model, documents, FRESH_BATCH_TOKENS, LEAST_S) if fresh else 0.0,
        decompose=_decompose_s(config, model, blocks, max(documents, key=len)),
        workers=workers,
    )
    bytes_per_token = _n_bytes(texts) / max(1, sum(map(len, documents)))
    return rates, _shape(config, model, blocks, bytes_per_token, dimension)


def _at_once(
    measure: Callable[..., WorkerRates], processes: int, config: RunConfig, texts: Sequence[str], least_s: float
) -> WorkerRates:
    """Measure in several processes at the same time; return the mean of what they found."""
    with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
        found = [pool.submit(measure, config, texts, least_s) for _ in range(processes)]
        columns = zip(*(astuple(future.result()) for future in found), strict=True)
    return WorkerRates(*(float(np.mean(column)) for column in columns))


def probe_worker(config: RunConfig, texts: Sequence[str], least_s: float) -> WorkerRates:
    """Measure what a worker does, in a process of its own, padding included as the run has it."""
    torch.set_num_threads(config.compute.threads_per_worker)
    model, tokenizer = _model(config, texts)
    blocks = find_blocks(model, config.factors.attention)
    limits = (config.model.window_tokens, config.model.batch_tokens)
    documents = [ids for ids in encode(tokenizer, texts[:PROBED_TEXTS]) if len(ids) >= MIN_TOKENS]
    some = documents[:PROBED_DOCUMENTS]
    batches, _ = make_batches(some, *limits)
    first, _ = make_batches([split_windows(ids, limits[0])[0] for ids in some], *limits)
    generator = torch.Generator().manual_seed(config.seed)
    fisher = config.factors.fisher
    basis = ekfac.decompose(covariance.accumulate_covariances(model, first[:1], blocks, fisher, generator))
    direction, _ = influence.gradient_sums(model, first[:1], blocks)
    direction = {name: tensor.to(model.device) for name, tensor in direction.items()}
    embedded = list(texts[:PROBED_TEXTS] if config.embedding.method == "ngrams" else texts[:PROBED_EMBEDDED])
    embed = _embedder(config, embedded, model, tokenizer)

    def fit(batches: Iterator[Batch]) -> object:
        return covariance.accumulate_covariances(model, batches, blocks, fisher, generator)

    return WorkerRates(
        **_table_rates(texts[:PROBED_TEXTS], tokenizer, least_s),
        embed_byte=_seconds(lambda: embed(embedded), _n_bytes(embedded), least_s),
        fit_token=_per_token(fit, first, least_s)
        + _per_token(lambda b: ekfac.accumulate_eigenvalues(model, b, basis, fisher, generator), first, least_s),
        gradient_token=_per_token(lambda b: influence.gradient_sums(model, b, blocks), batches, least_s),
        score_token=_per_token(lambda b: influence.score_documents(model, b, direction), batches, least_s),
        measure_token=_per_token(lambda b: training.token_losses(model, b), batches, least_s),
        train_token=_train_rate(config, model, documents, config.training.batch_tokens, least_s),
    )


def _model(config: RunConfig, texts: Sequence[str]) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load the run's model, or build an untrained one of the fresh model's shape."""
    device = pick_device(config.compute.device)
    if config.model.source != FRESH:
        tokenizer = load_tokenizer(config.model.source)
        return load_model(config.model.source, getattr(torch, config.model.dtype), device), tokenizer
    fresh = config.model.fresh
    tokenizer = train_tokenizer(texts, fresh.vocabulary)
    size = LlamaSize(fresh.width, fresh.layers, fresh.heads, fresh.key_value_heads, fresh.mlp_width)
    model: PreTrainedModel = fresh_llama(size, fresh.vocabulary, config.model.window_tokens, config.seed)
    return model.to(getattr(torch, config.model.dtype)).to(device), tokenizer


def _embedder(
    config: RunConfig, texts: Sequence[str], model: PreTrainedModel, tokenizer: FastTokenizer
) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Return the run's way to embed texts; the n-gram embedder is fitted on `texts`."""
    settings, device = config.embedding, pick_device(config.compute.device)
    if settings.method == "ngrams":
        fitted = embedding.fit_ngram_embedder(texts, settings.dimension, config.seed)
        return partial(embedding.embed_ngrams, fitted)
    if settings.method == "encoder":
        encoder = embedding.load_encoder(settings.encoder, device)
        return partial(embedding.embed_encoder, encoder, pooling=settings.pooling, max_tokens=settings.max_tokens)
    return partial(embedding.embed_hidden_states, model, tokenizer, max_tokens=settings.max_tokens)


def _table_rates(texts: Sequence[str], tokenizer: FastTokenizer, least_s: float) -> dict[str, float]:
    """Measure ingesting documents, and writing a table alone, on local disk."""
    block = [(line, Document(str(line), text, "probe", {})) for line, text in enumerate(texts)]
    size = _n_bytes(texts)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)

        def write(batch: pa.RecordBatch) -> object:
            return tables.write_table_stream(store, "table.parquet", tables.DOCUMENT_SCHEMA, [batch], len(texts))

        def ingest() -> object:
            return write(tokenize_block(block, "probe", tokenizer, [], Counter()))

        batch = tokenize_block(block, "probe", tokenizer, [], Counter())
        return {
            "ingest_byte": _seconds(ingest, size, least_s),
            "write_byte": _seconds(lambda: write(batch), size, least_s),
        }


def _decompose_s(config: RunConfig, model: PreTrainedModel, blocks: list[Block], ids: Sequence[int]) -> float:
    """Time the eigendecompositions of every block's covariances."""
    batches, _ = make_batches([ids], config.model.window_tokens, config.model.batch_tokens)
    generator = torch.Generator().manual_seed(config.seed)
    sums = covariance.accumulate_covariances(model, batches[:1], blocks, config.factors.fisher, generator)
    return _once(lambda: ekfac.decompose(sums))


def _per_token(call: Callable[[Iterator[Batch]], object], batches: Sequence[Batch], least_s: float) -> float:
    """Feed batches, again from the first where they run out, until the time is up; return seconds per token."""
    first = _once(lambda: call(iter(batches[:1])))
    if first > TOO_LONG_S:
        return first / int(batches[0]["attention_mask"].sum())
    tokens, started = 0, time.perf_counter()

    def feed() -> Iterator[Batch]:
        nonlocal tokens
        for batch in itertools.cycle(batches):
            tokens += int(batch["attention_mask"].sum())
            yield batch
            if time.perf_counter() - started > least_s:
                return

    return _once(lambda: call(feed())) / tokens


class _Enough(Exception):
    """Ends a training that has been measured."""


def _train_rate(
    config: RunConfig, model: PreTrainedModel, documents: Sequence[Sequence[int]], batch_tokens: int, least_s: float
) -> float:
    """Train at a learning rate of 0 for a while; return seconds per token, but for the first step."""
    model = model.float()
    optimizer = training.make_optimizer(model, config.training.weight_decay)
    generator = np.random.default_rng(config.seed)
    limits = (config.model.window_tokens, batch_tokens)
    steps = [(time.perf_counter(), 0)]

    def count(tokens: int) -> None:
        steps.append((time.perf_counter(), tokens))
        if len(steps) > 3 and steps[-1][0] - steps[1][0] > least_s:
            raise _Enough

    with suppress(_Enough):
        training.train(model, optimizer, documents, training.Schedule(0.0, 0.0, 1), 0, *limits, generator, count)
    model.eval()
    warm = steps[1:] if len(steps) > 2 else steps
    return (warm[-1][0] - warm[0][0]) / max(1, sum(tokens for _, tokens in warm[1:]))


def _centroid_rate(dimension: int, least_s: float) -> float:
    vectors = np.random.default_rng(0).standard_normal((PROBED_VECTORS, dimension)).astype(np.float32)
    arms, iterations = 50, 4
    return _seconds(
        lambda: kmeans.train_centroids(vectors, arms, 0, iterations),
        PROBED_VECTORS * arms * dimension * iterations,
        least_s,
    )


def _shape(
    config: RunConfig, model: PreTrainedModel, blocks: list[Block], bytes_per_token: float, dimension: int
) -> Shape:
    parameters = sum(p.numel() for p in model.parameters())
    embedded = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    multiplied = parameters if tied else parameters - embedded
    attended = 2 * layers * width * config.model.window_tokens  # QK^T and AV over the causal half of the window
    sizes = {block.source: block.shape[1] for block in blocks}
    return Shape(
        parameters=parameters,
        forward_flops=2.0 * multiplied + attended,
        factor_values=sum(n * n for n in sizes.values())
        + sum(b.shape[0] ** 2 + b.shape[0] * b.shape[1] for b in blocks),
        tracked=sum(b.shape[0] * b.shape[1] for b in blocks),
        bytes_per_token=bytes_per_token,
        dimension=dimension,
        width=width,
    )


def _seconds(call: Callable[[], object], units: int, least_s: float) -> float:
    """Return the mean seconds a unit takes."""
    first = _once(call)
    if first > TOO_LONG_S:
        return first / max(1, units)
    started, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < least_s or calls == 0:
        call()
        calls += 1
    return taken / (calls * max(1, units))


def _once(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
