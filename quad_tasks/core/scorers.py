"""Score documents along directions: compute q(z) = <v, ∇L(z)> without forming a weight gradient.

    by gradient   q(z) = Σ_blocks Σ_t δ_t^T V a_t                one forward and backward pass; V whole or V ≈ P Q
    by losses     q(z) ≈ [L(θ + εv, z) - L(θ - εv, z)] / 2ε      two forward passes, no backward pass

Here V is a block's slice of the direction v, a_t the block's input and δ_t the loss gradient at its output. q is a sum
over the document's targets; q > 0: training on z lowers the reference loss. Owns the arithmetic only: names are in
`plugins`, settings in `influence`, trials against exact scoring in `calibration`, θ ± εv in `lm.perturbed_weights`.
Rejected: forward-mode differentiation (three products per weight, as many as the backward pass).

Shape suffixes: N documents, T tokens, P positions of a batch, N * T, M positions that count, I block inputs (the
constant one included), O block outputs, R rank, K directions, V vocabulary, D hidden width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block
from quad_tasks.core.capture import backward
from quad_tasks.core.lm.flops import ModelSize, PassFlops, contracted_flops, exact_flops, forward_only_flops
from quad_tasks.core.lm.perturbed_weights import Perturbed, perturb
from quad_tasks.core.loss import (
    Batch,
    Documents,
    frozen,
    head_weight,
    hidden_states,
    loss_difference,
    read_batch,
    sum_by_document,
)
from quad_tasks.core.precision import accumulation_dtype, product_dtype

Direction = Mapping[str, Tensor]
Influences = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Influence [N, K] and number of targets [N], documents in batch order."""


@dataclass(frozen=True)
class LinearMap:
    """One block's slice of a direction, V [O, I], whole or as factors V ≈ P Q.

    Attributes:
        right_RI: Q, applied to the inputs; V itself where it is not factored.
        left_OR: P; None where V is not factored.
    """

    right_RI: Tensor
    left_OR: Tensor | None


ScoreAlong = Callable[
    [PreTrainedModel, Iterable[Batch], Sequence[Block], Sequence[Any], Mapping[str, float]], Influences
]
PrepareAlong = Callable[[PreTrainedModel, Sequence[Block], Sequence[Direction], Mapping[str, float]], Sequence[Any]]


@dataclass(frozen=True)
class Scorer:
    """A way to score documents; `quad_tasks.testing.check_scorer` is its contract.

    Attributes:
        score: takes model, batches, blocks, K directions and settings, returns influence and targets.
        flops: takes a model's shape, K and settings, returns what reading a window takes.
        prepare: takes model, blocks, K directions and settings, returns what `score` takes in the directions' place;
            once for all batches.
    """

    score: ScoreAlong
    flops: Callable[[ModelSize, int, Mapping[str, float]], PassFlops]
    prepare: PrepareAlong = lambda _model, _blocks, directions, _settings: directions


def truncate(direction: Direction, energy: float | None) -> dict[str, LinearMap]:
    """Approximate every block's slice of a direction at low rank, by a truncated SVD.

    Args:
        direction: by block name, [O, I].
        energy: share of the squared norm that the smallest sufficient rank keeps, in (0, 1]; None: keep V whole. A
            block whose factors would cost as much as V is kept whole too.

    Returns:
        The maps by block name.

    Raises:
        ValueError: ``energy`` is outside (0, 1].
    """
    if energy is None:
        return {name: LinearMap(V_OI, None) for name, V_OI in direction.items()}
    if not 0 < energy <= 1:
        raise ValueError(f"energy: expected a share in (0, 1], got {energy}")
    return {name: _truncate_block(V_OI, energy) for name, V_OI in direction.items()}


def score_exactly(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    directions: Sequence[Direction],
    settings: Mapping[str, float],
) -> Influences:
    """Score by the whole directions; the scorer `exact`. Errors as `score_by_gradient`."""
    return score_by_gradient(model, batches, blocks, [truncate(direction, None) for direction in directions])


