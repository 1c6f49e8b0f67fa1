"""What a unit of each kind of work takes on this machine, measured in seconds on a few of the run's own documents.

The probe runs the functions the run will run, on a model of the run's shape and batches of its size, so that nothing
about the machine is assumed. Refuses to spend: each measurement stops after about `LEAST_S`, or after one call where
that takes longer.
"""

import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
from quad_tasks.model import FRESH, FRESH_BATCH_TOKENS

LEAST_S = 0.6
TOO_LONG_S = 2.0
"""A first call that takes this long is the measurement; a shorter one warms up."""
PROBED_DOCUMENTS = 32
PROBED_TEXTS = 200
FIT_PRODUCTS = 3
"""Products with the counts that a fit of the embedder takes: embedding takes one."""
PROBED_VECTORS = 4000


@dataclass(frozen=True)
class Rates:
    """Seconds per unit, in one process with the workers' number of threads unless said otherwise.

    Attributes:
        tokenizer_byte: training a tokenizer, per byte of text.
        encode_byte: tokenizing, per byte of text.
        write_byte: writing a table, per byte of text.
        embed_fit: fitting the embedder on hardly any text.
        embed_fit_byte: and per byte of text.
        embed_byte: embedding, per byte of text.
        centroid_product: k-means, per document, arm, dimension and iteration, with all threads.
        pretrain_token: training the fresh model, with all threads.
        train_token: training on a selection.
        measure_token: forward pass with loss.
        fit_token: both passes of the EK-FAC fit.
        decompose: the eigenbases, in all.
        gradient_token: the reference gradient.
        score_token: scoring.
    """

    tokenizer_byte: float
    encode_byte: float
    write_byte: float
    embed_fit: float
    embed_fit_byte: float
    embed_byte: float
    centroid_product: float
    pretrain_token: float
    train_token: float
    measure_token: float
    fit_token: float
    decompose: float
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
    """

    parameters: int
    forward_flops: float
    factor_values: int
    tracked: int
    bytes_per_token: float
    dimension: int


def probe(config: RunConfig, texts: Sequence[str]) -> tuple[Rates, Shape]:
    """Measure on `texts`, a sample of the pool.

    Raises:
        ModelError: the model cannot be loaded.
        UnsupportedLayer: no block of it is supported.
    """
    started = time.perf_counter()
    model, tokenizer = _model(config, texts)
    tokenizer_byte = (time.perf_counter() - started) / _n_bytes(texts)
    blocks = find_blocks(model, config.factors.attention)
    documents = encode(tokenizer, list(texts))
    bytes_per_token = _n_bytes(texts) / max(1, sum(map(len, documents)))
    with _threads(config.compute.threads_per_worker):
        embedding_rates, vectors = _probe_embedding(config, texts, model, tokenizer)
        rates = {
            "tokenizer_byte": tokenizer_byte if config.model.source == FRESH else 0.0,
            "encode_byte": _seconds(lambda: encode(tokenizer, list(texts)), _n_bytes(texts)),
            "write_byte": _seconds(lambda: _write(texts, vectors), _n_bytes(texts)),
            **embedding_rates,
            **_probe_model(config, model, blocks, documents),
        }
    rates["pretrain_token"] = 0.0
    if config.model.source == FRESH:
        rates["pretrain_token"] = _train_rate(config, model, documents, FRESH_BATCH_TOKENS)
    rates["centroid_product"] = _centroid_rate(vectors.shape[1])
    return Rates(**rates), _shape(config, model, blocks, bytes_per_token, vectors.shape[1])


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


def _probe_embedding(
    config: RunConfig, texts: Sequence[str], model: PreTrainedModel, tokenizer: FastTokenizer
) -> tuple[dict[str, float], np.ndarray[Any, Any]]:
    settings = config.embedding
    some = list(texts)[:PROBED_TEXTS]
    if settings.method == "ngrams":
        started = time.perf_counter()
        embedder = embedding.fit_ngram_embedder(some, settings.dimension, config.seed)
        fit = time.perf_counter() - started
        vectors = embedding.embed_ngrams(embedder, some)
        seconds = _seconds(lambda: embedding.embed_ngrams(embedder, some), _n_bytes(some))
        return {"embed_fit": fit, "embed_fit_byte": FIT_PRODUCTS * seconds, "embed_byte": seconds}, vectors
    some = some[:16]
    if settings.method == "encoder":
        encoder = embedding.load_encoder(settings.encoder, pick_device(config.compute.device))

        def embed() -> np.ndarray[Any, Any]:
            return embedding.embed_encoder(encoder, some, pooling=settings.pooling, max_tokens=settings.max_tokens)

    else:

        def embed() -> np.ndarray[Any, Any]:
            return embedding.embed_hidden_states(model, tokenizer, some, max_tokens=settings.max_tokens)

    vectors = embed()
    return {"embed_fit": 0.0, "embed_fit_byte": 0.0, "embed_byte": _seconds(embed, _n_bytes(some))}, vectors


def _probe_model(
    config: RunConfig, model: PreTrainedModel, blocks: list[Block], documents: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Measure training, fitting and scoring, padding included as the run has it."""
    limits = (config.model.window_tokens, config.model.batch_tokens)
    some = _some(documents)
    batches, _ = make_batches(some, *limits)
    first, _ = make_batches([split_windows(ids, limits[0])[0] for ids in some], *limits)
    generator = torch.Generator().manual_seed(config.seed)
    fisher = config.factors.fisher
    sums = covariance.accumulate_covariances(model, first[:1], blocks, fisher, generator)
    started = time.perf_counter()
    basis = ekfac.decompose(sums)
    decompose = time.perf_counter() - started
    direction, _ = influence.gradient_sums(model, first[:1], blocks)
    direction = {name: tensor.to(model.device) for name, tensor in direction.items()}
    return {
        "fit_token": _per_token(lambda b: covariance.accumulate_covariances(model, b, blocks, fisher, generator), first)
        + _per_token(lambda b: ekfac.accumulate_eigenvalues(model, b, basis, fisher, generator), first),
        "decompose": decompose,
        "gradient_token": _per_token(lambda b: influence.gradient_sums(model, b, blocks), batches),
        "score_token": _per_token(lambda b: influence.score_documents(model, b, direction), batches),
        "measure_token": _per_token(lambda b: training.token_losses(model, b), batches),
        "train_token": _train_rate(config, model, documents, config.training.batch_tokens),
    }


