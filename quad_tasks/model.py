"""Stage: the checkpoint whose data is chosen: loaded from its source, or made fresh from a sample of the pool."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.checkpoints import save_checkpoint, save_source, weights_sha256
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import training
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.model import (
    LlamaSize,
    encode,
    fresh_llama,
    load_model,
    load_tokenizer,
    pick_device,
    tokenizer_sha256,
    train_tokenizer,
)
from quad_tasks.core.order import order_key
from quad_tasks.progress import progress, working
from quad_tasks.records import Document, Shard
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.readers import Fields, read_documents
from quad_tasks.storage.store import open_store

FRESH = "fresh"
SAMPLE_BYTES_PER_TOKEN = 4  # a little above what byte-level BPE needs for mixed text, so that the sample suffices
SAMPLE_SHARDS = 256
FRESH_BATCH_TOKENS = 1024  # many small steps: a small model on a small sample learns more from them than from few large
FRESH_WARMUP_SHARE = 0.05
FRESH_WEIGHT_DECAY = 0.1


@step("prepare model")
def prepare_model(config: RunConfig, shards: list[Shard]) -> str:
    """Return the key of the starting checkpoint; a fresh model is trained where it is not there yet.

    Raises:
        ModelError: the source cannot be loaded.
        UnsupportedLayer: the model has no block the influence engine supports.
    """
    store = open_store(config.workspace)
    if config.model.source == FRESH:
        settings = config.model.fresh.model_dump()
        contents = [[shard.uri, shard.sha256] for shard in shards]
        key = f"models/{digest([settings, config.model.window_tokens, config.seed, contents])[:12]}"
        if not store.exists(f"{key}/manifest.json"):
            model, tokenizer = _make_fresh(config, shards)
            save_checkpoint(store, key, model, tokenizer, _describe(config, model, tokenizer))
        return key
    model = load_model(config.model.source)
    tokenizer = load_tokenizer(config.model.source)
    find_blocks(model, config.factors.attention)
    info = _describe(config, model, tokenizer)
    key = f"models/{digest(info)[:12]}"
    save_source(store, key, config.model.source, info)
    return key


def _describe(config: RunConfig, model: PreTrainedModel, tokenizer: FastTokenizer) -> dict[str, Any]:
    name = "fresh byte-level BPE" if config.model.source == FRESH else config.model.source
    return {
        "name": config.model.source,
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": weights_sha256(model),
        "tokenizer": {"name": name, "sha256": tokenizer_sha256(tokenizer), "vocabulary": len(tokenizer)},
    }


def _make_fresh(config: RunConfig, shards: list[Shard]) -> tuple[PreTrainedModel, FastTokenizer]:
    """Train a tokenizer and a small Llama on a sample of the pool's text."""
    settings = config.model.fresh
    texts = _sample_texts(config, shards)
    with working("train tokenizer"):
        tokenizer = train_tokenizer(texts, settings.vocabulary)
    documents, total = [], 0
    for ids in encode(tokenizer, texts):
        if total >= settings.train_tokens:
            break
        documents.append(ids)
        total += len(ids)
    size = LlamaSize(settings.width, settings.layers, settings.heads, settings.key_value_heads, settings.mlp_width)
    model = fresh_llama(size, len(tokenizer), config.model.window_tokens, config.seed)
    model.to(pick_device(config.compute.device))
    schedule = training.Schedule(settings.learning_rate, FRESH_WARMUP_SHARE * total, total)
    optimizer = training.make_optimizer(model, FRESH_WEIGHT_DECAY)
    with progress("pretrain fresh model", total, "tokens") as advance:
        training.train(
            model,
            optimizer,
            documents,
            schedule,
            tokens_before=0,
            window_tokens=config.model.window_tokens,
            batch_tokens=FRESH_BATCH_TOKENS,
            generator=np.random.default_rng([config.seed, 7]),
            progress=advance,
        )
    return model, tokenizer


def _sample_texts(config: RunConfig, shards: list[Shard]) -> list[str]:
    """Draw texts from up to `SAMPLE_SHARDS` shards, each giving bytes in proportion to its file's size."""
    generator = np.random.default_rng([config.seed, 8])
    chosen = np.sort(generator.choice(len(shards), min(SAMPLE_SHARDS, len(shards)), replace=False))
    files = [shards[i] for i in chosen]
    wanted = SAMPLE_BYTES_PER_TOKEN * config.model.fresh.train_tokens
    total = sum(shard.size_bytes for shard in files)
    fields = config.pool.fields.model_dump()
    items = [(s.uri, fields, config.seed, int(wanted * s.size_bytes / total) + 1) for s in files]
    drawn = [text for texts in spread(sample_shard, items, "sample pool", "shards") for text in texts]
    return [drawn[i] for i in generator.permutation(len(drawn))]


def sample_shard(uri: str, fields: dict[str, str], seed: int, n_bytes: int) -> list[str]:
    """Draw random documents of one input file until they hold `n_bytes` of UTF-8; memory is that of one file's ids."""
    keyed = [(order_key(seed, r.id), len(r.text.encode())) for r in _documents(uri, fields)]
    size, limit = 0, -1
    for key, length in sorted(keyed):
        if size >= n_bytes:
            break
        size, limit = size + length, key
    return [r.text for r in _documents(uri, fields) if order_key(seed, r.id) <= limit]


def _documents(uri: str, fields: dict[str, str]) -> Iterator[Document]:
    return (r for r in read_documents(uri, Fields(**fields)) if isinstance(r, Document))
