"""Load or train a tokenizer, and turn texts into token ids.

A document's tokens are what its tokenizer gives by its own convention, special tokens included.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.lm.model import ModelError, cause

END_OF_TEXT = "<|endoftext|>"


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


def encode(tokenizer: FastTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts by the tokenizer's own convention, without truncation."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    return ids
