"""Fit EK-FAC, the eigenvalue-corrected Kronecker-factored curvature, and apply its damped inverse.

    A = U_A Λ_A U_A^T     S = U_S Λ_S U_S^T     Λ = E_documents[(U_S^T (Σ_t δ_t a_t^T) U_A)^2], elementwise [O, I]
    (F + λ I)^-1 G = U_S [ (U_S^T G U_A) / (Λ + λ) ] U_A^T        λ = damping_scale · mean(Λ), per block

A and S are the activation and gradient covariances (`covariance.py`), G a gradient of a block. Owns the eigenbasis, the
corrected eigenvalues and the inverse. A covariance stored as diagonal parts has an eigenbasis of such parts; Λ and the
inverse are whole all the same. Normalisers differ on purpose: A and S are means over positions, Λ a mean over
documents. Source: George et al. 2018, arXiv 1806.03884; Grosse et al. 2023, arXiv 2308.03296.

Shape suffixes: N documents, T tokens, P positions of a batch, N * T, M positions that count, I block inputs (the
constant one included), O block outputs, X either, V vocabulary, D hidden width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Attention, Block, blocks_from_tensor, blocks_to_tensor, find_blocks
from quad_tasks.core.capture import backward
from quad_tasks.core.covariance import Covariances, accumulate_covariances, find_parts, with_constant, with_prefix
from quad_tasks.core.loss import Batch, Documents, Fisher, draw_uniforms, frozen, head_weight, read_batch
from quad_tasks.core.precision import accumulation_dtype, product_dtype


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors of the covariances, as columns.

    Attributes:
        blocks: the model's tracked blocks.
        activation: U_A by block source, [I, I], or its diagonal parts (`covariance.diagonal_parts`).
        gradient: U_S by block name, [O, O], or its diagonal parts.
    """

    blocks: tuple[Block, ...]
    activation: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True)
class EigenvalueSums:
    """Sums of corrected eigenvalues over documents, on the CPU.

    Attributes:
        squares: Σ (U_S^T (Σ_t δ_t a_t^T) U_A)^2 by block name, [O, I].
        n_documents: number of documents.
    """

    squares: Mapping[str, Tensor]
    n_documents: int


@dataclass(frozen=True)
class Factors:
    """A fitted EK-FAC curvature.

    Attributes:
        basis: the eigenbasis.
        eigenvalues: Λ by block name, [O, I], a mean over documents.
    """

    basis: Eigenbasis
    eigenvalues: Mapping[str, Tensor]


def decompose(covariances: Covariances, device: str = "cpu") -> Eigenbasis:
    """Compute the eigenvectors of both covariances of every block, in float64.

    Args:
        covariances: sums over the whole sample.
        device: where each is decomposed.

    Returns:
        The eigenbasis, on the CPU in the dtype of the sums.

    Raises:
        ValueError: the covariances hold no position.
        FloatingPointError: a covariance is not finite; the message names the block.
    """
    if covariances.n_positions == 0:
        raise ValueError("expected covariances over at least one position, got none")
    n = covariances.n_positions
    activation, gradient = (
        {key: _eigenvectors(key, sum_XX.to(device), n).cpu() for key, sum_XX in side.items()}
        for side in (covariances.activation, covariances.gradient)
    )
    return Eigenbasis(covariances.blocks, activation, gradient)


def join_bases(parts: Iterable[Eigenbasis]) -> Eigenbasis:
    """Join the eigenbases of groups of a model's blocks, in the blocks' order."""
    blocks: tuple[Block, ...] = ()
    activation: dict[str, Tensor] = {}
    gradient: dict[str, Tensor] = {}
    for part in parts:
        blocks += part.blocks
        activation |= part.activation
        gradient |= part.gradient
    return Eigenbasis(blocks, activation, gradient)


