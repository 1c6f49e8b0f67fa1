"""Stage: documents become unit vectors, one array per shard.

An embedding belongs to a shard's content and an embedder, not to a pool version: a new version embeds only what is
new. The n-gram embedder is fitted on a sample of the pool and kept; an encoder and the model's own states need none.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import EmbeddingConfig, RunConfig
from quad_tasks.core import embedding
from quad_tasks.core.model import pick_device
from quad_tasks.ingest import documents_key, shard_manifest_key
from quad_tasks.progress import working
from quad_tasks.storage import pool as tables
from quad_tasks.storage.factors import load_tensors, save_tensors
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store, open_store

BLOCK_ROWS = 1024
Vectors = npt.NDArray[np.float32]


@step("fit embedder")
def fit_embedder(config: RunConfig, names: list[str], model_key: str) -> str:
    """Fit or name the embedder and return its key."""
    store = open_store(config.workspace)
    settings = config.embedding.model_dump()
    identity: list[Any] = [settings, config.seed]
    if config.embedding.method == "ngrams":
        identity.append(names)
    if config.embedding.method == "model":
        identity.append(model_key)
    key = f"pools/{config.pool.name}/embedders/{digest(identity)[:12]}"
    if store.exists(f"{key}/manifest.json"):
        return key
    body: dict[str, Any] = {"embedding": settings, "model": model_key}
    if config.embedding.method == "ngrams":
        with working("fit embedder"):
            texts = sample_texts(store, config, names)
            embedder = embedding.fit_ngram_embedder(texts, config.embedding.dimension, config.seed)
        body["sha256"] = save_tensors(store, f"{key}/embedder.safetensors", embedding.embedder_to_arrays(embedder), {})
    write_manifest(store, f"{key}/manifest.json", body)
    return key


@step("embed shards")
def embed_shards(config: RunConfig, names: list[str], embedder_key: str) -> None:
    """Embed every shard that is not embedded yet."""
    compute = (config.model.dtype, pick_device(config.compute.device))
    items = [(config.workspace, config.pool.name, name, embedder_key, *compute) for name in names]
    spread(embed_shard, items, "embed", "shards", on_gpu=True)


def embed_shard(workspace: str, pool: str, name: str, embedder_key: str, dtype: str, device: str) -> None:
    """Write a shard's embeddings, [N, D] float32 unit rows in the order of its documents."""
    store = open_store(workspace)
    key = embeddings_key(pool, embedder_key, name)
    if store.exists(key):
        return
    embed = _embedding_function(workspace, embedder_key, dtype, device)
    batches = tables.iter_batches(store, documents_key(pool, name), ["text"], BLOCK_ROWS)
    no_documents = embed([])  # gives an empty shard its dimension
    blocks = [no_documents, *(embed(batch["text"].to_pylist()) for batch in batches)]
    tables.write_array(store, key, np.concatenate(blocks))


@functools.lru_cache(maxsize=1)
def _embedding_function(workspace: str, embedder_key: str, dtype: str, device: str) -> Callable[[list[str]], Vectors]:
    """Load what an embedder needs, once a process, and return texts -> [N, D] float32 unit rows."""
    store = open_store(workspace)
    manifest = read_manifest(store, f"{embedder_key}/manifest.json")
    settings = EmbeddingConfig(**manifest["embedding"])
    if settings.method == "ngrams":
        arrays, _ = load_tensors(store, f"{embedder_key}/embedder.safetensors")
        return functools.partial(embedding.embed_ngrams, embedding.embedder_from_arrays(arrays))
    if settings.method == "encoder":
        encoder = embedding.load_encoder(settings.encoder, device)
        return functools.partial(
            embedding.embed_encoder, encoder, pooling=settings.pooling, max_tokens=settings.max_tokens
        )
    model, tokenizer = load_checkpoint(workspace, manifest["model"], dtype, device)
    return functools.partial(embedding.embed_hidden_states, model, tokenizer, max_tokens=settings.max_tokens)


def embeddings_key(pool: str, embedder_key: str, shard: str) -> str:
    """Return the key of a shard's embeddings under one embedder."""
    return f"pools/{pool}/embeddings/{embedder_key.rsplit('/', 1)[-1]}/{shard}.npy"


def sample_rows(store: Store, config: RunConfig, names: list[str], n: int, purpose: int) -> list[np.ndarray[Any, Any]]:
    """Choose about `n` random documents of the pool: for each shard its chosen rows, ascending.

    A shard's choice depends on the seed, the purpose and the shards' sizes alone.
    """
    pool = config.pool.name
    sizes = [read_manifest(store, shard_manifest_key(pool, name))["documents"] for name in names]
    share = min(1.0, n / sum(sizes))
    rows = []
    for index, size in enumerate(sizes):
        generator = np.random.default_rng([config.seed, purpose, index])
        rows.append(np.sort(generator.choice(size, round(size * share), replace=False)))
    return rows


def sample_texts(store: Store, config: RunConfig, names: list[str]) -> list[str]:
    """Read the sample of texts the n-gram embedder is fitted on."""
    texts: list[str] = []
    chosen = sample_rows(store, config, names, config.embedding.sample_documents, purpose=1)
    for name, rows in zip(names, chosen, strict=True):
        start = 0
        for batch in tables.iter_batches(store, documents_key(config.pool.name, name), ["text"], BLOCK_ROWS):
            here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
            texts.extend(batch["text"].take(here).to_pylist())
            start += batch.num_rows
    return texts
