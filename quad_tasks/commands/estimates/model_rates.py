"""What a unit of each kind of a model's work takes in this process, in seconds: fit, scoring, losses, training.

Each measurement stops after about the seconds it is given, or after one call where that takes longer. A large model
gets short batches, and a first group of its blocks stands for all factors, so that a plan takes a minute and less
memory than the run.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from transformers import PreTrainedModel

from quad_tasks.config.schema import RunConfig
from quad_tasks.core import covariance, ekfac, influence
from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.lm import measurement, training
from quad_tasks.core.lm.batching import Batch, make_batches, split_windows
from quad_tasks.core.lm.model import pick_device
from quad_tasks.stages.influence.factor_memory import covariance_bytes, group_blocks

TOO_LONG_S = 2.0
"""A first call that takes this long is the measurement; a shorter one warms up."""
PROBED_FLOPS = 1e11
"""Of one batch's forward and backward pass on a CPU, about: seconds there. A large model's batches are cut to it."""


def model_rates(
    config: RunConfig, model: PreTrainedModel, documents: Sequence[Sequence[int]], least_s: float
) -> dict[str, float]:
    """Measure what reads documents with the model as it is: fit, reference gradient, scoring, losses."""
    limits = (config.model.window_tokens, _batch_tokens(config, model))
    blocks, fisher = find_blocks(model, config.factors.attention), config.factors.fisher
    rounded = config.factors.rounds_products(config.model.dtype)
    batches, _ = make_batches(documents, *limits)
    first, _ = make_batches([split_windows(ids, limits[0])[0] for ids in documents], *limits)
    generator = torch.Generator().manual_seed(config.seed)
    some = list(group_blocks(blocks, config.factors.max_factor_width)[0])

    def sums(batches: Iterable[Batch]) -> covariance.Covariances:
        return covariance.accumulate_covariances(model, batches, some, fisher, generator, rounded=rounded)

    basis = ekfac.decompose(sums(first[:1]))
    passes = [
        _per_token(sums, first, least_s),
        _per_token(lambda b: ekfac.accumulate_eigenvalues(model, b, basis, fisher, generator, rounded), first, least_s),
    ]
    gradient = _per_token(lambda b: influence.gradient_sums(model, b, blocks), batches, least_s)
    alone = gradient
    if len(some) < len(blocks):  # without the sums: a forward and a backward pass of one block
        alone = _per_token(lambda b: influence.gradient_sums(model, b, some[:1]), first, least_s)
    times = covariance_bytes(blocks, None) / covariance_bytes(some, None)
    direction, _ = influence.gradient_sums(model, first[:1], blocks)
    direction = {name: tensor.to(model.device) for name, tensor in direction.items()}
    return {
        "fit_token": sum(taken + (times - 1) * max(0.0, taken - alone) for taken in passes),
        "gradient_token": gradient,
        "score_token": _per_token(lambda b: influence.score_documents(model, b, direction), batches, least_s),
        "measure_token": _per_token(lambda b: measurement.token_losses(model, b), batches, least_s),
    }


def decompose_s(config: RunConfig, model: PreTrainedModel, blocks: list[Block], ids: Sequence[int]) -> float:
    """Time the eigendecompositions of every block's covariances, of a large model by those of its first blocks."""
    batches, _ = make_batches([ids], config.model.window_tokens, _batch_tokens(config, model))
    generator = torch.Generator().manual_seed(config.seed)
    some = list(group_blocks(blocks, config.factors.max_factor_width)[0])
    sums = covariance.accumulate_covariances(model, batches[:1], some, config.factors.fisher, generator)
    times = covariance_bytes(blocks, None) / covariance_bytes(some, None)
    return times * _once(lambda: ekfac.decompose(sums, pick_device(config.compute.device)))


def train_rate(
    config: RunConfig,
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    step_tokens: int,
    least_s: float,
    rounded: bool = False,
) -> float:
    """Train at a learning rate of 0 for a while; return seconds per target token, but for the first step."""
    model = model.float()
    optimizer = training.make_optimizer(model, config.training.weight_decay)
    generator = np.random.default_rng(config.seed)
    batch_tokens = _batch_tokens(config, model)
    limits = (config.model.window_tokens, min(step_tokens, training.pass_tokens(model)), batch_tokens)
    steps = [(time.perf_counter(), 0)]

    def count(record: training.TrainingRecord) -> None:
        steps.append((time.perf_counter(), record.target_tokens))
        took = steps[-1][0] - steps[0][0]
        if (len(steps) > 3 and steps[-1][0] - steps[1][0] > least_s) or (len(steps) == 2 and took > TOO_LONG_S):
            raise _Enough

    with suppress(_Enough):
        schedule = training.Schedule(0.0, 0.0, 1)
        training.train(model, optimizer, documents, schedule, 0, *limits, generator, rounded=rounded, after_step=count)
    model.eval()
    warm = steps[1:] if len(steps) > 2 else steps
    return (warm[-1][0] - warm[0][0]) / max(1, warm[-1][1] - warm[0][1])


def _batch_tokens(config: RunConfig, model: PreTrainedModel) -> int:
    """Return the run's tokens of a batch; for a large model on a CPU those of `PROBED_FLOPS`, a window at least."""
    if model.device.type != "cpu":
        return config.model_use().batch_tokens
    parameters = sum(p.numel() for p in model.parameters())
    few = max(config.model.window_tokens, int(PROBED_FLOPS / (6 * parameters)))
    return min(config.model_use().batch_tokens, few)


def _per_token(call: Callable[[Iterator[Batch]], object], batches: Sequence[Batch], least_s: float) -> float:
    """Feed batches, again from the first where they run out, until the time is up; return seconds per token."""
    first = _once(lambda: call(iter(batches[:1])))
    if first > TOO_LONG_S:
        return first / int(batches[0]["attention_mask"].sum())
    tokens, started = 0, time.perf_counter()

    def feed() -> Iterator[Batch]:
        nonlocal tokens
        for batch in itertools.cycle(batches):
            tokens += int(batch["attention_mask"].sum())
            yield batch
            if time.perf_counter() - started > least_s:
                return

    return _once(lambda: call(feed())) / tokens


def mean_seconds(call: Callable[[], object], units: int, least_s: float) -> float:
    """Return the mean seconds a unit takes."""
    first = _once(call)
    if first > TOO_LONG_S:
        return first / max(1, units)
    started, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < least_s or calls == 0:
        call()
        calls += 1
    return taken / (calls * max(1, units))


def _once(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class _Enough(Exception):
    """Ends a training that has been measured."""
