"""Accumulate activation and gradient covariances as sums and counts.

    A = (1 / n) Σ a a^T        S = (1 / n) Σ δ δ^T        n: positions that count, over all documents

Here a is a block's input at a position and δ the gradient of the loss at the block's output. Owns the sums and their
merging; the division happens once, in `ekfac.decompose`. `A` is summed once per input, however many blocks read it.
Sums are in float32 (float64 for a float64 model).

A covariance wider than a given width is stored as diagonal parts: entries between two parts are taken for zero, and X^2
numbers shrink to X times the width. A part's key is the covariance's key plus its range, as in
``model.layers.0.mlp.down_proj[4096:8192]``; code that works by key works on parts.

Shape suffixes: N documents, T tokens, P positions of a batch, N * T, M positions that count, I block inputs (the
constant one included), O block outputs, X either, V vocabulary, D hidden width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block, blocks_from_tensor, blocks_to_tensor
from quad_tasks.core.capture import backward
from quad_tasks.core.loss import (
    Batch,
    Documents,
    Fisher,
    draw_uniforms,
    frozen,
    head_weight,
    read_batch,
)
from quad_tasks.core.precision import accumulation_dtype, add_product, product_dtype

BLOCKS = "blocks"
"""The flattened sums' tensor that describes the blocks; all others are sums."""

# Only the lower triangle of a symmetric sum is computed, in this many row panels: 10/16 of the products of a full one.
_PANELS = 4
_PANEL_MIN_WIDTH = 64


@dataclass(frozen=True)
class Covariances:
    """Sums of activation and gradient covariances, on the CPU.

    Attributes:
        blocks: the model's tracked blocks.
        activation: Σ a a^T by block source, [I, I], or its diagonal parts.
        gradient: Σ δ δ^T by block name, [O, O], or its diagonal parts.
        n_positions: number of positions: Σ (n - 1) over documents of n tokens.
        n_documents: number of documents.
    """

    blocks: tuple[Block, ...]
    activation: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    n_positions: int
    n_documents: int


def accumulate_covariances(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    fisher: Fisher = "true",
    generator: torch.Generator | None = None,
    max_width: int | None = None,
    rounded: bool = False,
) -> Covariances:
    """Sum activation and gradient covariances over batches of documents.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T], optionally ``seed`` [N]; read once.
        blocks: from `find_blocks`.
        fisher: ``true``: labels sampled from the model; ``empirical``: the documents' own next tokens.
        generator: samples the labels of batches without seeds.
        max_width: store a wider covariance as diagonal parts of at most this width, > 0; None: store all whole.
        rounded: whether a float32 model's matrix products may be computed in lower precision, see
            `precision.product_dtype`; sums stay in float32.

    Returns:
        The sums.

    Raises:
        ValueError: a document without a target, or sampled labels with neither seeds nor generator.
        FloatingPointError: a sum is not finite; the message names the block.
    """
    weight_VD = head_weight(model)
    sums = _zeros(blocks, weight_VD.device, accumulation_dtype(weight_VD.dtype), max_width)
    dtype = product_dtype(model.dtype, weight_VD.device, rounded) if rounded else accumulation_dtype(model.dtype)
    head_VD = weight_VD.to(dtype)
    n_positions = n_documents = 0
    # Each batch: compact it, draw label randomness [M], run forward and backward; the hooks add to the sums
    with frozen(model):
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            uniforms_M = draw_uniforms(documents, fisher, generator)
            receive = partial(_add_covariances, *sums, documents, dtype)
            backward(model, documents, blocks, receive, head_VD, uniforms_M, rounded)
            n_positions += len(documents.positions_M)
            n_documents += len(documents.lengths_N)
    # Fill the upper triangles, [I, I] and [O, O], one after the other: two copies of all would be the peak of memory
    activation, gradient = ({key: _mirror(key, part.pop(key)) for key in list(part)} for part in sums)
    return Covariances(tuple(blocks), activation, gradient, n_positions, n_documents)


def merge(a: Covariances, b: Covariances) -> Covariances:
    """Merge the sums of two sets of documents.

    Raises:
        ValueError: their blocks differ.
    """
    if a.blocks != b.blocks:
        raise ValueError(f"expected covariances of the same blocks, got {len(a.blocks)} and {len(b.blocks)} others")
    return Covariances(
        blocks=a.blocks,
        activation={key: sum_II + b.activation[key] for key, sum_II in a.activation.items()},
        gradient={key: sum_OO + b.gradient[key] for key, sum_OO in a.gradient.items()},
        n_positions=a.n_positions + b.n_positions,
        n_documents=a.n_documents + b.n_documents,
    )


def select_blocks(covariances: Covariances, blocks: Sequence[Block]) -> Covariances:
    """Select the covariances of some blocks; blocks that share an input go together.

    Args:
        covariances: sums of more blocks.
        blocks: some of theirs, in their order.
    """
    sides = (
        (covariances.activation, [block.source for block in blocks]),
        (covariances.gradient, [block.name for block in blocks]),
    )
    activation, gradient = (
        {part: sums[part] for key in dict.fromkeys(keys) for part in sums if part == key or part.startswith(f"{key}[")}
        for sums, keys in sides
    )
    return Covariances(tuple(blocks), activation, gradient, covariances.n_positions, covariances.n_documents)


def covariances_to_tensors(covariances: Covariances) -> dict[str, Tensor]:
    """Convert covariances to named tensors, blocks and counts included, for a tensor file."""
    return {
        BLOCKS: blocks_to_tensor(covariances.blocks),
        "counts": torch.tensor([covariances.n_positions, covariances.n_documents]),
        **{f"activation/{key}": value for key, value in covariances.activation.items()},
        **{f"gradient/{key}": value for key, value in covariances.gradient.items()},
    }


