"""The scorers' arithmetic against autograd, a dense singular value decomposition and weights that are really moved."""

import copy

import numpy as np
import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.scorers import score_by_gradient, score_by_losses, truncate

LENGTHS = [4, 7, 2]


@pytest.fixture(scope="module", params=["llama_bias", "gpt2", "phi3"])
def model(tiny, request):
    return tiny.tiny_model(request.param)


def norm(tensors) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5


def lay_out(tiny, model, blocks, direction) -> tuple[torch.Tensor | None, ...]:
    """A direction in the shapes of the model's parameters: the gradient of its inner product with the weights."""
    weights = {name: torch.zeros_like(value, requires_grad=True) for name, value in model.named_parameters()}
    product = sum((direction[b.name] * tiny.dense_block(model, b, weights)).sum() for b in blocks)
    return torch.autograd.grad(product, list(weights.values()), allow_unused=True)


def low_rank_matrix(shape: tuple[int, int], values: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64))[0] for n in shape
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
@pytest.mark.parametrize(("energy", "rank"), [(0.6, 1), (0.9, 2), (0.98, 3), (0.999999, 4)])
def test_a_truncated_map_is_the_best_one_of_the_least_sufficient_rank(shape, energy, rank):
    """Shares of the squared norm by hand: 64, 16, 4 and 1 of 85."""
    V_OI = low_rank_matrix(shape, [8.0, 4.0, 2.0, 1.0])
    linear = truncate({"block": V_OI}, energy)["block"]
    U, S, Wh = np.linalg.svd(V_OI.numpy(), full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ Wh[:rank]
    assert linear.left_OR.shape[1] == linear.right_RI.shape[0] == rank
    np.testing.assert_allclose((linear.left_OR @ linear.right_RI).numpy(), best, atol=1e-9)


def test_a_map_that_factors_would_not_make_cheaper_is_kept_whole():
    V_OI = torch.eye(6, dtype=torch.float64)
    assert truncate({"block": V_OI}, 0.99)["block"].left_OR is None
    assert truncate({"block": V_OI}, None)["block"].right_RI is V_OI


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.01])
def test_an_energy_outside_its_range_is_refused(energy):
    with pytest.raises(ValueError, match=r"energy: expected a share in \(0, 1\], got"):
        truncate({"block": torch.eye(2)}, energy)


@pytest.mark.parametrize("attention", ["joint", "split"])
def test_scores_by_gradient_equal_autograds_along_each_of_several_directions(tiny, model, attention):
    blocks = find_blocks(model, attention)
    directions = [tiny.random_direction(blocks, seed) for seed in (0, 1)]
    documents = tiny.random_documents(LENGTHS)
    batches = [tiny.pad(documents[:2], "left", extra=1), tiny.pad(documents[2:])]
    influence_NK, n_targets_N = score_by_gradient(model, batches, blocks, [truncate(d, None) for d in directions])
    expected = [[tiny.gradient_along(model, blocks, d, document) for d in directions] for document in documents]
    np.testing.assert_allclose(influence_NK, expected, rtol=1e-9)
    assert n_targets_N.tolist() == [length - 1 for length in LENGTHS]


def test_scores_by_factors_equal_those_of_their_product(tiny, model):
    blocks = find_blocks(model)
    direction = {block.name: low_rank_matrix(block.shape, [3.0, 1.0], seed) for seed, block in enumerate(blocks)}
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    factored, whole = truncate(direction, 0.999), truncate(direction, None)
    assert all(linear.left_OR is not None for linear in factored.values())
    influence_N2, _ = score_by_gradient(model, batches, blocks, [factored, whole])
    np.testing.assert_allclose(influence_N2[:, 0], influence_N2[:, 1], rtol=1e-9)


def test_scores_by_losses_equal_those_of_a_model_whose_weights_are_moved(tiny, model):
    """By plain losses of two copies of the model, moved by hand along the direction, both ways."""
    blocks = find_blocks(model)
    direction = tiny.random_direction(blocks)
    documents = tiny.random_documents(LENGTHS)
    step = 1e-4
    influence_N1, _ = score_by_losses(model, [tiny.pad(documents)], blocks, [direction], step)
    laid_out = lay_out(tiny, model, blocks, direction)
    weights = [tiny.dense_block(model, block, dict(model.named_parameters())).detach() for block in blocks]
    epsilon = step * norm(weights) / norm(direction.values())
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for value, V in zip(moved.parameters(), laid_out, strict=True):
                if V is not None:
                    value.add_(V, alpha=sign * epsilon)
            losses.append([float(tiny.document_loss(moved, document)) for document in documents])
    expected = (np.array(losses[0]) - np.array(losses[1])) / (2 * epsilon)
    np.testing.assert_allclose(influence_N1[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "scale", "message"),
    [
        (0.0, 1.0, "step: expected a positive number, got 0.0"),
        (1e-3, 0.0, "direction: expected one of positive length"),
    ],
)
def test_a_step_or_direction_of_no_length_is_refused(tiny, model, step, scale, message):
    blocks = find_blocks(model)
    direction = {name: scale * V for name, V in tiny.random_direction(blocks).items()}
    with pytest.raises(ValueError, match=message):
        score_by_losses(model, [tiny.pad(tiny.random_documents([3]))], blocks, [direction], step)
