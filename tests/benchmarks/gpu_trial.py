"""A trial of the whole method on one device, by the core functions alone: pretrain, fit, score, choose, train, measure.

A Llama of SmolLM2-135M's shape is pretrained on the pool's text, repeated, for as long as there is time; a reference of
one domain gives the direction; a tenth of the scored tokens is chosen by influence per token, or at random; both
trainings start from one checkpoint. Text is `../shared/data` where it is there, else Python's own sources.
"""

import copy
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from benchmark_model import SHARED, corpus, read_texts
from transformers import PreTrainedModel

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.covariance import accumulate_covariances
from quad_tasks.core.ekfac import accumulate_eigenvalues, apply_inverse, decompose, finish
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.measurement import measure
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer
from quad_tasks.core.lm.training import Schedule, TrainingRecord, count_steps, count_targets, make_optimizer, train

SEED = 0
MODEL, TINY_MODEL = LlamaSize(576, 30, 9, 3, 1536), LlamaSize(32, 2, 2, 2, 64)
ROWS = 49152
"""Of the embedding, as SmolLM2 has them; the tokenizer trained here fills a third."""
WINDOW, TINY_WINDOW = 1024, 64
PRETRAIN_RATE, RATE = 1e-3, 1e-4
RESERVED_S = 100.0
"""For what comes after pretraining, and the parts after the trial."""


class _TimeUp(Exception):
    """Pretraining has had its time."""


