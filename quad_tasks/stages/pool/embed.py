"""Stage: documents become unit vectors, one array per shard.

An embedding belongs to a shard's content and an embedder, not to a pool version: a new version embeds only what is
new. The n-gram embedder is fitted on a sample of the pool and kept; an encoder and the model's own states need none.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.config.schema import EmbeddingConfig
from quad_tasks.core.clustering.embed_texts import load_encoder
from quad_tasks.core.clustering.embedders import Embed, Embedder, EmbedderInputs
from quad_tasks.core.lm.model import pick_device
from quad_tasks.core.lm.tokenizer import tokenizer_sha256
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.manifests.pool import EmbedderManifest
from quad_tasks.plugins import load_plugin
from quad_tasks.runtime.checkpoints import load_checkpoint, weights_sha256
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.ingest import iter_documents, read_shard
from quad_tasks.storage import tables
from quad_tasks.storage.keys import documents_key, embedder_arrays_key, embedder_folder, embeddings_key, manifest_key
from quad_tasks.storage.manifest import check_digest, digest, read_manifest, write_manifest
from quad_tasks.storage.positions import take_rows
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import load_tensors, save_tensors

Vectors = npt.NDArray[np.float32]


@stage_task("fit embedder")
def fit_embedder(
    store: Store, pool: str, settings: EmbeddingConfig, seed: int, names: Sequence[str], model_key: str
) -> str:
    """Fit or name the embedder and return its key."""
    identity: list[Any] = [settings.model_dump(), seed]
    embedder: Embedder = load_plugin("embedders", settings.method)
    if embedder.fit:
        identity.append(names)
    if embedder.reads_model:
        identity.append(model_key)
    encoder_sha256 = None
    if settings.method == "encoder":
        encoder_sha256 = digest_encoder(settings.encoder)
        identity.append(encoder_sha256)
    key = embedder_folder(pool, digest(identity))
    if store.exists(manifest_key(key)):
        return key
    sha256 = None
    if embedder.fit:
        with working("fit embedder"):
            texts = sample_texts(store, pool, names, settings.sample_documents, seed)
            fitted = embedder.fit(texts, settings.model_dump(), seed)
        sha256 = save_tensors(store, embedder_arrays_key(key), dict(fitted), {})
    manifest = EmbedderManifest(
        embedding=settings.model_dump(), model=model_key, sha256=sha256, encoder_sha256=encoder_sha256
    )
    write_manifest(store, manifest_key(key), manifest)
    return key


def digest_encoder(source: str) -> str:
    """Digest what an encoder's vectors depend on: its weights and its tokenizer."""
    with (
        torch.random.fork_rng()
    ):  # layers that a checkpoint lacks, as a pooler no vector depends on, are drawn at random
        torch.manual_seed(0)
        encoder = load_encoder(source)
    return digest([weights_sha256(encoder.model), tokenizer_sha256(encoder.tokenizer)])


def is_current(store: Store, embedder_key: str, settings: EmbeddingConfig) -> bool:
    """Say whether an embedder still is what its settings name: an encoder may have changed under its name or path."""
    if settings.method != "encoder":
        return True
    kept = read_manifest(EmbedderManifest, store, manifest_key(embedder_key)).encoder_sha256
    return kept == digest_encoder(settings.encoder)


@stage_task("embed shards")
def embed_shards(store: Store, pool: str, names: Sequence[str], embedder_key: str, dtype: str, device: str) -> None:
    """Embed every shard that is not embedded yet; `dtype` and `device` are those of models."""
    items = [(store, pool, name, embedder_key, dtype, device) for name in names]
    map_tasks(embed_shard, items, "embed", "shards", on_gpu=True)


def embed_shard(store: Store, pool: str, name: str, embedder_key: str, dtype: str, device: str) -> None:
    """Write a shard's embeddings, [N, D] float32 unit rows in the order of its documents."""
    key = embeddings_key(pool, embedder_key, name)
    if store.exists(key):
        return
    embed = _embedding_function(store, embedder_key, dtype, device)
    batches = iter_documents(store, pool, name, ["text"])
    no_documents = embed([])  # gives an empty shard its dimension
    blocks = [no_documents, *(embed(batch["text"].to_pylist()) for batch in batches)]
    tables.write_array(store, key, np.concatenate(blocks))


@functools.lru_cache(maxsize=1)
def _embedding_function(store: Store, embedder_key: str, dtype: str, device: str) -> Embed:
    """Load what an embedder needs, once a process, and return texts -> [N, D] float32 unit rows."""
    manifest = read_manifest(EmbedderManifest, store, manifest_key(embedder_key))
    settings = EmbeddingConfig(**manifest.embedding)
    if manifest.encoder_sha256 is not None:
        found = digest_encoder(settings.encoder)
        check_digest(store, manifest_key(embedder_key), expected=manifest.encoder_sha256, got=found)
    embedder: Embedder = load_plugin("embedders", settings.method)
    fitted = load_tensors(store, embedder_arrays_key(embedder_key), manifest.sha256)[0] if embedder.fit else {}
    load_model = functools.partial(load_checkpoint, store, manifest.model, dtype, device)
    return embedder.load(EmbedderInputs(settings.model_dump(), pick_device(device), fitted, load_model))


def sample_rows(
    store: Store, pool: str, names: Sequence[str], n: int, seed: int, stream: Stream
) -> list[np.ndarray[Any, Any]]:
    """Choose `n` random documents of the pool, all where there are fewer: for each shard its chosen rows, ascending.

    A shard's choice depends on the seed, the stream and the shards' sizes alone.
    """
    sizes = [read_shard(store, pool, name).documents for name in names]
    rows = []
    for index, (size, count) in enumerate(zip(sizes, share_out(sizes, n), strict=True)):
        generator = make_generator(seed, stream, index)
        rows.append(np.sort(generator.choice(size, count, replace=False)))
    return rows


def share_out(sizes: Sequence[int], n: int) -> list[int]:
    """Share a sample of `n` out among shards by their sizes: the first shards together get their share, rounded."""
    share = min(1.0, n / sum(sizes))
    ends = [round(end * share) for end in itertools.accumulate(sizes)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def sample_texts(store: Store, pool: str, names: Sequence[str], n: int, seed: int) -> list[str]:
    """Read the sample of texts the n-gram embedder is fitted on, each shard's on a worker."""
    chosen = zip(names, sample_rows(store, pool, names, n, seed, Stream.EMBEDDER_SAMPLE), strict=True)
    items = [(store, pool, name, rows) for name, rows in chosen if len(rows)]
    return [text for texts in map_tasks(read_texts, items, "sample texts", "shards") for text in texts]


def read_texts(store: Store, pool: str, name: str, rows: npt.NDArray[np.int64]) -> list[str]:
    """Read the texts of a shard's ascending `rows`, from the row groups they stand in."""
    seal = read_shard(store, pool, name).documents_seal
    texts: list[str] = take_rows(store, documents_key(pool, name), rows, ["text"], seal)["text"].to_pylist()
    return texts
