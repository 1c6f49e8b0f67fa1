"""Activation and gradient covariances, as sums and counts (method: "EK-FAC", first pass).

    A = (1 / n) Σ a a^T        S = (1 / n) Σ δ δ^T        n: positions that count, over all documents

Owns their accumulation and merging; division happens once, in `ekfac.decompose`. `A` is summed once per input, however
many blocks read it. Sums are kept in float32 (float64 for a float64 model).

A covariance wider than a given width is kept as diagonal parts: what is between two parts is taken for zero, and the
memory of X^2 numbers becomes that of X times the width. A part's key is its covariance's with the range appended, as in
``model.layers.0.mlp.down_proj[4096:8192]``; whatever works by key works on parts.

Shape suffixes: P positions of a batch, N * T, M positions that count, I block inputs (the constant one included),
O block outputs, X either.
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
from quad_tasks.core.precision import accumulation_dtype, product_dtype

# A symmetric sum is built from at most this many row panels, each up to the diagonal: 10/16 of a full one's products.
_PANELS = 4
_PANEL_MIN_WIDTH = 64


@dataclass(frozen=True)
class Covariances:
    """Sums over positions, on the CPU.

    Attributes:
        blocks: the blocks they belong to.
        activation: Σ a a^T by block source, [I, I], or its diagonal parts.
        gradient: Σ δ δ^T by block name, [O, O], or its diagonal parts.
        n_positions: positions summed: Σ (n - 1) over documents of n tokens.
        n_documents: documents summed.
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
    """Sum both covariances over the batches.

    Args:
        model: a causal language model; left as it was found.
        batches: mappings with ``input_ids`` and ``attention_mask`` [N, T], optionally ``seed`` [N]; read once.
        blocks: from `find_blocks`.
        fisher: ``true``: labels sampled from the model; ``empirical``: the documents' own.
        generator: draws the labels of batches without seeds.
        max_width: a wider covariance is kept as diagonal parts of at most this width, > 0; None: all are kept whole.
        rounded: whether a float32 model's products, those of the sums among them, may be computed in lower precision,
            see `precision.product_dtype`; what is summed stays in float32.

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
    with frozen(model):
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            uniforms_M = draw_uniforms(documents, fisher, generator)
            receive = partial(_add_group, *sums, documents, dtype)
            backward(model, documents, blocks, receive, head_VD, uniforms_M, rounded)
            n_positions += len(documents.positions_M)
            n_documents += len(documents.lengths_N)
    activation, gradient = ({key: _mirror(key, sum_XX) for key, sum_XX in part.items()} for part in sums)
    return Covariances(tuple(blocks), activation, gradient, n_positions, n_documents)


def merge(a: Covariances, b: Covariances) -> Covariances:
    """Add two partial sums of the same blocks.

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


def covariances_to_tensors(covariances: Covariances) -> dict[str, Tensor]:
    """Flatten to named tensors, blocks and counts among them, for a tensor file."""
    return {
        "blocks": blocks_to_tensor(covariances.blocks),
        "counts": torch.tensor([covariances.n_positions, covariances.n_documents]),
        **{f"activation/{key}": value for key, value in covariances.activation.items()},
        **{f"gradient/{key}": value for key, value in covariances.gradient.items()},
    }


def covariances_from_tensors(tensors: Mapping[str, Tensor]) -> Covariances:
    """Undo `covariances_to_tensors`."""
    n_positions, n_documents = tensors["counts"].tolist()
    return Covariances(
        blocks=blocks_from_tensor(tensors["blocks"]),
        activation=under(tensors, "activation/"),
        gradient=under(tensors, "gradient/"),
        n_positions=n_positions,
        n_documents=n_documents,
    )


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors whose names begin with the prefix, which is dropped."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def diagonal_parts(key: str, width: int, max_width: int | None) -> dict[str, slice]:
    """Cut a covariance of some width into diagonal parts of like width, by key; one that fits keeps its own."""
    if max_width is None or width <= max_width:
        return {key: slice(0, width)}
    n_parts = -(-width // max_width)
    ends = [width * index // n_parts for index in range(n_parts + 1)]
    return {f"{key}[{a}:{b}]": slice(a, b) for a, b in pairwise(ends)}


def find_parts(tensors: Mapping[str, Tensor], key: str) -> list[tuple[slice, Tensor]]:
    """Find a covariance's diagonal parts, or whatever is kept by its key, with the coordinates they stand for."""
    if key in tensors:
        return [(slice(0, len(tensors[key])), tensors[key])]
    parts = []
    for name, tensor in tensors.items():
        if name.startswith(f"{key}["):
            start, stop = name[len(key) + 1 : -1].split(":")
            parts.append((slice(int(start), int(stop)), tensor))
    return sorted(parts, key=lambda part: part[0].start)


def with_constant(a_PI: Tensor, block: Block) -> Tensor:
    """Append the constant coordinate to a block's inputs where its maps have a bias."""
    return torch.cat([a_PI, a_PI.new_ones(len(a_PI), 1)], dim=1) if block.bias else a_PI


def _zeros(
    blocks: Sequence[Block], device: torch.device, dtype: torch.dtype, max_width: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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


def _add_group(
    activation: dict[str, Tensor],
    gradient: dict[str, Tensor],
    documents: Documents,
    dtype: torch.dtype,
    group: tuple[Block, ...],
    a_PI: Tensor,
    deltas_PO: list[Tensor],
) -> None:
    a_MI = with_constant(a_PI[documents.positions_M].to(dtype), group[0])
    for columns, sum_XX in find_parts(activation, group[0].source):
        _add_lower(sum_XX, a_MI[:, columns])
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        # No mask: a gradient is zero at every position that does not count.
        for columns, sum_XX in find_parts(gradient, block.name):
            _add_lower(sum_XX, delta_PO[:, columns].to(dtype))


def _add_lower(sum_XX: Tensor, x_MX: Tensor) -> None:
    """Add x^T x to the lower triangle (and to some of the upper, which `_mirror` overwrites)."""
    width = max(-(-x_MX.shape[1] // _PANELS), _PANEL_MIN_WIDTH)
    for start in range(0, x_MX.shape[1], width):
        stop = min(start + width, x_MX.shape[1])
        panel_XX = sum_XX[start:stop, :stop]
        if x_MX.dtype == sum_XX.dtype:
            panel_XX.addmm_(x_MX[:, start:stop].T, x_MX[:, :stop])
        else:
            panel_XX += x_MX[:, start:stop].T @ x_MX[:, :stop]


def _mirror(key: str, sum_XX: Tensor) -> Tensor:
    if not torch.isfinite(sum_XX).all():
        raise FloatingPointError(f"{key}: expected a finite covariance, got NaN or infinity")
    lower_XX = sum_XX.tril()
    return (lower_XX + lower_XX.tril(-1).T).cpu()
