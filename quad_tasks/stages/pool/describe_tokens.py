"""Stage: every document's features of its tokens, which influence is predicted from and no pass of the model is for.

They belong to a shard's content and a checkpoint, weights and tokenizer: another checkpoint has its own, and a new pool
version computes those of new shards alone. The layout in arm order stores them beside the embeddings.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.core.lm.token_features import WIDTH, feature_width, project_embeddings, token_features
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.manifests.pool import TokenFeaturesManifest
from quad_tasks.runtime.checkpoints import load_checkpoint_tokenizer, read_checkpoint, read_checkpoint_manifest
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.pool.ingest import iter_documents, read_shard
from quad_tasks.storage import tables
from quad_tasks.storage.keys import (
    manifest_key,
    shard_token_features_key,
    token_embeddings_key,
    token_features_folder,
)
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import Store

RULES = 1
"""Counts changes of how features are computed; those of other rules are computed anew."""


@stage_task("read token embeddings")
def read_token_embeddings(store: Store, pool: str, model_key: str) -> str:
    """Write a checkpoint's input embeddings, projected, once; return the key of the features made from them."""
    checkpoint = read_checkpoint_manifest(store, model_key)
    made_by = [checkpoint.weights_sha256, checkpoint.tokenizer.sha256, WIDTH, RULES]
    key = token_features_folder(pool, digest(made_by))
    if store.exists(manifest_key(key)):
        return key
    with working("read token embeddings"):
        model, _ = read_checkpoint(store, model_key, "float32", "cpu")
        weight = model.get_input_embeddings().weight.detach().to(torch.float32).numpy()
        projected_VP = project_embeddings(weight)
    sha256 = tables.write_array(store, token_embeddings_key(key), projected_VP)
    width = feature_width(projected_VP.shape[1])
    manifest = TokenFeaturesManifest(
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=checkpoint.tokenizer.sha256,
        model=model_key,
        width=width,
        sha256=sha256,
    )
    write_manifest(store, manifest_key(key), manifest)
    return key


@stage_task("describe tokens")
def describe_tokens(store: Store, pool: str, names: Sequence[str], features: str) -> None:
    """Compute the features of every shard that has none yet."""
    map_tasks(describe_shard, [(store, pool, name, features) for name in names], "describe tokens", "shards")


def describe_shard(store: Store, pool: str, name: str, features: str) -> None:
    """Write a shard's features, [N, F] float32 in the order of its documents, block by block."""
    key = shard_token_features_key(features, name)
    if store.exists(key):
        return
    shape = read_shard(store, pool, name).documents, read_token_features(store, features).width
    tables.write_array_stream(store, key, shape, np.dtype(np.float32), _blocks(store, pool, name, features))


def read_token_features(store: Store, features: str) -> TokenFeaturesManifest:
    """Read the manifest of token features."""
    return read_manifest(TokenFeaturesManifest, store, manifest_key(features))


def _blocks(store: Store, pool: str, name: str, features: str) -> Iterator[npt.NDArray[np.float32]]:
    made = read_token_features(store, features)
    tokenizer = load_checkpoint_tokenizer(store, made.model)
    embedding_VP = tables.read_array(store, token_embeddings_key(features), made.sha256)
    for batch in iter_documents(store, pool, name, ["text"]):
        yield token_features(encode(tokenizer, batch["text"].to_pylist()), embedding_VP)