def place_basis(basis: Eigenbasis, model: PreTrainedModel, rounded: bool = False) -> Eigenbasis:
    """Move an eigenbasis to a model's device, in the dtype of `accumulate_eigenvalues`'s products with it.

    A basis that is read in pieces is placed piece by piece: where that dtype is narrower, two copies are never held.
    """
    device, dtype = model.device, _factor_dtype(model, rounded)
    activation, gradient = (
        {key: U_XX.to(device, dtype) for key, U_XX in side.items()} for side in (basis.activation, basis.gradient)
    )
    return Eigenbasis(basis.blocks, activation, gradient)


def accumulate_eigenvalues(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    basis: Eigenbasis,
    fisher: Fisher = "true",
    generator: torch.Generator | None = None,
    rounded: bool = False,
) -> EigenvalueSums:
    """Sum the squared gradients of documents in the eigenbasis: corrected eigenvalues (EK-FAC, second pass).

    Args:
        model: a causal language model; left as it was found.
        batches: as for `accumulate_covariances`; read once.
        basis: from `decompose`; its blocks are captured.
        fisher: as for `accumulate_covariances`.
        generator: samples the labels of batches without seeds.
        rounded: as for `accumulate_covariances`.

    Returns:
        The sums.

    Raises:
        ValueError: a document without a target, or sampled labels with neither seeds nor generator.
        FloatingPointError: a sum is not finite; the message names the block.
    """
    weight_VD = head_weight(model)
    local_basis = place_basis(basis, model, rounded)
    head_VD = weight_VD.to(_factor_dtype(model, rounded))
    squares = {b.name: torch.zeros(b.shape, dtype=weight_VD.dtype, device=weight_VD.device) for b in basis.blocks}
    n_documents = 0
    # Each batch: compact it, draw label randomness [M], run forward and backward; the hooks add squares [O, I]
    with frozen(model):
        for batch in batches:
            documents = read_batch(batch, weight_VD.device)
            uniforms_M = draw_uniforms(documents, fisher, generator)
            receive = partial(_add_squares, squares, local_basis, documents)
            backward(model, documents, basis.blocks, receive, head_VD, uniforms_M, rounded)
            n_documents += len(documents.lengths_N)
    for name, square_OI in squares.items():
        _check_finite(name, "corrected eigenvalues", square_OI)
    return EigenvalueSums({name: square_OI.cpu() for name, square_OI in squares.items()}, n_documents)


def merge(a: EigenvalueSums, b: EigenvalueSums) -> EigenvalueSums:
    """Merge the sums of two sets of documents in the same eigenbasis.

    Raises:
        ValueError: their blocks differ.
    """
    if a.squares.keys() != b.squares.keys():
        raise ValueError(f"expected sums over the same blocks, got {len(a.squares)} and {len(b.squares)} others")
    squares = {name: square_OI + b.squares[name] for name, square_OI in a.squares.items()}
    return EigenvalueSums(squares, a.n_documents + b.n_documents)


def finish(basis: Eigenbasis, sums: EigenvalueSums) -> Factors:
    """Compute the factors: corrected eigenvalues as means over documents.

    Raises:
        ValueError: the sums hold no document.
    """
    if sums.n_documents == 0:
        raise ValueError("expected corrected eigenvalues over at least one document, got none")
    return Factors(basis, {name: square_OI / sums.n_documents for name, square_OI in sums.squares.items()})


def fit_factors(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    attention: Attention = "joint",
    fisher: Fisher = "true",
    generator: torch.Generator | None = None,
    max_width: int | None = None,
    rounded: bool = False,
) -> Factors:
    """Fit EK-FAC factors in one process.

    Args:
        model: a causal language model; left as it was found.
        batches: a sample of the PRETRAINING distribution; read twice, so a list and not a generator.
        attention: see `find_blocks`.
        fisher: ``true``: labels sampled from the model; ``empirical``: the documents' own next tokens.
        generator: samples the labels of batches without seeds.
        max_width: as for `accumulate_covariances`.
        rounded: as for `accumulate_covariances`.

    Returns:
        The factors.

    Raises:
        ValueError: ``batches`` is empty or can be read only once, or as `accumulate_covariances`.
        UnsupportedLayer: as `find_blocks`.
        FloatingPointError: a sum is not finite; the message names the block.
    """
    # First pass: covariances A [I, I] and S [O, O], then their eigenvectors
    blocks = find_blocks(model, attention)
    covariances = accumulate_covariances(model, batches, blocks, fisher, generator, max_width, rounded)
    basis = decompose(covariances, str(model.device))
    # Second pass: corrected eigenvalues [O, I]
    sums = accumulate_eigenvalues(model, batches, basis, fisher, generator, rounded)
    if sums.n_documents != covariances.n_documents:
        raise ValueError(
            f"batches: expected an iterable that can be read twice, got {covariances.n_documents} documents on the "
            f"first pass and {sums.n_documents} on the second"
        )
    return finish(basis, sums)