def score_at_low_rank(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    maps: Sequence[Mapping[str, LinearMap]],
    settings: Mapping[str, float],
) -> Influences:
    """Score by directions of which `energy` is kept; the scorer `low_rank`. Errors as `score_by_gradient`."""
    return score_by_gradient(model, batches, blocks, maps, rounded=True)


def score_forward_only(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    perturbed: Sequence[Perturbed],
    settings: Mapping[str, float],
) -> Influences:
    """Score by losses at `step` to either side; the scorer `forward_only`. Errors as `score_by_losses`."""
    return score_perturbed(model, batches, perturbed)


def score_by_gradient(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    maps: Sequence[Mapping[str, LinearMap]],
    rounded: bool = False,
) -> Influences:
    """Score documents by one forward and backward pass, for K directions at once: Σ_t δ_t^T V a_t.

    Args:
        model: a causal language model; left as it was found.
        batches: as for `influence.score_documents`; read once.
        blocks: the blocks of the directions.
        maps: K directions, each by block name.
        rounded: whether a float32 model's products may be computed in lower precision, see `precision.product_dtype`.

    Returns:
        Influence [N, K] and targets [N].

    Raises:
        ValueError: a document without a target.
    """
    weight_VD = head_weight(model)
    weight_VD = weight_VD.to(product_dtype(model.dtype, weight_VD.device, rounded))
    local_maps = [{name: _to_device(linear, weight_VD) for name, linear in direction.items()} for direction in maps]
    rows: list[Tensor] = []
    n_targets: list[int] = []
    # Each batch: compact it, run forward and backward; the hooks add every block's part to the sums [K, N]
    with frozen(model):
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            sums_KN = torch.zeros(len(maps), len(documents.lengths_N), dtype=torch.float64, device=weight_VD.device)
            backward(model, documents, blocks, partial(_contract, local_maps, sums_KN), weight_VD, rounded=rounded)
            rows.append(sums_KN.T)
            n_targets += documents.n_targets_N
    return _collect(rows, n_targets, len(maps))


def score_by_losses(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    blocks: Sequence[Block],
    directions: Sequence[Direction],
    step: float,
) -> Influences:
    """Score documents by forward passes alone: central difference of the loss along each direction.

    Args:
        model: a causal language model; left as it was found.
        batches: as for `influence.score_documents`; read once.
        blocks: the blocks of the directions.
        directions: K directions by block name.
        step: as for `perturb`.

    Returns:
        Influence [N, K] and targets [N].

    Raises:
        ValueError: as `perturb`, or a document without a target.
    """
    return score_perturbed(model, batches, perturb(model, blocks, directions, step))


def score_perturbed(model: PreTrainedModel, batches: Iterable[Batch], perturbed: Sequence[Perturbed]) -> Influences:
    """Score documents as `score_by_losses` does, by weights that `perturb` gave.

    The difference of losses is taken target by target and summed in float64, since it is small compared with the loss.
    """
    weight_VD = head_weight(model)
    weight_VD = weight_VD.to(product_dtype(model.dtype, weight_VD.device, rounded=True))
    rows: list[Tensor] = []
    n_targets: list[int] = []
    # Each batch: [L(θ + εv) - L(θ - εv)] / 2ε per document, one column per direction: [N, K]
    with frozen(model), torch.inference_mode():
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            columns = [_loss_difference(model, documents, weight_VD, one) / (2 * one.epsilon) for one in perturbed]
            rows.append(torch.stack(columns, dim=1))
            n_targets += documents.n_targets_N
    return _collect(rows, n_targets, len(perturbed))


EXACT = Scorer(score_exactly, lambda size, directions, _: exact_flops(size, directions))
LOW_RANK = Scorer(
    score_at_low_rank,
    lambda size, directions, settings: contracted_flops(size, settings.get("numbers", directions * size.tracked)),
    lambda _model, _blocks, directions, settings: [truncate(one, settings["energy"]) for one in directions],
)
"""`numbers`: that its directions hold as factors, together."""
FORWARD_ONLY = Scorer(
    score_forward_only,
    lambda size, directions, _: forward_only_flops(size, directions),
    lambda model, blocks, directions, settings: perturb(model, blocks, directions, settings["step"]),
)


