"""How much of the achievable influence is reached when only a share of the pool is scored.

The truth: every document of a sample of the shared data scored once, by a small Llama trained on a part of it, against
LAMBADA passages. A strategy sees the truth of the documents it pays for and predicts the rest; the best eighth of the
pool by measured or predicted influence is its selection.

    share = (mean influence of the selection - mean of the pool) / (mean of the true best eighth - mean of the pool)

    python tests/benchmarks/bench_bandit.py --cache /tmp/quad-truth [--json]

The truth is built once (about 15 minutes on one core) and kept under --cache.

Shape suffixes: N documents, D features, K arms.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.loss import frozen
from quad_tasks.core.model import LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.training import Schedule, make_optimizer, train

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
N_DOCUMENTS = 16_000
N_REFERENCE = 400
N_TRAINED = 6_400
N_FACTORS = 768
WINDOW = 128
BATCH_TOKENS = 1024
VOCABULARY = 4096
SIZE = LlamaSize(width=160, layers=3, heads=5, key_value_heads=5, mlp_width=432)
PEAK_RATE = 3e-3


def read_texts(folder: Path) -> list[str]:
    """All texts of a folder's shards, in the order of their names."""
    texts = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def build_truth(seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Train the model, score every document, and keep what a strategy may use as features."""
    generator = np.random.default_rng(seed)
    pool = read_texts(DATA / "candidate")
    texts = [pool[i] for i in generator.choice(len(pool), size=N_DOCUMENTS, replace=False)]
    reference = read_texts(DATA / "reference")[:N_REFERENCE]
    tokenizer = train_tokenizer(texts[:N_TRAINED], VOCABULARY)
    ids = [tokens[:WINDOW] for tokens in encode(tokenizer, texts)]
    model = fresh_llama(SIZE, len(tokenizer), WINDOW, seed)
    n_tokens = sum(len(tokens) for tokens in ids[:N_TRAINED])
    schedule = Schedule(PEAK_RATE, 0.05 * n_tokens, n_tokens)
    train(model, make_optimizer(model, 0.01), ids[:N_TRAINED], schedule, 0, WINDOW, 2 * BATCH_TOKENS, generator)
    log(f"trained on {n_tokens} tokens")
    factor_batches, _ = make_batches(ids[-N_FACTORS:], WINDOW, BATCH_TOKENS)
    factors = fit_factors(model, factor_batches, generator=torch.Generator().manual_seed(seed))
    reference_ids = [tokens[:WINDOW] for tokens in encode(tokenizer, reference)]
    blocks = find_blocks(model)
    direction = apply_inverse(factors, reference_gradient(model, make_batches(reference_ids, WINDOW, BATCH_TOKENS)[0], blocks))
    log("fitted the direction")
    batches, owners = make_batches(ids, WINDOW, BATCH_TOKENS)
    scores = score_documents(model, batches, direction)
    influence = np.empty(N_DOCUMENTS)
    influence[owners.numpy()] = scores.influence / scores.n_tokens
    log("scored every document")
    states, losses = states_and_losses(model, batches)
    hidden, loss = np.empty_like(states), np.empty_like(losses)
    hidden[owners.numpy()], loss[owners.numpy()] = states, losses
    return {
        "influence": influence,
        "hidden": hidden,
        "loss": loss,
        "n_tokens": np.array([len(tokens) for tokens in ids]),
        "n_bytes": np.array([len(text.encode()) for text in texts]),
        "texts": np.array(texts),
    }


def states_and_losses(model: Any, batches: Sequence[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Mean final hidden state and mean loss per target of each document, one forward pass."""
    states, losses = [], []
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            output = model(**batch, output_hidden_states=True, use_cache=False)
            mask = batch["attention_mask"]
            states.append((output.hidden_states[-1] * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
            nll = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none"
            ).view(mask.shape[0], -1)
            losses.append((nll * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1))
    return torch.cat(states).numpy(), torch.cat(losses).double().numpy()


def log(message: str) -> None:
    """Say on stderr what was done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
