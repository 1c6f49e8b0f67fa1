import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from quad_tasks.core.lm.batching import pad_batch
from quad_tasks.core.lm.model import LlamaSize, ModelError, check_model, fresh_llama, load_model
from quad_tasks.core.lm.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["the ship left the harbour", "rain fell on the deck", "a gull cried over the mast"] * 4


def test_a_fresh_model_follows_its_seed_and_leaves_the_global_generator_alone():
    size = LlamaSize(width=16, layers=1, heads=2, key_value_heads=1, mlp_width=24)
    before = torch.random.get_rng_state()
    first, second, other = (fresh_llama(size, 64, 32, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_source_that_is_no_model_is_named(load, tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path}: expected a"):
        load(tmp_path)


ROPES = {
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [1.0, 4.0]},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "default": {"rope_type": "default"},
}  # fmt: skip


def rotary_model(kind):
    """A model of 32 positions whose rotary settings are of this kind; `longrope` was trained on 16 and has 64."""
    shape = {"vocab_size": 300, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "pad_token_id": 0}
    rope = {**ROPES[kind], "rope_theta": 10_000.0}
    if kind == "longrope":
        config = Phi3Config(
            **shape, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            original_max_position_embeddings=16, rope_parameters=rope,
        )  # fmt: skip
        return Phi3ForCausalLM(config).double().eval()
    config = LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=32, rope_parameters=rope)
    return LlamaForCausalLM(config).double().eval()


def first_logits(model, document, longer):
    """A document's logits in a batch beside a longer one."""
    batch = pad_batch([document, longer])["input_ids"]
    with torch.no_grad():
        return model(input_ids=batch).logits[0, : len(document)]


@pytest.mark.parametrize(("kind", "longest"), [("longrope", 16), ("dynamic", 32)])
def test_positions_that_follow_the_batch_are_refused_past_the_original_length(kind, longest):
    model, tokenizer = rotary_model(kind), train_tokenizer(TEXTS, 300)
    document = list(range(5, 15))
    alone = first_logits(model, document, document)
    torch.testing.assert_close(first_logits(model, document, list(range(longest))), alone)
    assert not torch.allclose(first_logits(model, document, list(range(longest + 8))), alone)
    check_model(model, tokenizer, longest)
    message = f"model.window_tokens: expected at most {longest}, .* found {longest + 1}: .* type '{kind}'"
    with pytest.raises(ModelError, match=message):
        check_model(model, tokenizer, longest + 1)


def test_settings_for_each_type_of_layer_are_all_looked_at():
    model, tokenizer = rotary_model("default"), train_tokenizer(TEXTS, 300)
    model.config.rope_parameters = {"sliding_attention": ROPES["default"], "full_attention": ROPES["dynamic"]}
    with pytest.raises(ModelError, match="of type 'dynamic'"):
        check_model(model, tokenizer, 33)


@pytest.mark.parametrize("kind", ["default", "llama3"])
def test_positions_that_do_not_follow_the_batch_may_pass_the_original_length(kind):
    model = rotary_model(kind)
    document = list(range(5, 15))
    alone = first_logits(model, document, document)
    torch.testing.assert_close(first_logits(model, document, list(range(64))), alone)
    check_model(model, train_tokenizer(TEXTS, 300), 64)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_window_longer_than_the_learned_positions_is_refused(tiny, family):
    model, tokenizer = tiny.tiny_model(family), train_tokenizer(TEXTS, 300)
    model.resize_token_embeddings(300, mean_resizing=False)
    check_model(model, tokenizer, 32)
    with pytest.raises(ModelError, match=r"expected at most 32, the positions that .* has learned, found 33"):
        check_model(model, tokenizer, 33)


def test_token_ids_without_an_embedding_are_refused():
    tokenizer = train_tokenizer(TEXTS, 300)
    last = len(tokenizer) - 1
    model = fresh_llama(LlamaSize(16, 1, 2, 1, 24), last + 1, 32, 0)
    check_model(model, tokenizer, 32)
    smaller = fresh_llama(LlamaSize(16, 1, 2, 1, 24), last, 32, 0)
    with pytest.raises(ModelError, match=f"expected token ids below {last}, .*, found id {last}"):
        check_model(smaller, tokenizer, 32)
