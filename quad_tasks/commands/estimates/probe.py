"""What a unit of each kind of work takes on this machine, measured in seconds on a few of the run's own documents.

The probe runs the functions the run will run, on a model of the run's shape and batches of its size, so that nothing
about the machine is assumed. What the run's workers do is measured in as many processes at once: they share caches,
memory and cores, and a forward pass beside another may take half as long again. Refuses to spend: each measurement
stops after about `LEAST_S`, or after one call where that takes longer.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.commands.estimates.model_rates import decompose_s, mean_seconds, model_rates, train_rate
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.clustering import kmeans
from quad_tasks.core.clustering.embedders import Embedder, EmbedderInputs
from quad_tasks.core.lm import training
from quad_tasks.core.lm.flops import ModelSize, model_size
from quad_tasks.core.lm.model import LlamaSize, check_model, fresh_llama, pick_device
from quad_tasks.core.lm.source import is_gguf, load_source
from quad_tasks.core.lm.token_features import WIDTH, feature_width, project_embeddings, token_features
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer
from quad_tasks.core.precision import has_bfloat16_products
from quad_tasks.plugins import load_plugin
from quad_tasks.records import Document
from quad_tasks.runtime.checkpoints import weights_sha256
from quad_tasks.stages.influence.factor_memory import covariance_bytes, group_blocks
from quad_tasks.stages.pool.ingest import MIN_TOKENS, tokenize_block
from quad_tasks.stages.pool.prepare_model import FRESH, FRESH_STEP_TOKENS
from quad_tasks.stages.selection.train import training_run
from quad_tasks.storage import tables
from quad_tasks.storage.store import open_store

LEAST_S = 0.5
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
        prepare_model: loading a model that is not fresh, dequantising it where it is a GGUF file, and its digest.
        decompose: the eigenbases, in all.
        workers: what the workers do at once.
    """

    tokenizer_byte: float
    encode_byte: float
    embed_fit: float
    embed_fit_byte: float
    centroid_product: float
    pretrain_token: float
    prepare_model: float
    decompose: float
    workers: "WorkerRates"


@dataclass(frozen=True)
class WorkerRates:
    """Seconds per unit in one of the run's workers while all of them work.

    Attributes:
        ingest_byte: tokenizing documents and writing their table, per byte of text.
        write_byte: writing a table, per byte of text.
        embed_byte: embedding, and computing token features, per byte of text.
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
        covariance_bytes: of all covariances, as a fit keeps them.
        factor_groups: pieces that they are decomposed in.
        activation_bytes: that a token of a training's forward pass keeps.
        size: what scoring costs follow from.
    """

    parameters: int
    forward_flops: float
    factor_values: int
    tracked: int
    bytes_per_token: float
    dimension: int
    width: int
    covariance_bytes: int
    factor_groups: int
    activation_bytes: int
    size: ModelSize

    @property
    def document_values(self) -> int:
        """Numbers stored of a document: its embedding and its token features."""
        return self.dimension + feature_width(min(self.width, WIDTH))


def probe(config: RunConfig, texts: Sequence[str]) -> tuple[Rates, Shape]:
    """Measure on `texts`, a sample of the pool.

    Raises:
        ModelError: the model cannot be loaded.
        UnsupportedLayer: no block of it is supported.
    """
    started = time.perf_counter()
    with _source_folder(config) as local:
        return _probe(local, texts, time.perf_counter() - started)


@contextmanager
def _source_folder(config: RunConfig) -> Iterator[RunConfig]:
    """Give a configuration whose model every process may load fast: a GGUF file is dequantised once, for all."""
    if not is_gguf(config.model.source):
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="quad-") as folder:
        for part in load_source(config.model.source, getattr(torch, config.model.dtype)):
            part.save_pretrained(folder)
        yield config.model_copy(update={"model": config.model.model_copy(update={"source": folder})})


