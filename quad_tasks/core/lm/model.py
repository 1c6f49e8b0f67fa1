"""Load language models and check that they fit the window, or build a fresh one.

Refuses models whose result for a document would depend on the documents beside it, and windows or tokens that a model
has no parameters for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

SHOWN_TENSORS = 3
HEADS = ("lm_head.weight", "embed_out.weight")
CAUSE_CHARACTERS = 200


class ModelError(ValueError):
    """A model or tokenizer that cannot be loaded or used; the message names its source, or the key to change."""


@dataclass(frozen=True)
class LlamaSize:
    """Shape of a fresh Llama: all counts, no unit."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp_width: int


def load_model(source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """Load a causal language model from a Hugging Face id or a directory, in eval mode; remote code is never run.

    Args:
        source: a Hugging Face id or a directory.
        dtype: of the weights.
        device: where they are put.

    Raises:
        ModelError: there is no such model, it has no safetensors weights, or these are not the tensors it needs.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(source),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # the libraries beneath raise of any kind
        raise ModelError(
            f"{source}: expected a causal language model with safetensors weights: {cause(error)}"
        ) from None
    check_names(source, report)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def check_names(source: str | Path, report: Mapping[str, Any]) -> None:
    """Check that a checkpoint's tensors are those of its model: one it lacks would keep random values, in silence.

    Args:
        source: names the checkpoint in messages.
        report: what transformers says of a load: `missing_keys`, `unexpected_keys` and `mismatched_keys`.

    Raises:
        ModelError: a tensor is missing, left over or of another shape.
    """
    missing, over = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    other = [
        f"{name} {list(stored)} in place of {list(own)}" for name, stored, own in sorted(report["mismatched_keys"])
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN_TENSORS])}{', ...' if len(names) > SHOWN_TENSORS else ''})"
        for what, names in (("missing", missing), ("left over", over), ("of another shape", other))
        if names
    ]
    if found:
        raise ModelError(
            f"{source}: expected the tensors that its config.json describes, found {', '.join(found)}"
            f"{_advice(missing, over)}"
        )


def _advice(missing: Sequence[str], over: Sequence[str]) -> str:
    """Say why names differ, where that shows."""
    prefixes = {name.split(".")[0] for name in over}
    if len(prefixes) == 1 and missing:
        prefix = f"{prefixes.pop()}."
        if set(missing) <= {name.removeprefix(prefix) for name in over}:
            return f"; their names begin with {prefix!r}, a wrapper's: save the model inside it"
    if any(name.endswith(HEADS) for name in missing):
        return "; without its head the model would be scored on random weights: save it as a causal language model"
    return ""


def build_architecture(source: str | Path) -> PreTrainedModel:
    """Build a causal language model without weights, on torch's `meta` device, from a Hugging Face id or a directory.

    Raises:
        ModelError: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source}: expected a causal language model: {cause(error)}") from None
    return model.eval()


def check_model(model: PreTrainedModel, tokenizer: FastTokenizer, window_tokens: int) -> None:
    """Check that a model can take windows of this length and every token of its tokenizer.

    Args:
        model: a causal language model.
        tokenizer: its own.
        window_tokens: longest sequence that will be scored, measured or trained on.

    Raises:
        ModelError: positions that follow the longest document of a batch past the model's original length (RoPE of type
            `longrope` or `dynamic`), a window longer than the learned positions, or a token id without an embedding.
    """
    for rope in _rope_settings(model):
        _check_rope(model, rope, window_tokens)
    rows = int(model.get_input_embeddings().weight.shape[0])
    if _has_learned_positions(model) and window_tokens > model.config.max_position_embeddings:
        raise ModelError(
            f"model.window_tokens: expected at most {model.config.max_position_embeddings}, the positions that "
            f"{_name(model)} has learned, found {window_tokens}"
        )
    piece, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise ModelError(
            f"{_name(model)}: expected token ids below {rows}, the rows of its embedding, found id {largest}, "
            f"{piece!r}, in its tokenizer"
        )


def _check_rope(model: PreTrainedModel, rope: Mapping[str, Any], window_tokens: int) -> None:
    """Refuse rotary positions whose frequencies change with the longest sequence of a batch."""
    kind, longest = str(rope.get("rope_type", "default")), model.config.max_position_embeddings
    if kind == "longrope":
        longest = rope.get("original_max_position_embeddings") or longest
    elif "dynamic" not in kind:
        return
    if window_tokens > longest:
        raise ModelError(
            f"model.window_tokens: expected at most {longest}, the original length of {_name(model)}, found "
            f"{window_tokens}: with rotary positions of type {kind!r} a document's loss and influence would then "
            "depend on the longest document of its batch"
        )


def _rope_settings(model: PreTrainedModel) -> list[Mapping[str, Any]]:
    """List the settings of a model's rotary positions: one set, or one for each type of layer."""
    settings = getattr(model.config, "rope_parameters", None) or {}
    by_layer_type = [one for one in settings.values() if isinstance(one, Mapping)]
    return by_layer_type or [settings]


def _has_learned_positions(model: PreTrainedModel) -> bool:
    """Tell whether the model adds an embedding of the position: its only embedding beside that of the tokens."""
    tokens = model.get_input_embeddings()
    return any(isinstance(module, nn.Embedding) and module is not tokens for module in model.modules())


def _name(model: PreTrainedModel) -> str:
    return str(model.config.name_or_path or type(model).__name__)


def fresh_llama(size: LlamaSize, vocabulary: int, window_tokens: int, seed: int) -> PreTrainedModel:
    """Build a Llama with random weights drawn from `seed`; the global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.mlp_width,
        max_position_embeddings=window_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def pick_device(wanted: str) -> str:
    """Resolve `auto` to `cuda` where there is a GPU, else `cpu`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def cause(error: Exception) -> str:
    """Return an error's kind and the start of its message, as one line."""
    lines = " ".join(str(error).split())
    return f"{type(error).__name__}: {lines[:CAUSE_CHARACTERS]}".removesuffix(": ")
