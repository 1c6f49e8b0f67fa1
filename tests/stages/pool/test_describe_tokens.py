"""Token features of a pool: those of each document's own tokens under the version's checkpoint, computed once."""

from functools import partial

import numpy as np
import pytest
import torch
from small_pool import stored

from quad_tasks.core.lm.token_features import STATISTICS
from quad_tasks.runtime.checkpoints import load_checkpoint, save_checkpoint
from quad_tasks.runtime.run import pinned_pool, starting_checkpoint
from quad_tasks.stages.bandit.predict import FeatureSource, feature_source
from quad_tasks.stages.influence.extract_states import states_of
from quad_tasks.stages.pool import describe_tokens
from quad_tasks.stages.pool.ingest import iter_documents
from quad_tasks.storage.keys import manifest_key, shard_token_features_key
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import open_store


@pytest.fixture
def pool(small_run):
    """The workspace of a finished run, the key of its pool version, and the version."""
    store = open_store(small_run.workspace)
    key = pinned_pool(store, small_run.run)
    return store, key, read_version(store, key)


def test_a_version_holds_what_its_checkpoint_makes_of_each_documents_tokens(pool):
    store, key, version = pool
    rows = read_positions(store, key, np.arange(version.documents), ["text", "token_features"])
    found = column_vectors(rows["token_features"])
    model, tokenizer = load_checkpoint(store, starting_checkpoint(store, key), "float32", "cpu")
    weight = model.get_input_embeddings().weight.detach().double()
    assert found.shape == (version.documents, 2 * weight.shape[1] + STATISTICS)
    for text, row in zip(rows["text"].to_pylist()[::17], found[::17], strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        read, norms = weight[ids], weight[ids].norm(dim=1)
        means = torch.cat([read.mean(0), (read[:-1] * read[1:]).mean(0)])
        statistics = [len(set(ids.tolist())) / len(ids), float(norms.mean()), float(norms.std(unbiased=False))]
        np.testing.assert_allclose(row, [*means.tolist(), *statistics], rtol=1e-5, atol=1e-7)


def test_a_shards_features_have_the_same_bytes_at_any_size_of_block(pool, monkeypatch):
    store, _, version = pool
    key = shard_token_features_key(version.token_features, version.shards[0])
    before = store.get(key)
    for rows in (1, 7):
        store.delete(key)
        read = partial(iter_documents, batch_rows=rows)
        monkeypatch.setattr(describe_tokens, "iter_documents", read)
        describe_tokens.describe_shard(store, "pool", version.shards[0], version.token_features)
        assert store.get(key) == before


def test_another_checkpoint_of_the_same_tokenizer_has_features_of_its_own(pool):
    store, _, version = pool
    model, tokenizer = load_checkpoint(store, version.model, "float32", "cpu")
    described = describe_tokens.read_checkpoint_manifest(store, version.model)
    changed = {"weights_sha256": "f" * 64}
    save_checkpoint(store, "models/other", model, tokenizer, described.model_copy(update=changed))
    assert describe_tokens.read_token_embeddings.fn(store, "pool", "models/other") != version.token_features
    assert describe_tokens.read_token_embeddings.fn(store, "pool", version.model) == version.token_features
    kept = stored(store, manifest_key(version.token_features))
    assert (kept["weights_sha256"], kept["tokenizer_sha256"]) == (described.weights_sha256, described.tokenizer.sha256)


def test_a_choice_of_features_reads_what_it_names(pool, small_run):
    store, key, _ = pool
    use = small_run.model_use()
    assert feature_source(store, key, "embedding", use) == FeatureSource()
    assert feature_source(store, key, "tokens", use) == FeatureSource(tokens=True)
    assert feature_source(store, key, "hidden_states", use) == FeatureSource(True, states_of(store, key, use))
