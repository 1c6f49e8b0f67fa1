"""Stage: the checkpoint whose data is chosen: loaded from its source, or made fresh from a sample of the pool."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.config.model import ModelConfig
from quad_tasks.config.schema import FieldNames
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import training
from quad_tasks.core.lm.model import LlamaSize, check_model, fresh_llama, pick_device
from quad_tasks.core.lm.source import dequantised, describe_gguf, is_gguf, load_source
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer
from quad_tasks.core.random_order import order_key
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.records import Document, Shard
from quad_tasks.runtime.check_checkpoint import check_checkpoint, check_values, model_tensors
from quad_tasks.runtime.checkpoints import (
    describe_checkpoint,
    keep_steps,
    resume_steps,
    save_checkpoint,
    weights_sha256,
)
from quad_tasks.runtime.contamination import HeldOutText
from quad_tasks.runtime.processes.memory import explained_out_of_memory
from quad_tasks.runtime.progress import notice, progress, working
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.ingest import identify
from quad_tasks.storage.input_documents import Fields, read_documents
from quad_tasks.storage.keys import manifest_key, model_folder, steps_key
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.store import Store

FRESH = "fresh"
Attention = Literal["joint", "split", "none"]
SAMPLE_BYTES_PER_TOKEN = 4  # a little above what byte-level BPE needs for mixed text, so that the sample suffices
SAMPLE_SHARDS = 256
FRESH_STEP_TOKENS = 1024  # many small steps: a small model on a small sample learns more from them than from few large
FRESH_WARMUP_SHARE = 0.05
FRESH_WEIGHT_DECAY = 0.1
PRETRAIN = "pretrain fresh model"
SMALLER_FRESH = "lower model.window_tokens or the sizes under model.fresh, or set compute.device to cpu"
"""What to change where a device's memory is too small for that: neither a command nor fewer workers help."""


@stage_task("prepare model")
def prepare_model(
    store: Store,
    settings: ModelConfig,
    attention: Attention,
    fields: FieldNames,
    seed: int,
    device: str,
    shards: list[Shard],
    held_out: HeldOutText | None = None,
    checkpoint_every_s: float = math.inf,
) -> str:
    """Return the key of the starting checkpoint; a fresh model is trained where it is not there yet.

    An interrupted training of a fresh model goes on from the state that was kept last.

    Args:
        store: the workspace.
        settings: the model's source, or the size and training of a fresh one.
        attention: the blocks that factors will be fitted of.
        fields: names of the records' fields.
        seed: of the run.
        device: a fresh model is trained on it.
        shards: the pool's input files and spans of files.
        held_out: a fresh model is not trained on text that holds this; None: on any.
        checkpoint_every_s: seconds between the states of its training that are kept.

    Raises:
        ModelError: the source cannot be loaded, is not finite, or does not fit `model.window_tokens`.
        OutOfDeviceMemory: the device does not hold the training of a fresh model.
        UnsupportedLayer: the model has no block the influence engine supports.
    """
    if settings.source == FRESH:
        contents = [identify(shard) for shard in shards]
        known = held_out.identity(store) if held_out else ()
        key = model_folder(digest([fresh_identity(settings, fields, known), seed, contents]))
        if not store.exists(manifest_key(key)):
            texts = _sample_texts(store, fields, settings.fresh.train_tokens, seed, shards, held_out)
            model, tokenizer = _make_fresh(store, key, checkpoint_every_s, settings, texts, seed, device)
            described = describe_checkpoint(FRESH, "fresh byte-level BPE", model, tokenizer)
            save_checkpoint(store, key, model, tokenizer, described)
        store.delete(steps_key(key))
        return key
    check_checkpoint(settings.source, settings.window_tokens, attention)
    model, tokenizer = load_source(settings.source)
    find_blocks(model, attention)
    check_model(model, tokenizer, settings.window_tokens)
    check_values(settings.source, model_tensors(model))
    described = describe_checkpoint(settings.source, settings.source, model, tokenizer)
    identity = described.model_dump(include={"name", "architecture", "parameters", "weights_sha256", "tokenizer"})
    key = model_folder(digest(identity))
    if is_gguf(settings.source):
        stored = describe_gguf(settings.source)
        notice(f"{settings.source}: {describe_dequantised(stored)}")
        if not store.exists(manifest_key(key)):
            described = described.model_copy(update={"dequantised": dequantised(stored)})
            save_checkpoint(store, key, model, tokenizer, described)
        return key
    source = {"source": settings.source, "bfloat16_sha256": weights_sha256(model, torch.bfloat16)}
    write_manifest(store, manifest_key(key), described.model_copy(update=source))
    return key


