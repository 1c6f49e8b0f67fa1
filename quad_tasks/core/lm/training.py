"""Train a language model in equal optimizer steps.

Two trainings can be compared only if they take the same number of steps on the same number of targets. So every step
holds the same number of target tokens, however long the documents are, and the learning rate follows the steps. One
optimizer state and one schedule run through all stages: a stage goes on at the step where the one before it stopped.

A training is a function of its model, documents and generator: dropout is off (one pass over the data does not overfit,
and unseeded draws would make two equal trainings differ). Refuses packing: no token attends to another document.

Shapes: N sequences of a batch, T tokens.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from transformers import PreTrainedModel

from quad_tasks.core.lm.batching import Tokens, bucket_batches, pad_batch, split_windows
from quad_tasks.core.loss import read_batch, summed_loss

METHOD = 4
"""Number of the training method, a part of the keys of what is trained once and used again, so that nothing made by
another method is. 1: steps of batches, however many targets they hold; 2: steps of equal targets; 3: the same, the
head's products too where products are rounded, AdamW in one kernel; 4: the same, a short last step at a lower rate."""
GRADIENT_CLIP = 1.0
ADAM_BETAS = (0.9, 0.95)  # nanoGPT's, usual for language models
LEAST_LENGTH_SHARE = 0.75
"""Of a pass's longest sequence, that its others have: padding is 14 % at most of lognormal lengths; 45 % without."""
PASS_BYTES, ACCELERATOR_PASS_BYTES = 2**29, 2**34
"""Of activations that one forward pass keeps for its backward pass, about: the pass is cut to it, not the step."""
KEPT_WIDTHS, KEPT_MLP_WIDTHS = 14, 4
"""Numbers a decoder layer keeps for its backward pass per token: as many times its width, and its MLP's (Llama)."""
FLOOR_SHARE = 0.1  # the cosine ends at a tenth of the peak (Hoffmann et al. 2022, arXiv 2203.15556)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to a tenth, by optimizer steps.

    Attributes:
        peak: peak learning rate.
        warmup_steps: steps until the peak; need not be whole.
        total_steps: steps at which the cosine ends, those of all stages together.
    """

    peak: float
    warmup_steps: float
    total_steps: float

    def rate(self, steps: int) -> float:
        """Return the learning rate of the step that follows `steps` earlier ones."""
        if steps < self.warmup_steps:
            return self.peak * (steps + 1) / (self.warmup_steps + 1)
        done = min((steps - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1.0), 1.0)
        return self.peak * (FLOOR_SHARE + (1 - FLOOR_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Processes:
    """The processes that share a training, each with the whole model and a part of every step's passes.

    Attributes:
        rank: of this one, from 0.
        count: of all; with more than one they are joined in torch's default process group.
    """

    rank: int = 0
    count: int = 1


@dataclass(frozen=True)
class TrainingRecord:
    """What a training took.

    Attributes:
        steps: optimizer steps.
        target_tokens: predicted tokens that the loss was taken over, each once.
        padded_tokens: tokens of all forward passes, padding included: what the training cost.
        schedule_steps: steps so far under the schedule, earlier stages' included: where the next stage goes on.
    """

    steps: int
    target_tokens: int
    padded_tokens: int
    schedule_steps: int

    def after_step(self, target_tokens: int, padded_tokens: int) -> "TrainingRecord":
        """Return the record with one more step counted."""
        return TrainingRecord(
            steps=self.steps + 1,
            target_tokens=self.target_tokens + target_tokens,
            padded_tokens=self.padded_tokens + padded_tokens,
            schedule_steps=self.schedule_steps + 1,
        )


def count_targets(documents: Iterable[Tokens]) -> int:
    """Count the target tokens of documents: every token of a document but its first."""
    return sum(max(len(ids) - 1, 0) for ids in documents)


def count_steps(target_tokens: float, step_tokens: int) -> int:
    """Count the optimizer steps that a training on this many targets takes, before it is begun.

    Args:
        target_tokens: as `count_targets` counts them, or planned.
        step_tokens: targets of a step.
    """
    return math.ceil(target_tokens / step_tokens)


def pass_tokens(model: PreTrainedModel) -> int:
    """Return how many tokens of a training's forward and backward pass keep about `PASS_BYTES` of activations.

    It follows from the model and the kind of its device alone, so that a training is the same on any machine like it.
    A longer sequence is a pass by itself.
    """
    limit = PASS_BYTES if model.device.type == "cpu" else ACCELERATOR_PASS_BYTES
    return max(1, limit // activation_bytes(model))


def activation_bytes(model: PreTrainedModel) -> int:
    """Estimate the bytes a token's forward pass keeps for the backward pass, in the dtype of the model."""
    width = int(model.config.hidden_size)
    inner = int(getattr(model.config, "intermediate_size", None) or 4 * width)
    numbers = KEPT_WIDTHS * width + KEPT_MLP_WIDTHS * inner
    return int(model.config.num_hidden_layers * numbers * model.dtype.itemsize)


