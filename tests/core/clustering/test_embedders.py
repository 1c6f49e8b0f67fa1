"""The product's own embedders keep the contract that extensions are held to."""

import pytest

from quad_tasks.core.clustering.embedders import STATES, EmbedderInputs
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.testing import TEXTS, check_embedder


@pytest.mark.parametrize("max_tokens", [4, 64])
def test_the_models_states_keep_the_contract(max_tokens):
    tokenizer = train_tokenizer(list(TEXTS), vocabulary=320)
    size = LlamaSize(width=16, layers=2, heads=2, key_value_heads=2, mlp_width=32)
    model = fresh_llama(size, 320, 64, seed=0)
    given = EmbedderInputs({"max_tokens": max_tokens}, "cpu", {}, lambda: (model, tokenizer))
    check_embedder(STATES, given)
