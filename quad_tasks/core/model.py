"""Language models and their inputs: loading, a fresh small one, tokens, windows, padded batches.

A document's tokens are what its tokenizer gives by its own convention, special tokens included. A document longer
than the window is split into windows that overlap by one token, so that each token but the document's first is a
target exactly once: n tokens have n - 1 targets. Documents are never packed together.

Shapes: N sequences of a batch, T tokens.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

Batch = dict[str, Tensor]
END_OF_TEXT = "<|endoftext|>"


class ModelError(ValueError):
    """A model or tokenizer that cannot be loaded; the message names its source."""


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

    Raises:
        ModelError: there is no such model, or it has no safetensors weights.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source), dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{source}: expected a causal language model with safetensors weights: {_first(error)}"
        ) from None
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def load_tokenizer(source: str | Path) -> FastTokenizer:
    """Load a fast tokenizer from a Hugging Face id or a directory.

    Raises:
        ModelError: there is no such tokenizer, or it has no fast form.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source}: expected a tokenizer: {_first(error)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
    loaded: FastTokenizer = tokenizer
    return loaded


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


def split_windows(token_ids: Sequence[int], window_tokens: int) -> list[Sequence[int]]:
    """Split a document's tokens into windows of at most `window_tokens`, each starting on the last one's end.

    Windows overlap by one token, so that the targets of all windows are the document's targets, each once. Fewer
    than two tokens give no window.
    """
    starts = range(0, max(len(token_ids) - 1, 0), window_tokens - 1)
    return [token_ids[start : start + window_tokens] for start in starts]


def pad_batch(sequences: Sequence[Sequence[int]]) -> Batch:
    """Pad sequences on the right: `input_ids` and `attention_mask`, [N, T] int64."""
    length = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
        attention_mask[row, : len(sequence)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def bucket_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group sequences of like length, longest first, into batches of at most `batch_tokens`, padding included.

    A sequence longer than `batch_tokens` gets a batch of its own. The grouping depends on the lengths alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def make_batches(
    documents: Sequence[Sequence[int]], window_tokens: int, batch_tokens: int, seeds: Sequence[int] | None = None
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


def move_batches(batches: Iterable[Batch], device: str) -> Iterator[Batch]:
    """Yield each batch on `device`."""
    for batch in batches:
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def pick_device(wanted: str) -> str:
    """Resolve `auto` to `cuda` where there is a GPU, else `cpu`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
