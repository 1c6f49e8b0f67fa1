"""A small training loop and the losses it is judged by.

One optimizer state and one learning-rate schedule run through all stages: the schedule is a function of tokens
trained so far, so that a stage goes on where the one before it stopped. Refuses packing and dropout.

Shapes: N sequences of a batch, T tokens.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from quad_tasks.core.model import Batch, make_batches, move_batches, pad_batch, split_windows

GRADIENT_CLIP = 1.0
ADAM_BETAS = (0.9, 0.95)  # nanoGPT's, usual for language models
FLOOR_SHARE = 0.1  # the cosine ends at a tenth of the peak (Hoffmann et al. 2022, arXiv 2203.15556)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to a tenth, in tokens.

    Attributes:
        peak: peak learning rate.
        warmup_tokens: tokens until the peak.
        total_tokens: tokens at which the cosine ends.
    """

    peak: float
    warmup_tokens: float
    total_tokens: float

    def rate(self, tokens: float) -> float:
        """Return the learning rate after `tokens` trained tokens."""
        if tokens < self.warmup_tokens:
            return self.peak * (tokens + 1) / (self.warmup_tokens + 1)
        done = min((tokens - self.warmup_tokens) / max(self.total_tokens - self.warmup_tokens, 1.0), 1.0)
        return self.peak * (FLOOR_SHARE + (1 - FLOOR_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: PreTrainedModel, weight_decay: float) -> torch.optim.AdamW:
    """Build AdamW with decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS)


def train(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    documents: Sequence[Sequence[int]],
    schedule: Schedule,
    tokens_before: int,
    window_tokens: int,
    batch_tokens: int,
    generator: np.random.Generator,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Train one pass over tokenized documents in a random order of windows.

    Args:
        model: trained in place, left in eval mode.
        optimizer: its state goes on from where it was.
        documents: token ids of each document.
        schedule: learning rate by tokens.
        tokens_before: tokens trained in earlier stages.
        window_tokens: longest sequence.
        batch_tokens: tokens in a step, padding included.
        generator: draws the order.
        progress: called after each step with the step's tokens.

    Returns:
        Tokens trained so far, earlier ones included.
    """
    device = str(model.device)
    windows = [part for ids in documents for part in split_windows(ids, window_tokens)]
    model.train()
    tokens = 0
    for group in _random_batches([len(w) for w in windows], batch_tokens, generator):
        batch = next(iter(move_batches([pad_batch([windows[i] for i in group])], device)))
        for settings in optimizer.param_groups:
            settings["lr"] = schedule.rate(tokens_before + tokens)
        loss = _mean_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_tokens = int(batch["attention_mask"].sum())
        tokens += step_tokens
        if progress is not None:
            progress(step_tokens)
    model.eval()
    return tokens_before + tokens


def token_losses(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[float, int]:
    """Sum next-token losses over all targets inside the masks.

    Returns:
        The sum in nats, accumulated in float64, and the number of targets.
    """
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in move_batches(batches, str(model.device)):
            losses, targets = _losses(model, batch)
            total += float(losses.double().sum())
            count += targets
    return total, count


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Convert a summed loss in nats to bits per UTF-8 byte, comparable across tokenizers."""
    return nats / math.log(2) / n_bytes


def measure(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], window_tokens: int, batch_tokens: int
) -> tuple[float, int]:
    """Sum next-token losses of tokenized documents: nats and targets."""
    batches, _ = make_batches(documents, window_tokens, batch_tokens)
    return token_losses(model, batches)


def _losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
    logits_NTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    valid_NT = batch["attention_mask"][:, 1:].bool()
    targets = batch["input_ids"][:, 1:][valid_NT]
    return F.cross_entropy(logits_NTV[:, :-1][valid_NT].float(), targets, reduction="none"), int(targets.numel())


def _mean_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    losses, _ = _losses(model, batch)
    return losses.mean()


def _random_batches(lengths: Sequence[int], batch_tokens: int, generator: np.random.Generator) -> list[list[int]]:
    """Group windows in random order into batches of at most `batch_tokens`, padding included.

    Windows are shuffled, sorted by length inside spans of a few batches (little padding), and the batches shuffled.
    """
    order = generator.permutation(len(lengths))
    span = max(1, 16 * batch_tokens // max(lengths, default=1))
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        current: list[int] = []
        for i in sorted(order[start : start + span], key=lambda i: -lengths[i]):
            if current and (len(current) + 1) * lengths[current[0]] > batch_tokens:
                batches.append(current)
                current = []
            current.append(int(i))
        batches.append(current)
    return [batches[i] for i in generator.permutation(len(batches))]