def run_trial(device: str, tiny: bool, train_tokens: int, left_s: Callable[[], float]) -> dict[str, Any]:
    """Run the trial; every stage's seconds and tokens are in the report."""
    generator, times = np.random.default_rng(SEED), {}
    window, batch_tokens = (TINY_WINDOW, 512) if tiny else (WINDOW, 32768)
    started = time.perf_counter()
    pool, reference, heldout = _texts(tiny)
    tokenizer = train_tokenizer(pool[:: max(1, len(pool) // 3000)], 400 if tiny else 16384)
    documents = [ids for ids in encode(tokenizer, pool) if len(ids) > 1]
    model = fresh_llama(TINY_MODEL if tiny else MODEL, len(tokenizer) if tiny else ROWS, window, SEED).to(device)
    times["prepare"] = time.perf_counter() - started

    started = time.perf_counter()
    seen = _pretrain(model, documents, 20_000 if tiny else train_tokens, window, batch_tokens, tiny, left_s)
    times["pretrain"] = time.perf_counter() - started

    started = time.perf_counter()
    direction, fitted = _direction(model, documents, encode(tokenizer, reference), window, batch_tokens, tiny, device)
    times["fit"] = time.perf_counter() - started

    started = time.perf_counter()
    sample = [documents[i] for i in generator.permutation(len(documents))[: 200 if tiny else 8000]]
    per_token, scored = _score(model, sample, direction, window, batch_tokens)
    times["score"] = time.perf_counter() - started
    budget = scored // 10
    orders = {"selected": np.argsort(-per_token), "random": generator.permutation(len(sample))}
    chosen = {name: _take(sample, order, budget) for name, order in orders.items()}

    losses = {"before": _measure(model, tokenizer, heldout, window, batch_tokens)}
    for name, texts in chosen.items():
        started = time.perf_counter()
        trained = copy.deepcopy(model)
        _train(trained, texts, RATE, window, batch_tokens, 1024 if tiny else 16384, budget)
        times[f"train_{name}"] = time.perf_counter() - started
        losses[name] = _measure(trained, tokenizer, heldout, window, batch_tokens)
        del trained
        gc.collect()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "text": "../shared/data" if (SHARED / "data").is_dir() else "Python sources",
        "pool_tokens": sum(map(len, documents)),
        "pretrained_tokens": seen,
        "pretrain_tokens_per_s": seen / times["pretrain"],
        "fitted_documents": fitted,
        "scored_tokens": scored,
        "chosen_tokens": budget,
        "loss": losses,
        "reference_gain_over_random": losses["random"]["reference"] - losses["selected"]["reference"],
        "seconds": times,
    }


def _texts(tiny: bool) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Give the pool's texts, shuffled, the reference's, and held-out texts by domain, `reference` its own."""
    pool, reference = corpus(20 if tiny else 100_000)
    half = len(reference) // 2
    heldout = {"reference": reference[half:][: 20 if tiny else 400]}
    if (SHARED / "data").is_dir():
        others = read_texts(SHARED / "data" / "heldout", 4 if tiny else 40)
        heldout |= {name: texts for name, texts in others.items() if name != "lambada"}
    if tiny:
        pool = [text[:400] for text in pool[:300]]
        heldout = {name: [text[:400] for text in texts] for name, texts in heldout.items()}
    return pool, [text[:400] if tiny else text for text in reference[:half][: 20 if tiny else 400]], heldout


def _pretrain(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    wanted: int,
    window: int,
    batch_tokens: int,
    tiny: bool,
    left_s: Callable[[], float],
) -> int:
    """Pretrain on documents, repeated, until the tokens are seen or the time is up; return the targets seen."""
    passes = -(-wanted // count_targets(documents))
    repeated = list(itertools.chain.from_iterable([documents] * passes))
    seen = 0

    def count(record: TrainingRecord) -> None:
        nonlocal seen
        seen = record.target_tokens
        if left_s() < RESERVED_S and not tiny:
            raise _TimeUp

    try:
        step = 2048 if tiny else 65536
        _train(model, repeated, PRETRAIN_RATE, window, batch_tokens, step, wanted, count)
    except _TimeUp:
        model.zero_grad(set_to_none=True)
    return seen


def _train(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    rate: float,
    window: int,
    batch_tokens: int,
    step_tokens: int,
    max_targets: int,
    after_step: Callable[[TrainingRecord], object] | None = None,
) -> None:
    steps = count_steps(min(max_targets, count_targets(documents)), step_tokens)
    schedule, optimizer = Schedule(rate, 0.05 * steps, steps), make_optimizer(model, 0.01)
    generator = np.random.default_rng(SEED)
    limits = (window, step_tokens, batch_tokens)
    more = {"max_targets": max_targets, "rounded": True, "after_step": after_step}
    train(model, optimizer, documents, schedule, 0, *limits, generator, **more)


def _direction(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    window: int,
    batch_tokens: int,
    tiny: bool,
    device: str,
) -> tuple[dict[str, torch.Tensor], int]:
    """Fit the factors on a sample of the pool and turn the reference gradient into its direction."""
    low = copy.deepcopy(model).to(torch.bfloat16)
    blocks = find_blocks(low)
    sample = [ids[:window] for ids in documents[: 40 if tiny else 512]]
    batches, _ = make_batches(sample, window, batch_tokens, seeds=list(range(len(sample))))
    basis = decompose(accumulate_covariances(low, batches, blocks, rounded=True), device)
    factors = finish(basis, accumulate_eigenvalues(low, batches, basis, rounded=True))
    gradient = reference_gradient(
        low, make_batches([ids for ids in reference if len(ids) > 1], window, batch_tokens)[0], blocks
    )
    return apply_inverse(factors, gradient), len(sample)


def _score(
    model: PreTrainedModel,
    sample: Sequence[Sequence[int]],
    direction: dict[str, torch.Tensor],
    window: int,
    batch_tokens: int,
) -> tuple[np.ndarray[Any, Any], int]:
    """Score documents; return influence per token, [N], and the tokens scored."""
    low = copy.deepcopy(model).to(torch.bfloat16)
    batches, owner_W = make_batches(sample, window, batch_tokens)
    scores = score_documents(low, batches, {name: V.to(low.device) for name, V in direction.items()})
    owner = owner_W.numpy()
    targets = np.bincount(owner, scores.n_tokens, minlength=len(sample))
    return np.bincount(owner, scores.influence, minlength=len(sample)) / targets, int(targets.sum())


def _take(sample: Sequence[Sequence[int]], order: np.ndarray[Any, Any], budget: int) -> list[Sequence[int]]:
    """Take documents in an order until they hold the budget's targets."""
    taken, targets = [], 0
    for i in order:
        if targets >= budget:
            break
        taken.append(sample[i])
        targets += len(sample[i]) - 1
    return taken


def _measure(
    model: PreTrainedModel, tokenizer: Any, heldout: dict[str, list[str]], window: int, batch_tokens: int
) -> dict[str, float]:
    """Measure nats per token of every held-out domain."""
    low = copy.deepcopy(model).to(torch.bfloat16)
    sums = {name: measure(low, encode(tokenizer, texts), window, batch_tokens) for name, texts in heldout.items()}
    return {name: nats / targets for name, (nats, targets) in sums.items()}