def covariances_from_tensors(tensors: Mapping[str, Tensor]) -> Covariances:
    """Rebuild covariances from `covariances_to_tensors`."""
    n_positions, n_documents = tensors["counts"].tolist()
    return Covariances(
        blocks=blocks_from_tensor(tensors[BLOCKS]),
        activation=with_prefix(tensors, "activation/"),
        gradient=with_prefix(tensors, "gradient/"),
        n_positions=n_positions,
        n_documents=n_documents,
    )


def add_tensors(total: dict[str, Tensor], more: Iterable[tuple[str, Tensor]]) -> None:
    """Add sums to others in place, a tensor at a time, so that no second set of them is held; as `merge` would.

    Args:
        total: what `covariances_to_tensors` or `ekfac.eigenvalue_sums_to_tensors` gave; changed.
        more: names and tensors of the same kind.

    Raises:
        ValueError: their blocks differ; `total` is then of no use.
    """
    left = set(total)
    for name, tensor in more:
        if name not in left or total[name].shape != tensor.shape:
            raise ValueError(f"expected sums over the same blocks, got {name!r} of shape {tuple(tensor.shape)} as well")
        left.remove(name)
        if name != BLOCKS:
            total[name] += tensor
        elif not torch.equal(total[name], tensor):
            raise ValueError("expected sums over the same blocks, got others")
    if left:
        raise ValueError(f"expected sums over the same blocks, got none for {', '.join(sorted(left))}")


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, and drop the prefix."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def diagonal_parts(key: str, width: int, max_width: int | None) -> dict[str, slice]:
    """Split a covariance into diagonal parts of similar width: key of each part to its coordinates.

    Args:
        key: the covariance's key; it is also the key of a covariance that fits whole.
        width: the covariance's width.
        max_width: largest width of a part, > 0; None: any.
    """
    if max_width is None or width <= max_width:
        return {key: slice(0, width)}
    n_parts = -(-width // max_width)
    ends = [width * index // n_parts for index in range(n_parts + 1)]
    return {f"{key}[{a}:{b}]": slice(a, b) for a, b in pairwise(ends)}


def find_parts(tensors: Mapping[str, Tensor], key: str) -> list[tuple[slice, Tensor]]:
    """Look up the diagonal parts stored for a covariance's key: the coordinates of each, and its tensor, in order."""
    if key in tensors:
        return [(slice(0, len(tensors[key])), tensors[key])]
    parts = []
    for name, tensor in tensors.items():
        if name.startswith(f"{key}["):
            start, stop = name[len(key) + 1 : -1].split(":")
            parts.append((slice(int(start), int(stop)), tensor))
    return sorted(parts, key=lambda part: part[0].start)


def with_constant(a_PI: Tensor, block: Block) -> Tensor:
    """Append a constant one to a block's inputs if its maps have a bias, [P, I]."""
    return torch.cat([a_PI, a_PI.new_ones(len(a_PI), 1)], dim=1) if block.bias else a_PI


def _zeros(
    blocks: Sequence[Block], device: torch.device, dtype: torch.dtype, max_width: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Allocate the sums, or their diagonal parts, by key: activation [I, I] and gradient [O, O]."""
    widths: tuple[dict[str, int], dict[str, int]] = (
        {block.source: block.shape[1] for block in blocks},
        {block.name: block.shape[0] for block in blocks},
    )
    activation, gradient = (
        {
            part: torch.zeros(rows.stop - rows.start, rows.stop - rows.start, dtype=dtype, device=device)
            for key, width in side.items()
            for part, rows in diagonal_parts(key, width, max_width).items()
        }
        for side in widths
    )
    return activation, gradient


def _add_covariances(
    activation: dict[str, Tensor],
    gradient: dict[str, Tensor],
    documents: Documents,
    dtype: torch.dtype,
    group: tuple[Block, ...],
    a_PI: Tensor,
    deltas_PO: list[Tensor],
) -> None:
    """Add the covariances of a group of blocks that share an input."""
    a_MI = with_constant(a_PI[documents.positions_M].to(dtype), group[0])
    for columns, sum_XX in find_parts(activation, group[0].source):
        _add_lower(sum_XX, a_MI[:, columns])
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        # No mask needed: a gradient is zero at every position that does not count
        for columns, sum_XX in find_parts(gradient, block.name):
            _add_lower(sum_XX, delta_PO[:, columns].to(dtype))


def _add_lower(sum_XX: Tensor, x_MX: Tensor) -> None:
    """Add x^T x to the lower triangle, and to parts of the upper one, which `_mirror` overwrites."""
    width = max(-(-x_MX.shape[1] // _PANELS), _PANEL_MIN_WIDTH)
    for start in range(0, x_MX.shape[1], width):
        stop = min(start + width, x_MX.shape[1])
        panel_XX = sum_XX[start:stop, :stop]
        add_product(panel_XX, x_MX[:, start:stop].T, x_MX[:, :stop])


def _mirror(key: str, sum_XX: Tensor) -> Tensor:
    """Copy the lower triangle onto the upper one and move the sum to the CPU."""
    if not torch.isfinite(sum_XX).all():
        raise FloatingPointError(f"{key}: expected a finite covariance, got NaN or infinity")
    lower_XX = sum_XX.tril()
    return (lower_XX + lower_XX.tril(-1).T).cpu()
