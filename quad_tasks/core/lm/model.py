"""Load language models and tokenizers, check that they fit the window, and turn texts into padded batches.

A document's tokens are what its tokenizer gives by its own convention, special tokens included. A document longer
than the window is split into windows that overlap by one token, so that each token but the document's first is a
target exactly once: n tokens have n - 1 targets. Documents are never packed together. Refuses models whose result for
a document would depend on the documents beside it, and windows or tokens that a model has no parameters for.

Shapes: N sequences of a batch, T tokens.
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

Batch = dict[str, Tensor]
Tokens = Sequence[int] | npt.NDArray[np.int32]
"""Token ids of a document or a window of it."""
END_OF_TEXT = "<|endoftext|>"
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


def load_tokenizer(source: str | Path) -> FastTokenizer:
    """Load a fast tokenizer from a Hugging Face id or a directory.

    Raises:
        ModelError: there is no such tokenizer, or it has no fast form.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # the libraries beneath raise of any kind
        raise ModelError(f"{source}: expected a tokenizer: {cause(error)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
    loaded: FastTokenizer = tokenizer
    return loaded


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


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> FastTokenizer:
    """Train a byte-level BPE tokenizer of at most `vocabulary` entries; it adds no special tokens to a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return FastTokenizer(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def tokenizer_sha256(tokenizer: FastTokenizer) -> str:
    """Return the sha256 of the tokenizer's full definition (vocabulary, merges, normalisation)."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


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


def encode(tokenizer: FastTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts by the tokenizer's own convention, without truncation."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    return ids


def split_windows(token_ids: Tokens, window_tokens: int) -> list[Tokens]:
    """Split a document's tokens into windows of at most `window_tokens`, each starting on the last one's end.

    Windows overlap by one token, so that the targets of all windows are the document's targets, each once. Fewer
    than two tokens give no window.
    """
    starts = range(0, max(len(token_ids) - 1, 0), window_tokens - 1)
    return [token_ids[start : start + window_tokens] for start in starts]


def pad_batch(sequences: Sequence[Tokens]) -> Batch:
    """Pad sequences on the right: `input_ids` and `attention_mask`, [N, T] int64."""
    length = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
        attention_mask[row, : len(sequence)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def bucket_batches(lengths: Sequence[int], batch_tokens: int, least_share: float = 0.0) -> list[list[int]]:
    """Group sequences of like length, longest first, into batches of at most `batch_tokens`, padding included.

    A sequence longer than `batch_tokens` gets a batch of its own. The grouping depends on the lengths alone.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: tokens of a batch, padding included.
        least_share: a batch's shortest sequence has at least this share of its longest one's tokens.

    Returns:
        The sequences' indices, batch by batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens and lengths[i] >= least_share * longest:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def make_batches(
    documents: Sequence[Tokens], window_tokens: int, batch_tokens: int, seeds: Sequence[int] | None = None
) -> tuple[list[Batch], Tensor]:
    """Turn tokenized documents into padded, length-bucketed batches of windows.

    Args:
        documents: token ids of each document.
        window_tokens: longest sequence.
        batch_tokens: tokens of a batch, padding included.
        seeds: one per document; a batch then carries `seed` [N] int64, the seed of each window's sampled labels.

    Returns:
        The batches, and the document's index of every window in the order in which the batches hold them, [N] int64.
    """
    windows = [
        (index, w, part)
        for index, ids in enumerate(documents)
        for w, part in enumerate(split_windows(ids, window_tokens))
    ]
    groups = bucket_batches([len(part) for _, _, part in windows], batch_tokens)
    batches = []
    for group in groups:
        batch = pad_batch([windows[i][2] for i in group])
        if seeds is not None:
            row_seeds = [(seeds[windows[i][0]] + windows[i][1]) % 2**63 for i in group]
            batch["seed"] = torch.tensor(row_seeds, dtype=torch.int64)
        batches.append(batch)
    owners = [windows[i][0] for i in itertools.chain.from_iterable(groups)]
    return batches, torch.tensor(owners, dtype=torch.int64)


def pick_device(wanted: str) -> str:
    """Resolve `auto` to `cuda` where there is a GPU, else `cpu`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def cause(error: Exception) -> str:
    """Return an error's kind and the start of its message, as one line."""
    lines = " ".join(str(error).split())
    return f"{type(error).__name__}: {lines[:CAUSE_CHARACTERS]}".removesuffix(": ")
