"""Count the floating-point operations a model spends on documents, from its shape alone.

What is counted are matrix products: a product with a weight matrix takes two operations a weight and token, forward; a
backward pass as much again for the inputs' gradients (scoring) and once more for the weights' (training). Attention's
products take 4 n² operations a layer and unit of width, forward, and 8 n² backward, for a window of n tokens: whole
squares, as `torch.utils.flop_counter` counts them, though causal kernels skip half. Norms, activations and padding are
left out. Costs are compared as shares, so that what is left out of all of them hardly tells.

Shape suffixes: N documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from quad_tasks.core.blocks import Block, find_blocks

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

MULTIPLY_ADD = 2
"""Operations of one weight and one token: a product and a sum."""
SCORE_PRODUCTS = 2
"""Products of attention: queries with keys, weights with values."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model's shape its cost follows from.

    Attributes:
        maps: weights of the linear maps below the head.
        reached: those whose inputs' gradients a scoring pass computes: all above the first tracked maps.
        tracked: weights that a direction covers.
        head: weights of the head.
        attention: widths of the queries of all layers, summed.
        attention_reached: those of the layers whose attention a scoring pass goes back through.
    """

    maps: int
    reached: int
    tracked: int
    head: int
    attention: int
    attention_reached: int


class PassFlops(NamedTuple):
    """Operations of one way to read a window of n tokens: `token` n + `target` (n - 1) + `pair` n²."""

    token: float
    target: float
    pair: float


def model_size(model: PreTrainedModel, blocks: Sequence[Block]) -> ModelSize:
    """Measure a model; it may be without weights, on torch's `meta` device.

    Args:
        model: a causal language model.
        blocks: the blocks of its directions, from `blocks.find_blocks`.

    Raises:
        UnsupportedLayer: as `find_blocks`.
    """
    joint = find_blocks(model, "joint")
    linear = {name: m for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    sizes = {name: int(module.weight.numel()) for name, module in linear.items()}
    before = _not_reached(joint, blocks)
    attention = [_query_width(model, block) for block in joint if block.name.endswith(".qkv")]
    attention_below = any(not block.name.endswith(".qkv") for block in joint if set(block.modules) & before)
    return ModelSize(
        maps=sum(sizes.values()),
        reached=sum(sizes.values()) - sum(_weights(model, name) for name in before),
        tracked=sum(block.shape[0] * (block.shape[1] - block.bias) for block in blocks),
        head=int(model.get_output_embeddings().weight.numel()),
        attention=sum(attention),
        attention_reached=sum(attention[1:] if attention_below else attention),
    )


def forward_flops(size: ModelSize, head: bool = True) -> PassFlops:
    """Count a forward pass; with the head, the loss of every target too."""
    maps, attention = MULTIPLY_ADD * size.maps, SCORE_PRODUCTS * MULTIPLY_ADD * size.attention
    return PassFlops(maps, MULTIPLY_ADD * size.head if head else 0, attention)


def training_flops(size: ModelSize) -> PassFlops:
    """Count a training step: the backward pass takes twice the forward one."""
    return PassFlops(*(3 * part for part in forward_flops(size)))


def exact_flops(size: ModelSize, directions: int = 1) -> PassFlops:
    """Count exact scoring: forward, back over activations, and one product with each direction."""
    return contracted_flops(size, directions * size.tracked)


def contracted_flops(size: ModelSize, numbers: float) -> PassFlops:
    """Count scoring by gradient along directions that hold `numbers` numbers together, whole or as factors."""
    token, target, pair = forward_flops(size)
    back = SCORE_PRODUCTS * MULTIPLY_ADD * 2 * size.attention_reached
    return PassFlops(token + MULTIPLY_ADD * (size.reached + numbers), 2 * target, pair + back)


def forward_only_flops(size: ModelSize, directions: int = 1) -> PassFlops:
    """Count scoring by losses: two forward passes a direction, and the head's gradient once."""
    token, target, pair = forward_flops(size)
    return PassFlops(2 * directions * token, 2 * directions * target, 2 * directions * pair)


def conditional_loss_flops(size: ModelSize, copies: int = 1) -> PassFlops:
    """Count scoring by the conditional loss: a forward pass of the checkpoint and of each adapted copy."""
    return PassFlops(*((1 + copies) * part for part in forward_flops(size)))


def added(passes: Sequence[PassFlops]) -> PassFlops:
    """Add up several passes over the same windows."""
    return PassFlops(*(sum(part) for part in zip(*passes, strict=True)))


def document_flops(reading: PassFlops, n_tokens_N: Int64, window_tokens: int) -> Float64:
    """Count the operations of reading documents, in windows that overlap by one token (`lm.batching.split_windows`).

    Args:
        reading: how a window is read.
        n_tokens_N: [N] tokens of each document; one of fewer than two has no window.
        window_tokens: longest window.

    Returns:
        [N] operations.
    """
    targets_N = np.maximum(np.asarray(n_tokens_N, dtype=np.float64) - 1, 0)
    # Windows, and targets of the last one, 1 to window_tokens - 1: [N]
    windows_N = np.ceil(targets_N / (window_tokens - 1))
    last_N = targets_N - np.maximum(windows_N - 1, 0) * (window_tokens - 1)
    full_N = np.maximum(windows_N - 1, 0)
    squares_N = full_N * window_tokens**2 + np.where(windows_N > 0, (last_N + 1) ** 2, 0)
    tokens_N = targets_N + windows_N
    flops_N: Float64 = reading.token * tokens_N + reading.target * targets_N + reading.pair * squares_N
    return flops_N


def _not_reached(joint: Sequence[Block], blocks: Sequence[Block]) -> set[str]:
    """Name the maps that run before the first tracked ones' outputs, those included."""
    last = max(index for index, block in enumerate(joint) if block.source == blocks[0].source)
    return {name for block in joint[: last + 1] for name in block.modules}


def _query_width(model: PreTrainedModel, qkv: Block) -> int:
    """Return the width of a layer's queries: its heads times a head's width."""
    n_heads = model.config.num_attention_heads
    n_kv_heads = getattr(model.config, "num_key_value_heads", None) or n_heads
    return int(qkv.shape[0] * n_heads // (n_heads + 2 * n_kv_heads))


def _weights(model: PreTrainedModel, name: str) -> int:
    return int(model.get_submodule(name).get_parameter("weight").numel())
