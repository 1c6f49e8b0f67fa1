"""The pool's tables: embeddings by every method, and a version found again when nothing changed."""

import numpy as np
import pytest
from small_pool import TOPICS, small_config, topic_records
from transformers import BertConfig, BertModel

from flows.refresh_pool import refresh_pool
from quad_tasks.config import parse_config
from quad_tasks.core.model import train_tokenizer
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import column_vectors, read_table
from quad_tasks.storage.store import open_store

pytestmark = pytest.mark.usefixtures("prefect_server", "dask_client")


def vectors_of(config, version):
    store = open_store(config.workspace)
    parts = read_manifest(store, version)["parts"]
    return np.concatenate([column_vectors(read_table(store, p["key"], ["embedding"])["embedding"]) for p in parts])


def test_the_models_own_states_embed_the_pool(corpus, tmp_path):
    config = parse_config(small_config(corpus, str(tmp_path), embedding={"method": "model"}), "states")
    vectors = vectors_of(config, refresh_pool(config))
    assert vectors.shape[1] == config.model.fresh.width
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_hugging_face_encoder_embeds_the_pool(corpus, tmp_path):
    texts = [str(record["text"]) for topic in TOPICS for record in topic_records(topic, 20, seed=5)]
    train_tokenizer(texts, 320).save_pretrained(tmp_path / "encoder")
    size = BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(size).save_pretrained(tmp_path / "encoder")
    method = {"method": "encoder", "encoder": str(tmp_path / "encoder"), "max_tokens": 32}
    config = parse_config(small_config(corpus, str(tmp_path / "workspace"), embedding=method), "encoder")
    vectors = vectors_of(config, refresh_pool(config))
    assert vectors.shape[1] == 16
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_refresh_that_finds_nothing_new_gives_the_same_version(corpus, tmp_path):
    config = parse_config(small_config(corpus, str(tmp_path)), "twice")
    first = refresh_pool(config)
    keys = open_store(config.workspace).list("pools")
    assert refresh_pool(config) == first
    assert open_store(config.workspace).list("pools") == keys
