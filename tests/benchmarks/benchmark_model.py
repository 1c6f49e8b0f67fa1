"""The model and the text that the influence benchmarks measure on: public text where it is, else Python's own sources."""

import gzip
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
VOCABULARY = 8192
LENGTH = 256

Batch = dict[str, Tensor]


def read_texts(folder: Path, n_per_file: int) -> dict[str, list[str]]:
    """Read the first texts of every .jsonl.gz file in a folder, by file name."""
    texts: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            texts[path.name.removesuffix(".jsonl.gz")] = [
                json.loads(line)["text"] for line, _ in zip(lines, range(n_per_file), strict=False)
            ]
    return texts


def corpus(n_per_file: int = 600) -> tuple[list[str], list[str]]:
    """Give the pool's texts, shuffled, and the reference's: prose where it is, else modules and tests of Python."""
    if (SHARED / "data").is_dir():
        pool = [text for texts in read_texts(SHARED / "data" / "candidate", n_per_file).values() for text in texts]
        reference = [text for texts in read_texts(SHARED / "data" / "reference", n_per_file).values() for text in texts]
    else:
        root = Path(sysconfig.get_path("stdlib"))
        pool = [path.read_text("utf-8", "replace") for path in sorted(root.glob("*.py"))]
        reference = [path.read_text("utf-8", "replace") for path in sorted((root / "json").glob("*.py"))]
    random.Random(0).shuffle(pool)
    return pool, reference


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """Cut the texts, run together, into rows of equal length, [rows, length] int64."""
    ids = [token for encoding in tokenizer.encode_batch(list(texts)) for token in encoding.ids]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def batches_of(ids_NT: Tensor, size: int) -> list[Batch]:
    """Cut rows into batches; seeds are row numbers."""
    seeds = torch.arange(len(ids_NT))
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "seed": seed}
        for ids, seed in zip(ids_NT.split(size), seeds.split(size), strict=True)
    ]


def build_llama() -> PreTrainedModel:
    """Build the 8.5M-parameter Llama: width 256, 6 layers, 8 heads of which 4 key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def train(model: PreTrainedModel, ids_NT: Tensor, steps: int, batch_size: int, learning_rate: float) -> Iterator[float]:
    """Train in place with AdamW and a linear decay to zero; yield each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        ids = ids_NT[torch.randint(len(ids_NT), (batch_size,), generator=generator)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay.step()
        yield float(loss)
    model.eval()