def _probe(config: RunConfig, texts: Sequence[str], dequantised_s: float) -> tuple[Rates, Shape]:
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
        embed_fit_byte=FIT_PRODUCTS * mean_seconds(lambda: embed(some), _n_bytes(some), LEAST_S) if counted else 0.0,
        centroid_product=_centroid_rate(dimension, LEAST_S),
        pretrain_token=train_rate(config, model, documents, FRESH_STEP_TOKENS, LEAST_S) if fresh else 0.0,
        prepare_model=0.0 if fresh else dequantised_s + built_s + _digest_s(model),
        decompose=decompose_s(config, model, blocks, max(documents, key=len)),
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
    documents = [ids for ids in encode(tokenizer, texts[:PROBED_TEXTS]) if len(ids) >= MIN_TOKENS]
    embedded = list(texts[:PROBED_TEXTS] if config.embedding.method == "ngrams" else texts[:PROBED_EMBEDDED])
    embed = _embedder(config, embedded, model, tokenizer)
    rounded = training_run(config).rounded
    projected_VP = project_embeddings(model.get_input_embeddings().weight.detach().float().cpu().numpy())
    return WorkerRates(
        **_table_rates(texts[:PROBED_TEXTS], tokenizer, least_s),
        embed_byte=mean_seconds(lambda: embed(embedded), _n_bytes(embedded), least_s)
        + mean_seconds(lambda: token_features(encode(tokenizer, embedded), projected_VP), _n_bytes(embedded), least_s),
        **model_rates(config, model, documents[:PROBED_DOCUMENTS], least_s),
        train_token=train_rate(config, model, documents, config.training.batch_tokens, least_s, rounded),
    )


def _model(config: RunConfig, texts: Sequence[str]) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load the run's model, or build an untrained one of the fresh model's shape."""
    device = pick_device(config.compute.device)
    if config.model.source != FRESH:
        loaded, tokenizer = load_source(config.model.source, getattr(torch, config.model.dtype), device)
        check_model(loaded, tokenizer, config.model.window_tokens)
        return loaded, tokenizer
    fresh = config.model.fresh
    tokenizer = train_tokenizer(texts, fresh.vocabulary)
    size = LlamaSize(fresh.width, fresh.layers, fresh.heads, fresh.key_value_heads, fresh.mlp_width)
    model: PreTrainedModel = fresh_llama(size, fresh.vocabulary, config.model.window_tokens, config.seed)
    return model.to(getattr(torch, config.model.dtype)).to(device), tokenizer


def _digest_s(model: PreTrainedModel) -> float:
    started = time.perf_counter()
    weights_sha256(model)
    return time.perf_counter() - started


def _embedder(
    config: RunConfig, texts: Sequence[str], model: PreTrainedModel, tokenizer: FastTokenizer
) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Return the run's way to embed texts; the n-gram embedder is fitted on `texts`."""
    settings, device = config.embedding.model_dump(), pick_device(config.compute.device)
    embedder: Embedder = load_plugin("embedders", config.embedding.method)
    fitted = embedder.fit(texts, settings, config.seed) if embedder.fit else {}
    return embedder.load(EmbedderInputs(settings, device, fitted, lambda: (model, tokenizer)))


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
            "ingest_byte": mean_seconds(ingest, size, least_s),
            "write_byte": mean_seconds(lambda: write(batch), size, least_s),
        }


def _centroid_rate(dimension: int, least_s: float) -> float:
    vectors = np.random.default_rng(0).standard_normal((PROBED_VECTORS, dimension)).astype(np.float32)
    arms, iterations = 50, 4
    return mean_seconds(
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
        covariance_bytes=covariance_bytes(blocks, config.factors.max_factor_width),
        factor_groups=len(group_blocks(blocks, config.factors.max_factor_width)),
        activation_bytes=4 * training.activation_bytes(model) // model.dtype.itemsize,  # training is in float32
        size=model_size(model, blocks),
    )


def is_slow_dtype(config: RunConfig) -> bool:
    """Tell whether the model's dtype is bfloat16 on a device that multiplies float32 faster."""
    device = torch.device(pick_device(config.compute.device))
    return config.model.dtype == "bfloat16" and not has_bfloat16_products(device)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
