"""A sample is shared out among shards of any number and size; an encoder that changed has vectors of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from quad_tasks.config.schema import EmbeddingConfig
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.stages.pool.embed import embed_shard, fit_embedder, is_current, share_out
from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.store import open_store


def test_many_small_shards_give_their_share():
    """Each one's share of a sample is 0.4 documents: rounded shard by shard, it would be none of 30,000."""
    assert sum(share_out([1] * 30_000, 12_000)) == 12_000


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any), st.integers(1, 400))
def test_every_shard_gives_its_share_within_one_and_all_give_the_sample(sizes, n):
    counts = np.array(share_out(sizes, n))
    share = min(1.0, n / sum(sizes))
    assert counts.sum() == round(sum(sizes) * share)
    assert (np.abs(counts - np.array(sizes) * share) <= 1).all()
    assert (counts >= 0).all()
    assert (counts <= sizes).all()


@pytest.fixture
def encoder(tmp_path):
    """A tiny encoder in a directory, without the pooler, which each load draws anew."""
    tokenizer = train_tokenizer(["rain cloud storm wind"] * 4, 300)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape))
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, metadata={"format": "pt"})
    return tmp_path / "encoder"


def test_an_encoder_that_changed_under_its_path_is_another_embedder(tmp_path, encoder):
    store, settings = open_store(str(tmp_path / "w")), EmbeddingConfig(method="encoder", encoder=str(encoder))
    first = fit_embedder.fn(store, "p", settings, 0, [], "models/m")
    assert fit_embedder.fn(store, "p", settings, 0, [], "models/m") == first
    assert is_current(store, first, settings)
    path = encoder / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"] += torch.tensor(1e-3)
    save_file(weights, path, metadata={"format": "pt"})
    assert not is_current(store, first, settings)
    assert fit_embedder.fn(store, "p", settings, 0, [], "models/m") != first
    with pytest.raises(DigestMismatch, match=r"expected digest [0-9a-f]{64}, got"):
        embed_shard(store, "p", "a", first, "float32", "cpu")