def _per_token(call: Callable[[Iterator[Batch]], object], batches: Sequence[Batch]) -> float:
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
            if time.perf_counter() - started > LEAST_S:
                return

    return _once(lambda: call(feed())) / tokens


class _Enough(Exception):
    """Ends a training that has been measured."""


def _train_rate(
    config: RunConfig, model: PreTrainedModel, documents: Sequence[Sequence[int]], batch_tokens: int
) -> float:
    """Train at a learning rate of 0 for a while; return seconds per token, the first step left out."""
    model = model.float()
    optimizer = training.make_optimizer(model, config.training.weight_decay)
    generator = np.random.default_rng(config.seed)
    limits = (config.model.window_tokens, batch_tokens)
    steps: list[tuple[float, int]] = []

    def count(tokens: int) -> None:
        steps.append((time.perf_counter(), tokens))
        if len(steps) > 2 and steps[-1][0] - steps[0][0] > LEAST_S:
            raise _Enough

    with suppress(_Enough):
        training.train(model, optimizer, documents, training.Schedule(0.0, 0.0, 1), 0, *limits, generator, count)
    model.eval()
    return (steps[-1][0] - steps[0][0]) / max(1, sum(tokens for _, tokens in steps[1:]))


def _some(documents: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Take as many documents as are scored or fitted at once."""
    return [ids for ids in documents if len(ids) >= 2][:PROBED_DOCUMENTS]


def _centroid_rate(dimension: int) -> float:
    vectors = np.random.default_rng(0).standard_normal((PROBED_VECTORS, dimension)).astype(np.float32)
    arms, iterations = 50, 4
    return _seconds(
        lambda: kmeans.train_centroids(vectors, arms, 0, iterations), PROBED_VECTORS * arms * dimension * iterations
    )


def _write(texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
    rows = pa.table({"text": list(texts), "embedding": list(np.resize(vectors, (len(texts), vectors.shape[1])))})
    pq.write_table(rows, io.BytesIO(), compression="zstd", compression_level=3)


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
    )


def _seconds(call: Callable[[], object], units: int) -> float:
    """Return the mean seconds a unit takes."""
    first = _once(call)
    if first > TOO_LONG_S:
        return first / max(1, units)
    started, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < LEAST_S or calls == 0:
        call()
        calls += 1
    return taken / (calls * max(1, units))


def _once(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with a worker's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


COMPANION = """
import numpy as np
a = np.ones((256, 256), np.float32)
print("ready", flush=True)
while True:
    a @ a
"""


def sharing_slowdown(workers: int) -> float:
    """Return how many times longer a worker takes beside the others, which share caches, memory and cores; >= 1."""
    alone = _products_per_second()
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    others = [
        subprocess.Popen([sys.executable, "-c", COMPANION], env=environment, stdout=subprocess.PIPE)
        for _ in range(workers - 1)
    ]
    try:
        for other in others:
            if other.stdout is not None:
                other.stdout.readline()
        return max(1.0, alone / _products_per_second())
    finally:
        for other in others:
            other.kill()
            other.communicate()


def _products_per_second() -> float:
    matrix = torch.ones(256, 256)
    with _threads(1):
        return 1 / _seconds(lambda: matrix @ matrix, 1)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
