"""The model and the text that the influence benchmarks measure on: public text, else Python's own sources."""

import gzip
import json
import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from quad_tasks.core.lm.model import FastTokenizer
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.lm.training import Schedule, count_steps, count_targets, make_optimizer, train

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


def token_rows(tokenizer: FastTokenizer, texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """Cut the texts, run together, into rows of equal length, [rows, length] int64."""
    ids = [token for document in encode(tokenizer, texts) for token in document]
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


def train_on(model: PreTrainedModel, ids_NT: Tensor, batch_tokens: int = 2048, peak: float = 2e-3) -> None:
    """Train in place, one pass over the rows."""
    documents = ids_NT.tolist()
    n_steps = count_steps(count_targets(documents), batch_tokens)
    schedule, optimizer = Schedule(peak, 0.1 * n_steps, n_steps), make_optimizer(model, 0.0)
    generator = np.random.default_rng(0)
    train(model, optimizer, documents, schedule, 0, ids_NT.shape[1], batch_tokens, batch_tokens, generator)