def _truncate_block(V_OI: Tensor, energy: float) -> LinearMap:
    """Factor V ≈ P Q by its leading singular vectors, from the smaller Gram matrix: cheaper than an SVD."""
    if V_OI.shape[0] < V_OI.shape[1]:
        flipped = _truncate_block(V_OI.T, energy)
        if flipped.left_OR is None:
            return LinearMap(V_OI, None)
        return LinearMap(flipped.left_OR.T.contiguous(), flipped.right_RI.T.contiguous())
    # Eigenvectors of V^T V, ascending, and cumulative shares of the squared norm, descending: [I, I], [I]
    V64_OI = V_OI.double()
    squares_R, vectors_IR = torch.linalg.eigh(V64_OI.T @ V64_OI)
    shares_R = squares_R.clamp(min=0).flip(0).cumsum(0)
    # Smallest rank that keeps the share; Q holds its right singular vectors, P = V Q^T: [R, I], [O, R]
    rank = int(torch.searchsorted(shares_R, energy * shares_R[-1]).item()) + 1
    if rank * sum(V_OI.shape) >= V_OI.numel():
        return LinearMap(V_OI, None)
    right_RI = vectors_IR[:, -rank:].T
    return LinearMap(right_RI.to(V_OI.dtype).contiguous(), (V64_OI @ right_RI.T).to(V_OI.dtype))


def _to_device(linear: LinearMap, like: Tensor) -> LinearMap:
    return LinearMap(linear.right_RI.to(like), None if linear.left_OR is None else linear.left_OR.to(like))


def _contract(
    maps: Sequence[Mapping[str, LinearMap]],
    sums_KN: Tensor,
    group: tuple[Block, ...],
    a_PI: Tensor,
    deltas_PO: list[Tensor],
) -> None:
    """Add the part of a group of blocks that share an input to every document's score, [K, N].

    No mask is needed: δ is zero at every position that does not count.
    """
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        for k, direction in enumerate(maps):
            linear = direction[block.name]
            # Q a + bias column, P^T δ (or δ), and their product summed over R: [P, R], [P, R], [P]
            a_PI, delta_PO = a_PI.to(linear.right_RI), delta_PO.to(linear.right_RI)
            weight_RI, bias_R = linear.right_RI, None
            if block.bias:
                weight_RI, bias_R = linear.right_RI[:, :-1], linear.right_RI[:, -1]
            mapped_PR = torch.nn.functional.linear(a_PI, weight_RI, bias_R)
            against_PR = delta_PO if linear.left_OR is None else delta_PO @ linear.left_OR
            products_P = mapped_PR.mul_(against_PR).sum(dim=1, dtype=accumulation_dtype(mapped_PR.dtype))
            # Sum over the positions of each document: [N]
            sums_KN[k] += products_P.view(sums_KN.shape[1], -1).sum(dim=1, dtype=torch.float64)


def _loss_difference(model: PreTrainedModel, documents: Documents, weight_VD: Tensor, perturbed: Perturbed) -> Tensor:
    """Compute L(θ + εv) - L(θ - εv) per document, [N] float64.

    Both passes up to the head run in full precision, since their difference is small; the head's products need not.
    """
    plus_NTD, minus_NTD = (hidden_states(model, documents, one) for one in (perturbed.plus, perturbed.minus))
    return sum_by_document(loss_difference(plus_NTD, minus_NTD, weight_VD, documents), documents)


def _collect(rows: list[Tensor], n_targets: list[int], n_directions: int) -> Influences:
    """Move the batches' rows to the host, all at once."""
    influence_NK = torch.cat(rows).cpu() if rows else torch.zeros(0, n_directions, dtype=torch.float64)
    return influence_NK.numpy(), np.asarray(n_targets, dtype=np.int64)
