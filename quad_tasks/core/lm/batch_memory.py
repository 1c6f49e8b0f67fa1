"""Find how many tokens a batch may have from the memory of a device: what one batch takes is measured, not estimated.

A batch takes memory by its tokens, padding included: activations that the forward pass keeps for the backward pass.
What the model, its factors and directions take beside it does not grow with the batch, and is set aside first.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block
from quad_tasks.core.influence import gradient_sums
from quad_tasks.core.lm.batching import pad_batch

MARGIN = 0.2
"""Of a device's free memory, that stays free: pieces too small to use, and what libraries take for themselves.
Assumed."""
MOST_TOKENS = 2**16
"""Of a batch, however much memory there is: a GPU is busy with fewer (an H200 was fastest at 8,192 or 16,384)."""
CONTEXT_BYTES = 2**29
"""Of a device's memory that a process takes before it holds a tensor: its context, loaded kernels. Assumed."""
PROBED_TOKENS = 2**13
"""Of the batch that is measured: enough for what does not grow with it to count little."""


def fitting_tokens(free_bytes: int, kept_bytes: int, token_bytes: float, window_tokens: int) -> int:
    """Return how many tokens a batch may have: whole windows, one at least.

    Args:
        free_bytes: of the device, beside the model.
        kept_bytes: that the largest step holds beside model and batch.
        token_bytes: that a token of a batch takes, > 0.
        window_tokens: longest sequence.
    """
    room = (1 - MARGIN) * free_bytes - kept_bytes
    windows = min(int(room / token_bytes), MOST_TOKENS) // window_tokens
    return window_tokens * max(1, windows)


def own_share(memory_bytes: int, model_bytes: int, sharing: int) -> int:
    """Return the bytes that a process has beside its model, on a device that several share; below 0: it has no room.

    Args:
        memory_bytes: that all of them together may take.
        model_bytes: of one model.
        sharing: processes.
    """
    return memory_bytes // sharing - CONTEXT_BYTES - model_bytes


def measure_batch_tokens(
    model: PreTrainedModel, blocks: Sequence[Block], kept_bytes: int, window_tokens: int, sharing: int = 1
) -> int:
    """Measure what a batch takes of a GPU's memory, by the peak of one that is read forth and back.

    Args:
        model: a causal language model on the GPU.
        blocks: its tracked blocks.
        kept_bytes: as for `fitting_tokens`.
        window_tokens: longest sequence.
        sharing: processes that share the GPU, each with a model of its own; those of the others are not loaded yet.

    Returns:
        Tokens of a batch, as `fitting_tokens` gives them.

    Raises:
        torch.OutOfMemoryError: the memory does not hold a single window.
    """
    token_bytes = 0.0
    for windows in dict.fromkeys((max(1, PROBED_TOKENS // window_tokens), 1)):
        try:
            token_bytes = _token_bytes(model, blocks, windows, window_tokens)
            break
        except torch.OutOfMemoryError:
            if windows == 1:
                raise
    torch.cuda.empty_cache()
    own_bytes = torch.cuda.memory_allocated(model.device)
    together = torch.cuda.mem_get_info(model.device)[0] + own_bytes + CONTEXT_BYTES
    return fitting_tokens(own_share(together, own_bytes, sharing), kept_bytes, token_bytes, window_tokens)


def _token_bytes(model: PreTrainedModel, blocks: Sequence[Block], windows: int, window_tokens: int) -> float:
    """Read a batch of windows forth and back; return what a token of it took at the peak."""
    device = model.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    gradient_sums(model, [pad_batch([[0] * window_tokens] * windows)], blocks)
    sums = sum(4 * block.shape[0] * block.shape[1] for block in blocks)
    taken = torch.cuda.max_memory_allocated(device) - before - sums
    return max(1, taken) / (windows * window_tokens)