def apply_inverse(factors: Factors, gradient: Mapping[str, Tensor], damping_scale: float = 0.1) -> dict[str, Tensor]:
    """Compute the inverse-Hessian-vector product (iHVP): the damped inverse curvature times a gradient, (F + λ I)^-1 G.

    Args:
        factors: from `fit_factors` or `finish`.
        gradient: by block name, [O, I], e.g. from `influence.reference_gradient`.
        damping_scale: λ of a block in units of the mean of its corrected eigenvalues, > 0.

    Returns:
        The iHVP by block name, [O, I], in the dtype of the factors: the direction to score documents with.

    Raises:
        ValueError: ``damping_scale`` is not positive, or the gradient's blocks are not the factors'.
        FloatingPointError: the result is not finite (a block whose eigenvalues are all zero); the message names it.
    """
    if not damping_scale > 0:
        raise ValueError(f"damping_scale: expected a positive number, got {damping_scale}")
    if gradient.keys() != factors.eigenvalues.keys():
        unknown = sorted(gradient.keys() ^ factors.eigenvalues.keys())
        raise ValueError(
            f"gradient: expected the factors' {len(factors.eigenvalues)} blocks, got a difference at {unknown[0]}"
        )
    return {block.name: _invert(block, factors, gradient[block.name], damping_scale) for block in factors.basis.blocks}


def basis_to_tensors(basis: Eigenbasis) -> dict[str, Tensor]:
    """Convert an eigenbasis to named tensors, blocks included, for a tensor file."""
    return {
        "blocks": blocks_to_tensor(basis.blocks),
        **{f"activation/{key}": value for key, value in basis.activation.items()},
        **{f"gradient/{key}": value for key, value in basis.gradient.items()},
    }


def basis_from_tensors(tensors: Mapping[str, Tensor]) -> Eigenbasis:
    """Rebuild an eigenbasis from `basis_to_tensors`."""
    return Eigenbasis(
        blocks=blocks_from_tensor(tensors["blocks"]),
        activation=with_prefix(tensors, "activation/"),
        gradient=with_prefix(tensors, "gradient/"),
    )


def eigenvalue_sums_to_tensors(sums: EigenvalueSums) -> dict[str, Tensor]:
    """Convert sums of eigenvalues to named tensors, the count included, for a tensor file."""
    squares = {f"squares/{name}": value for name, value in sums.squares.items()}
    return {"counts": torch.tensor([sums.n_documents]), **squares}


def eigenvalue_sums_from_tensors(tensors: Mapping[str, Tensor]) -> EigenvalueSums:
    """Rebuild sums of eigenvalues from `eigenvalue_sums_to_tensors`."""
    return EigenvalueSums(with_prefix(tensors, "squares/"), int(tensors["counts"].item()))


def factors_to_tensors(factors: Factors) -> dict[str, Tensor]:
    """Convert factors to named tensors, blocks included, for a tensor file."""
    eigenvalues = {f"eigenvalues/{name}": value for name, value in factors.eigenvalues.items()}
    return {**basis_to_tensors(factors.basis), **eigenvalues}


def factors_from_tensors(tensors: Mapping[str, Tensor]) -> Factors:
    """Rebuild factors from `factors_to_tensors`."""
    basis = basis_from_tensors(tensors)
    return Factors(basis, {block.name: tensors[f"eigenvalues/{block.name}"] for block in basis.blocks})


def _factor_dtype(model: PreTrainedModel, rounded: bool) -> torch.dtype:
    """Return the dtype of the factors of the second pass's products."""
    return product_dtype(model.dtype, model.device, rounded) if rounded else accumulation_dtype(model.dtype)