def describe_dequantised(stored: dict[str, int]) -> str:
    """Say which of a GGUF file's tensors were dequantised, e.g. `210 tensors dequantised (210 of type Q4_1)`."""
    changed = dequantised(stored)
    kinds = ", ".join(f"{n} of type {kind}" for kind, n in sorted(changed.items(), key=lambda item: -item[1]))
    kept = sum(stored.values()) - sum(changed.values())
    return f"{sum(changed.values())} tensors dequantised ({kinds or 'none'}), {kept} taken as stored"


def fresh_identity(settings: ModelConfig, fields: FieldNames, held_out: tuple[str, ...]) -> list[Any]:
    """Return what determines a fresh model beside pool and seed; `held_out` as `HeldOutText.identity` returns it."""
    return [training.METHOD, settings.fresh.model_dump(), settings.window_tokens, fields.text, fields.id, held_out]


@explained_out_of_memory(PRETRAIN, SMALLER_FRESH)
def _make_fresh(
    store: Store,
    key: str,
    checkpoint_every_s: float,
    settings: ModelConfig,
    texts: list[str],
    seed: int,
    device: str,
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Train a tokenizer and a small Llama on a sample of the pool's text, going on where an attempt stopped."""
    size = settings.fresh
    with working("train tokenizer"):
        tokenizer = train_tokenizer(texts, size.vocabulary)
    documents, total = [], 0
    for ids in encode(tokenizer, texts):
        if total >= size.train_tokens:
            break
        documents.append(ids)
        total += len(ids)
    shape = LlamaSize(size.width, size.layers, size.heads, size.key_value_heads, size.mlp_width)
    model = fresh_llama(shape, len(tokenizer), settings.window_tokens, seed)
    model.to(pick_device(device))
    targets = training.count_targets(documents)
    steps = training.count_steps(targets, FRESH_STEP_TOKENS)
    schedule = training.Schedule(size.learning_rate, FRESH_WARMUP_SHARE * steps, steps)
    optimizer = training.make_optimizer(model, FRESH_WEIGHT_DECAY)
    resumed = resume_steps(store, key, model, optimizer)
    keep, told = keep_steps(store, key, model, optimizer, checkpoint_every_s), 0
    with progress(PRETRAIN, targets, "tokens") as advance:

        def after_step(record: training.TrainingRecord) -> None:
            nonlocal told
            advance(record.target_tokens - told)
            told = record.target_tokens
            keep(record)

        training.train(
            model,
            optimizer,
            documents,
            schedule,
            steps_before=0,
            window_tokens=settings.window_tokens,
            step_tokens=FRESH_STEP_TOKENS,
            batch_tokens=FRESH_STEP_TOKENS,
            generator=make_generator(seed, Stream.FRESH_MODEL_TRAINING),
            resumed=resumed,
            after_step=after_step,
        )
    return model, tokenizer


def _sample_texts(
    store: Store, fields: FieldNames, train_tokens: int, seed: int, shards: list[Shard], held_out: HeldOutText | None
) -> list[str]:
    """Draw texts from up to `SAMPLE_SHARDS` shards, each giving bytes in proportion to its stored size."""
    generator = make_generator(seed, Stream.FRESH_MODEL_SAMPLE)
    chosen = np.sort(generator.choice(len(shards), min(SAMPLE_SHARDS, len(shards)), replace=False))
    drawn_from = [shards[i] for i in chosen]
    wanted = SAMPLE_BYTES_PER_TOKEN * train_tokens
    sizes = [s.span.end - s.span.start if s.span else s.size_bytes for s in drawn_from]
    share = [int(wanted * size / sum(sizes)) + 1 for size in sizes]
    items = [(s, fields.model_dump(), seed, n, store, held_out) for s, n in zip(drawn_from, share, strict=True)]
    drawn = [text for texts in map_tasks(sample_shard, items, "sample pool", "shards") for text in texts]
    return [drawn[i] for i in generator.permutation(len(drawn))]


def sample_shard(
    shard: Shard, fields: dict[str, str], seed: int, n_bytes: int, store: Store, held_out: HeldOutText | None
) -> list[str]:
    """Draw random documents of one shard until they hold `n_bytes` of UTF-8; leave out what holds held-out text.

    Memory is that of one shard's ids. What is drawn has nothing to do with the order in which arms are pulled, whose
    first documents would else be those that the model was trained on.
    """
    keyed = [(_sample_key(seed, r), len(r.text.encode())) for r in _documents(shard, fields)]
    size, limit = 0, -1
    for key, length in sorted(keyed):
        if size >= n_bytes:
            break
        size, limit = size + length, key
    texts = [r.text for r in _documents(shard, fields) if _sample_key(seed, r) <= limit]
    return held_out.clean(store, texts) if held_out else texts


def _sample_key(seed: int, document: Document) -> int:
    return order_key(seed, f"{FRESH}: {document.id}")


def _documents(shard: Shard, fields: dict[str, str]) -> Iterator[Document]:
    return (r for r in read_documents(shard.uri, Fields(**fields), shard.span) if isinstance(r, Document))