def make_optimizer(model: PreTrainedModel, weight_decay: float) -> torch.optim.AdamW:
    """Build AdamW with decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, fused=True)


def train(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    documents: Sequence[Tokens],
    schedule: Schedule,
    steps_before: int,
    window_tokens: int,
    step_tokens: int,
    batch_tokens: int,
    generator: np.random.Generator,
    max_targets: int | None = None,
    rounded: bool = False,
    resumed: TrainingRecord | None = None,
    after_step: Callable[[TrainingRecord], object] | None = None,
    processes: Processes = Processes(),
) -> TrainingRecord:
    """Train one pass over tokenized documents, in steps of equal numbers of target tokens.

    Every step's gradient is that of its targets' mean loss; a last step of fewer has so much lower a rate.

    Args:
        model: trained in place, in eval mode, and left so: dropout stays off.
        optimizer: its state goes on from where it was.
        documents: token ids of each document.
        schedule: learning rate by steps.
        steps_before: steps of earlier stages under the same schedule.
        window_tokens: longest sequence.
        step_tokens: targets of an optimizer step.
        batch_tokens: of a pass at most, padding included, or `pass_tokens`: bounds the memory, not the result.
        generator: draws the order of the windows.
        max_targets: targets to train on; what is left of the shuffled windows is not; None: all.
        rounded: whether a float32 model's products may be computed from bfloat16 factors where the device is faster
            at it (`precision.product_dtype`); weights, gradients and optimizer stay in float32.
        resumed: steps that model and optimizer hold already, as `after_step` was last given them; None: none.
        after_step: called after each step with what the training took so far.
        processes: that share the training, each given the same arguments: gradients of their passes are summed.

    Returns:
        Steps and tokens of this training, and where it leaves the schedule.

    Raises:
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    model.eval()
    batch_tokens = min(batch_tokens, pass_tokens(model))
    if processes.count > 1:  # a pass for each of them
        batch_tokens = min(batch_tokens, math.ceil(step_tokens / processes.count))
    record = resumed or TrainingRecord(0, 0, 0, steps_before)
    # 1. cut documents into windows and shuffle them: 10 documents of 600 tokens at window 256 are 30 windows
    shuffled = _shuffle_windows(documents, window_tokens, max_targets, generator)
    # 2. fill steps to step_tokens targets each: 5,990 targets at 1,024 a step are 5 full steps and one of 870
    for sequences in itertools.islice(fill_steps(shuffled, step_tokens), record.steps, None):
        # 3. add up the gradients of the step's targets, in passes of at most batch_tokens, and move the parameters
        targets = count_targets(sequences)
        padded = _add_gradients(model, sequences, targets, batch_tokens, rounded, processes)
        _move_parameters(model, optimizer, schedule.rate(record.schedule_steps) * (targets / step_tokens))
        record = record.after_step(targets, padded)
        if after_step is not None:
            after_step(record)
    return record


def fill_steps(windows: Iterable[Tokens], step_tokens: int) -> Iterator[list[Tokens]]:
    """Distribute windows over optimizer steps of exactly `step_tokens` targets each, in the order they come.

    A window that does not fit into what a step has left is split there. Its second piece starts on the first one's last
    token, as windows of a document do: each target is kept once, in its own document, and what follows the split loses
    the context before it.

    Args:
        windows: token ids, at least two each.
        step_tokens: targets of a step.

    Yields:
        The sequences of a step; the last step may hold fewer targets.
    """
    step: list[Tokens] = []
    room = step_tokens
    for window in windows:
        rest = window
        while len(rest) - 1 >= room:
            yield [*step, rest[: room + 1]]
            rest, step, room = rest[room:], [], step_tokens
        if len(rest) > 1:
            step.append(rest)
            room -= len(rest) - 1
    if step:
        yield step


def take_targets(windows: Iterable[Tokens], n_targets: int) -> Iterator[Tokens]:
    """Take windows, in the order they come, until they hold `n_targets` targets; the last one is cut to fit."""
    left = n_targets
    for window in windows:
        if left == 0:
            return
        taken = window[: left + 1]
        yield taken
        left -= max(len(taken) - 1, 0)


def _shuffle_windows(
    documents: Sequence[Tokens], window_tokens: int, max_targets: int | None, generator: np.random.Generator
) -> Iterable[Tokens]:
    """Cut documents into windows, shuffle all of them, and take as many as hold `max_targets`."""
    windows = [part for ids in documents for part in split_windows(ids, window_tokens)]
    shuffled = (windows[i] for i in generator.permutation(len(windows)))
    return shuffled if max_targets is None else take_targets(shuffled, max_targets)


def _move_parameters(model: PreTrainedModel, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Take a step of this learning rate along the clipped gradient, and forget the gradient."""
    for settings in optimizer.param_groups:
        settings["lr"] = rate
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _add_gradients(
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    targets: int,
    batch_tokens: int,
    rounded: bool,
    processes: Processes,
) -> int:
    """Add the gradient of a step's mean loss over its targets, pass by pass; return the passes' padded tokens."""
    padded = 0
    passes = bucket_batches([len(sequence) for sequence in sequences], batch_tokens, LEAST_LENGTH_SHARE)
    for number, group in enumerate(passes):
        documents = read_batch(pad_batch([sequences[i] for i in group]), model.device)
        padded += documents.ids_NT.numel()
        if number % processes.count == processes.rank:
            (summed_loss(model, documents, rounded) / targets).backward()  # type: ignore[no-untyped-call]
    if processes.count > 1:
        _sum_gradients(model)
    return padded


def _sum_gradients(model: PreTrainedModel) -> None:
    """Sum every parameter's gradient over all processes; one that had no pass in this step brings zeros."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(parameter.grad)
