"""Training on what was chosen, from a laboratory's checkpoint, and measuring what it gained and what others paid.

Every trial is one item of work on a Dask worker: a set of rows and a seed in, losses out. The workspace keeps what came
out, so that a rerun, or another experiment in the same laboratory, goes on from what was trained before.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from quad_tasks.core.diversity import diversity_profile
from quad_tasks.core.training import bits_per_byte, measure
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.laboratory import Laboratory, encode_windows, open_laboratory
from quad_tasks.experiments.outcome import continue_training, loss_per_token

Int64 = npt.NDArray[np.int64]

CONTINUED_RATE = 1e-3
PROFILED_DOCUMENTS = 400
"""Diversity is compared on equal numbers of documents."""


def train_trials(laboratory: Laboratory, trials: Sequence[tuple[Int64, int]]) -> list[dict[str, Any]]:
    """Train and measure, trial by trial.

    Args:
        laboratory: whose checkpoint is trained.
        trials: rows to train on, and the seed of their order.

    Returns:
        For each, as `measure_model`, and `train_s`.
    """
    items = [(laboratory.workspace, laboratory.key, np.sort(rows).tolist(), seed) for rows, seed in trials]
    return kept(train_trial, items, "train", "models")


def train_trial(workspace: str, key: str, rows: Sequence[int], seed: int) -> dict[str, Any]:
    """Train on some rows, on a worker; measure."""
    laboratory = open_laboratory(workspace, key)
    started, size = time.process_time(), laboratory.size
    chosen = [laboratory.documents[row] for row in rows]
    batch_tokens = 2 * size.batch_tokens
    model = continue_training(laboratory.model, chosen, CONTINUED_RATE, size.window_tokens, batch_tokens, seed)
    took = time.process_time() - started
    return {**measure_model(laboratory, model), "train_s": took}


def measure_model(laboratory: Laboratory, model: PreTrainedModel) -> dict[str, Any]:
    """Measure a model on everything held out.

    Returns:
        `reference_loss`, nats per token; `domains`, bits per byte of each other domain; and over those,
        `other_domains_bpb`, their mean, and `worst_domain_bpb`, None where there is none.
    """
    size, tokenizer = laboratory.size, laboratory.tokenizer
    measured = encode_windows(tokenizer, laboratory.texts.measured, size)
    domains = {}
    for name, texts in laboratory.texts.others.items():
        documents = encode_windows(tokenizer, texts, size)
        n_bytes = sum(len(tokenizer.decode(ids).encode()) for ids in documents)
        domains[name] = bits_per_byte(measure(model, documents, size.window_tokens, size.batch_tokens)[0], n_bytes)
    values = list(domains.values())
    return {
        "reference_loss": loss_per_token(model, measured, size.window_tokens, size.batch_tokens),
        "domains": domains,
        "other_domains_bpb": float(np.mean(values)) if values else None,
        "worst_domain_bpb": max(values, default=None),
    }


def profile(laboratory: Laboratory, rows: Int64) -> Mapping[str, float]:
    """Measure how diverse a selection is, on a random part of it (`core.diversity.diversity_profile`)."""
    n_arms = int(laboratory.arm.max()) + 1
    drawn = np.random.default_rng(0).permutation(rows)[:PROFILED_DOCUMENTS]
    return diversity_profile(
        [laboratory.texts.pool[row] for row in drawn],
        laboratory.embedding[drawn],
        np.bincount(laboratory.arm[rows], minlength=n_arms),
        np.bincount(laboratory.arm, minlength=n_arms),
    )
