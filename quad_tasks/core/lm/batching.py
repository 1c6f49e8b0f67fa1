"""Split documents into windows of token ids, and group those of like length into padded batches.

A document longer than the window is split into windows that overlap by one token, so that each token but the document's
first is a target exactly once: n tokens have n - 1 targets. Documents are never packed together.

Shapes: N sequences of a batch, T tokens.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Batch = dict[str, Tensor]
Tokens = Sequence[int] | npt.NDArray[np.int32]
"""Token ids of a document or a window of it."""


def split_windows(token_ids: Tokens, window_tokens: int) -> list[Tokens]:
    """Split a document's tokens into windows of at most `window_tokens`, each starting on the last one's end.

    Windows overlap by one token, so that the targets of all windows are the document's targets, each once. Fewer
    than two tokens give no window.
    """
    starts = range(0, max(len(token_ids) - 1, 0), window_tokens - 1)
    return [token_ids[start : start + window_tokens] for start in starts]


def pad_batch(sequences: Sequence[Tokens]) -> Batch:
    """Pad sequences on the right: `input_ids` and `attention_mask`, [N, T] int64."""
    length = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
        attention_mask[row, : len(sequence)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def bucket_batches(lengths: Sequence[int], batch_tokens: int, least_share: float = 0.0) -> list[list[int]]:
    """Group sequences of like length, longest first, into batches of at most `batch_tokens`, padding included.

    A sequence longer than `batch_tokens` gets a batch of its own. The grouping depends on the lengths alone.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: tokens of a batch, padding included.
        least_share: a batch's shortest sequence has at least this share of its longest one's tokens.

    Returns:
        The sequences' indices, batch by batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens and lengths[i] >= least_share * longest:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def make_batches(
    documents: Sequence[Tokens], window_tokens: int, batch_tokens: int, seeds: Sequence[int] | None = None
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
