import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from quad_tasks.core.blocks import UnsupportedLayer, blocks_from_tensor, blocks_to_tensor, find_blocks, matching_blocks

BLOCKS_PER_LAYER = {  # joint, split, none
    "llama": (5, 7, 3),
    "mistral": (5, 7, 3),
    "qwen2": (5, 7, 3),
    "qwen3": (5, 7, 3),
    "opt": (4, 6, 2),
    "gpt2": (4, 6, 2),
    "gpt_neox": (4, 6, 2),
    "phi3": (5, 7, 3),
}


@pytest.mark.parametrize("family", BLOCKS_PER_LAYER)
def test_every_family_has_its_blocks_under_each_attention_setting(tiny, family):
    model = tiny.tiny_model(family)
    counts = tuple(len(find_blocks(model, attention)) for attention in ("joint", "split", "none"))
    assert counts == tuple(2 * count for count in BLOCKS_PER_LAYER[family])


def test_joint_block_stacks_query_key_value_in_order(tiny):
    block = find_blocks(tiny.tiny_model("llama"))[0]
    names = tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv")
    assert (block.name, block.modules, block.shape) == ("model.layers.0.self_attn.qkv", names, (16 + 8 + 8, 16))


def test_bias_adds_the_constant_input_coordinate_to_the_blocks_that_have_one(tiny):
    blocks = {block.name.rpartition(".")[2]: block for block in find_blocks(tiny.tiny_model("qwen2"))}
    assert [(blocks[name].bias, blocks[name].shape[1]) for name in ("qkv", "o_proj")] == [(True, 17), (False, 16)]


def test_blocks_that_read_one_input_share_their_source(tiny):
    blocks = find_blocks(tiny.tiny_model("llama"), "split")[:7]
    sources = [block.source.rpartition(".")[2] for block in blocks]
    assert sources == ["q_proj"] * 3 + ["o_proj"] + ["gate_proj"] * 2 + ["down_proj"]


def test_split_of_a_head_interleaved_map_takes_each_head_s_rows(tiny):
    query, key, value = find_blocks(tiny.tiny_model("gpt_neox"), "split")[:3]
    assert query.rows == ((0, 4), (12, 16), (24, 28), (36, 40))
    assert key.rows == ((4, 8), (16, 20), (28, 32), (40, 44))
    assert value.rows == ((8, 12), (20, 24), (32, 36), (44, 48))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_split_rows_of_a_fused_map_are_what_the_forward_pass_uses_as_query(tiny, family):
    """A query and key that are zeroed, value kept: attention is uniform over the past, whatever the input."""
    model = tiny.tiny_model(family)
    model.set_attn_implementation("eager")
    for block in find_blocks(model, "split"):
        if block.name.rpartition(".")[2] in ("q", "k"):
            module = model.get_submodule(block.modules[0])
            with torch.no_grad():
                for start, stop in block.rows:
                    columns = module.weight if isinstance(module, nn.Linear) else module.weight.T
                    columns[start:stop] = 0
                    if block.bias:
                        module.bias[start:stop] = 0
    document = tiny.random_documents([5])[0]
    attentions = model(input_ids=document[None], output_attentions=True).attentions
    uniform = torch.tril(torch.ones(5, 5, dtype=torch.float64)) / torch.arange(1, 6)[:, None]
    for attention in attentions:
        torch.testing.assert_close(attention[0, 0], uniform)


def test_a_direction_s_names_find_their_blocks_again(tiny):
    model = tiny.tiny_model("phi3")
    for attention in ("joint", "split", "none"):
        blocks = find_blocks(model, attention)
        assert matching_blocks(model, [block.name for block in blocks]) == blocks


def test_names_of_another_model_match_no_blocks(tiny):
    with pytest.raises(ValueError, match="expected the block names of this model, got"):
        matching_blocks(tiny.tiny_model("gpt2"), ["model.layers.0.self_attn.qkv"])


def test_blocks_survive_their_encoding_as_a_tensor(tiny):
    blocks = find_blocks(tiny.tiny_model("gpt_neox"), "split")
    assert list(blocks_from_tensor(blocks_to_tensor(blocks))) == blocks


def test_unknown_attention_setting_is_refused(tiny):
    with pytest.raises(ValueError, match="expected 'joint', 'split' or 'none', got 'all'"):
        find_blocks(tiny.tiny_model("llama"), "all")


def test_mixture_of_experts_is_refused_by_name():
    config = MixtralConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, pad_token_id=None,
    )  # fmt: skip
    with pytest.raises(
        UnsupportedLayer, match=r"'mixtral' is not in the table \(it has model.layers.0.mlp.*supported: llama"
    ):
        find_blocks(MixtralForCausalLM(config))


def test_a_subclassed_linear_layer_is_refused_by_name(tiny):
    """Quantised and adapter layers subclass nn.Linear and keep their weights elsewhere."""

    class PackedLinear(nn.Linear):
        pass

    model = tiny.tiny_model("llama")
    model.set_submodule("model.layers.1.mlp.up_proj", PackedLinear(16, 10, bias=False))
    with pytest.raises(UnsupportedLayer, match=r"model.layers.1.mlp.up_proj: expected .* got PackedLinear"):
        find_blocks(model)


def test_an_extra_weight_matrix_in_a_layer_is_refused_by_name(tiny):
    model = tiny.tiny_model("llama")
    model.model.layers[1].mlp.router = nn.Linear(16, 2)
    with pytest.raises(UnsupportedLayer, match=r"model.layers.1.mlp.router \(Linear\): expected only"):
        find_blocks(model)


def test_a_missing_module_is_refused_by_name(tiny):
    model = tiny.tiny_model("llama")
    del model.model.layers[0].mlp.gate_proj
    with pytest.raises(UnsupportedLayer, match=r"model.layers.0.mlp.gate_proj: .* no such module"):
        find_blocks(model)


def test_a_model_without_layers_is_refused(tiny):
    model = tiny.tiny_model("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedLayer, match=r"model.layers: expected a non-empty list"):
        find_blocks(model)


def test_biases_on_some_of_a_block_s_maps_are_refused(tiny):
    model = tiny.tiny_model("llama")
    model.model.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.zeros(16, dtype=torch.float64))
    with pytest.raises(UnsupportedLayer, match=r"self_attn.qkv: expected all of .* with a bias or none"):
        find_blocks(model)