def _check_finite(name: str, what: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise FloatingPointError(f"{name}: expected finite {what}, got NaN or infinity")


def _eigenvectors(key: str, sum_XX: Tensor, n_positions: int) -> Tensor:
    """Compute the eigenvectors of a mean covariance, as columns, [X, X]."""
    _check_finite(key, "covariance", sum_XX)
    mean_XX = sum_XX.double() / n_positions
    vectors: Tensor = torch.linalg.eigh((mean_XX + mean_XX.T) / 2).eigenvectors
    return vectors.to(sum_XX.dtype)


def _add_squares(
    squares: dict[str, Tensor],
    basis: Eigenbasis,
    documents: Documents,
    group: tuple[Block, ...],
    a_PI: Tensor,
    deltas_PO: list[Tensor],
) -> None:
    """Add each document's squared gradient in the eigenbasis.

    Inputs and output gradients are each rotated before the sum over tokens or after it, whichever takes fewer products:
    T I^2 against O I^2 for the inputs, T O^2 against O^2 I for the output gradients.
    """
    # Inputs with the constant one: [P, I]; rotated by U_A if there are fewer tokens than outputs
    source = group[0].source
    dtype = find_parts(basis.activation, source)[0][1].dtype
    n_tokens = documents.ids_NT.shape[1]
    a_PI = with_constant(a_PI.to(dtype), group[0])
    early_a = n_tokens < sum(block.shape[0] for block in group)
    a_PI = _rotate(a_PI, basis.activation, source) if early_a else a_PI
    for block, delta_PO in zip(group, deltas_PO, strict=True):
        # Output gradients: [P, O]; rotated by U_S if there are fewer tokens than inputs
        early_delta = n_tokens < block.shape[1]
        delta_PO = delta_PO.to(dtype)
        delta_PO = _rotate(delta_PO, basis.gradient, block.name) if early_delta else delta_PO
        # Each document: its gradient Σ_t δ_t a_t^T, [O, I]; rotate what was not rotated yet; add its square
        for row, length in enumerate(documents.n_targets_N):
            tokens = slice(row * n_tokens, row * n_tokens + length)
            gradient_OI = delta_PO[tokens].T @ a_PI[tokens]
            gradient_OI = gradient_OI if early_a else _rotate(gradient_OI, basis.activation, source)
            gradient_OI = gradient_OI if early_delta else _rotate(gradient_OI.T, basis.gradient, block.name).T
            gradient_OI = gradient_OI.to(squares[block.name].dtype)
            squares[block.name].addcmul_(gradient_OI, gradient_OI)


def _rotate(x_PX: Tensor, basis: Mapping[str, Tensor], key: str, back: bool = False) -> Tensor:
    """Multiply rows by the eigenvectors, x U, or rotate back by their transpose, x U^T, part by part."""
    parts = [x_PX[:, columns] @ (U_XX.T if back else U_XX) for columns, U_XX in find_parts(basis, key)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _invert(block: Block, factors: Factors, gradient_OI: Tensor, damping_scale: float) -> Tensor:
    """Apply one block's damped inverse curvature to its gradient, [O, I]."""
    lambda_OI = factors.eigenvalues[block.name]
    basis = factors.basis
    # Into the eigenbasis, U_S^T G U_A: [O, I]
    rotated_OI = _rotate(gradient_OI.to(lambda_OI), basis.activation, block.source)
    rotated_OI = _rotate(rotated_OI.T, basis.gradient, block.name).T
    # Divide by the damped eigenvalues, Λ + λ: [O, I]
    rotated_OI = rotated_OI / (lambda_OI + damping_scale * lambda_OI.mean())
    # Back out of the eigenbasis, U_S (...) U_A^T: [O, I]
    inverse_OI = _rotate(
        _rotate(rotated_OI, basis.activation, block.source, back=True).T, basis.gradient, block.name, back=True
    ).T
    _check_finite(block.name, "iHVP", inverse_OI)
    return inverse_OI.contiguous()
