"""Write a Llama of no size as a GGUF file with llama.cpp's own package: its MLP quantised, the rest as it is."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from quad_tasks.core.lm.tokenizer import train_tokenizer

WIDTH, HEADS, LAYERS, MLP, POSITIONS = 32, 2, 2, 64, 128
TEXTS = ["the ship left the harbour", "rain fell on the deck", "a gull cried over the mast"] * 4
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(path: Path, kind: str = "Q8_0") -> PreTrainedModel:
    """Write the file and return the model before it was quantised; `kind` is the type of the MLP's tensors."""
    import gguf

    tokenizer = train_tokenizer(TEXTS, 300)
    vocabulary, merges = _parts(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            _add(writer, name, weight, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _parts(tokenizer) -> tuple[list[str], list[str]]:
    import json

    body = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(body["vocab"], key=body["vocab"].get)
    return vocabulary, [" ".join(pair) if isinstance(pair, list) else pair for pair in body["merges"]]


def _add(writer, name: str, weight: torch.Tensor, kind: str) -> None:
    import gguf

    if name == "model.embed_tokens.weight":
        writer.add_tensor("token_embd.weight", weight.numpy())
    elif name == "model.norm.weight":
        writer.add_tensor("output_norm.weight", weight.numpy())
    else:
        _, _, layer, rest = name.split(".", 3)
        module = rest.removesuffix(".weight")
        there = f"blk.{layer}.{NAMES[module]}.weight"
        if module.startswith("mlp."):
            wanted = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(there, gguf.quants.quantize(weight.numpy(), wanted), raw_dtype=wanted)
        elif module.endswith(("q_proj", "k_proj")):  # llama.cpp pairs a head's neighbouring rows for its rotation
            pairs = weight.view(HEADS, 2, WIDTH // HEADS // 2, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)
            writer.add_tensor(there, pairs.contiguous().numpy())
        else:
            writer.add_tensor(there, weight.numpy())
