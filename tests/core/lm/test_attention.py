"""Attention without a mask gives what the model's own gives, and the model is left as it was found."""

import pytest
import torch

from quad_tasks.core.lm.attention import OWN, causal_attention


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_neox", "phi3"])
def test_states_are_the_models_own(tiny, family):
    """Mistral's tiny window is shorter than the sequences: it keeps its mask."""
    model = tiny.tiny_model(family)
    ids = torch.stack(tiny.random_documents([9, 9]))
    with torch.no_grad():
        expected = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        with causal_attention(model, ids.shape[1]):
            found = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(found, expected)


def test_a_window_as_long_as_the_sequences_needs_no_mask(tiny):
    model = tiny.tiny_model("mistral")
    with causal_attention(model, model.config.sliding_window):
        assert model.config._attn_implementation == OWN
    with causal_attention(model, model.config.sliding_window + 1):
        assert model.config._attn_implementation == "sdpa"


def test_a_model_is_left_as_it_was_found_whatever_happens(tiny):
    model = tiny.tiny_model("llama")
    with pytest.raises(RuntimeError, match="stop"), causal_attention(model, 4):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


def test_another_attention_than_torchs_is_kept(tiny):
    model = tiny.tiny_model("llama")
    model.set_attn_implementation("eager")
    with causal_attention(model, 4):
        assert model.config._attn_implementation == "eager"
