import copy
import re
from dataclasses import replace

import pytest
import torch

from quad_tasks.core import ekfac, precision
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.covariance import accumulate_covariances, diagonal_parts, merge, select_blocks
from quad_tasks.core.ekfac import (
    accumulate_eigenvalues,
    apply_inverse,
    basis_from_tensors,
    basis_to_tensors,
    decompose,
    eigenvalue_sums_from_tensors,
    eigenvalue_sums_to_tensors,
    factors_from_tensors,
    factors_to_tensors,
    finish,
    fit_factors,
    join_bases,
)

LENGTHS = [5, 9, 2, 7]
ATTENTION = ("joint", "split", "none")


def _batches(tiny, seeds=False):
    documents = tiny.random_documents(LENGTHS)
    first, second = ([1, 2], [3, 4]) if seeds else (None, None)
    return [tiny.pad(documents[:2], seeds=first), tiny.pad(documents[2:], "left", extra=1, seeds=second)]


def _dense_curvature(factors, block):
    """The block's EK-FAC matrix, [O*I, O*I], for row-major vec of [O, I]: (U_S ⊗ U_A) diag(Λ) (U_S ⊗ U_A)^T."""
    U = torch.kron(factors.basis.gradient[block.name], factors.basis.activation[block.source])
    return U @ torch.diag(factors.eigenvalues[block.name].flatten()) @ U.T


def _curvatures(factors):
    return {block.name: _dense_curvature(factors, block) for block in factors.basis.blocks}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("qwen2")


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "opt", "gpt2", "gpt_neox", "phi3"])
def test_corrected_eigenvalues_equal_dense_second_moments_of_document_gradients(tiny, family, attention):
    model = tiny.tiny_model(family)
    factors = fit_factors(model, _batches(tiny), attention, "empirical")
    gradients = [tiny.dense_gradient(model, document) for document in tiny.random_documents(LENGTHS)]
    for block in factors.basis.blocks:
        U_OO, U_II = factors.basis.gradient[block.name], factors.basis.activation[block.source]
        squares = [(U_OO.T @ tiny.dense_block(model, block, gradient) @ U_II) ** 2 for gradient in gradients]
        expected = torch.stack(squares).mean(dim=0)
        torch.testing.assert_close(factors.eigenvalues[block.name], expected, rtol=1e-9, atol=1e-9 * expected.max())


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_inverse_equals_the_dense_damped_inverse_of_the_recomposed_curvature(tiny, family, attention):
    model = tiny.tiny_model(family)
    factors = fit_factors(model, _batches(tiny), attention, "empirical")
    gradient = tiny.random_direction(list(factors.basis.blocks))
    inverse = apply_inverse(factors, gradient, damping_scale=0.3)
    for block in factors.basis.blocks:
        curvature = _dense_curvature(factors, block)
        damping = 0.3 * curvature.trace() / len(curvature)
        damped = curvature + damping * torch.eye(len(curvature), dtype=torch.float64)
        expected = torch.linalg.solve(damped, gradient[block.name].flatten()).view(block.shape)
        torch.testing.assert_close(inverse[block.name], expected, rtol=1e-8, atol=1e-8 * expected.abs().max())


def test_eigenbasis_recomposes_the_mean_covariances(tiny, model):
    covariances = accumulate_covariances(model, _batches(tiny), find_blocks(model), "empirical")
    basis = decompose(covariances)
    for name, U_OO in basis.gradient.items():
        mean_OO = covariances.gradient[name] / covariances.n_positions
        rotated_OO = U_OO.T @ mean_OO @ U_OO
        torch.testing.assert_close(
            torch.diag(torch.diag(rotated_OO)), rotated_OO, rtol=0, atol=1e-10 * mean_OO.abs().max()
        )
        torch.testing.assert_close(U_OO @ U_OO.T, torch.eye(len(U_OO), dtype=torch.float64))


def test_curvature_equals_the_dense_fisher_where_theory_says_so(tiny, model):
    """One document with one target: its gradient is one outer product, and F the outer product of its vec."""
    document = tiny.random_documents([2])[0]
    factors = fit_factors(model, [tiny.pad([document])], fisher="empirical")
    gradients = tiny.dense_gradient(model, document)
    for block in factors.basis.blocks:
        vec = tiny.dense_block(model, block, gradients).flatten()
        torch.testing.assert_close(_dense_curvature(factors, block), torch.outer(vec, vec), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (2, 3, 1, 0)])
def test_batch_composition_and_order_do_not_change_factors(tiny, model, order):
    documents = tiny.random_documents(LENGTHS)
    seeds = [1, 2, 3, 4]
    one = fit_factors(model, [tiny.pad(documents, seeds=seeds)])
    batches = [tiny.pad([documents[i]], "left", extra=i, seeds=[seeds[i]]) for i in order]
    expected = _curvatures(one)
    for name, curvature in _curvatures(fit_factors(model, batches)).items():
        torch.testing.assert_close(curvature, expected[name], rtol=1e-7, atol=1e-9 * expected[name].abs().max())


def test_rotating_before_or_after_the_sum_over_tokens_is_the_same(tiny, model):
    """Short and long documents choose differently; each must equal the sum over one document at a time."""
    documents = tiny.random_documents([3, 30])
    basis = decompose(accumulate_covariances(model, [tiny.pad(documents)], find_blocks(model), "empirical"))
    together = accumulate_eigenvalues(model, [tiny.pad(documents)], basis, "empirical")
    apart = [accumulate_eigenvalues(model, [tiny.pad([document])], basis, "empirical") for document in documents]
    torch.testing.assert_close(together.squares, ekfac.merge(*apart).squares)


def test_an_eigenbasis_is_placed_in_the_dtype_it_is_multiplied_in(tiny, model, monkeypatch):
    """A group of blocks at a time: nothing is copied again, and the sums are those of the whole basis, bit by bit."""
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda device: True)
    model, batches = copy.deepcopy(model).bfloat16(), _batches(tiny, seeds=True)
    blocks = find_blocks(model)
    sums = accumulate_covariances(model, batches, blocks, rounded=True)
    parts = [decompose(select_blocks(sums, part)) for part in (blocks[:2], blocks[2:])]
    whole = accumulate_eigenvalues(model, batches, join_bases(parts), rounded=True)
    placed = join_bases(ekfac.place_basis(part, model, rounded=True) for part in parts)
    assert {U_XX.dtype for U_XX in [*placed.activation.values(), *placed.gradient.values()]} == {torch.bfloat16}
    again = ekfac.place_basis(placed, model, rounded=True)
    assert all(again.activation[key] is U_XX for key, U_XX in placed.activation.items())
    torch.testing.assert_close(
        accumulate_eigenvalues(model, batches, placed, rounded=True).squares, whole.squares, rtol=0, atol=0
    )


def test_merged_partial_sums_equal_one_process(tiny, model):
    batches = _batches(tiny, seeds=True)
    blocks = find_blocks(model)
    basis = decompose(merge(*(accumulate_covariances(model, [batch], blocks) for batch in batches)))
    parts = [accumulate_eigenvalues(model, [batch], basis) for batch in batches]
    merged = _curvatures(finish(basis, ekfac.merge(*parts)))
    for name, expected in _curvatures(fit_factors(model, batches)).items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-7, atol=1e-9 * expected.abs().max())


def test_partial_sums_of_other_blocks_do_not_merge(tiny, model):
    joint, split = (
        accumulate_eigenvalues(
            model, _batches(tiny), fit_factors(model, _batches(tiny), a, "empirical").basis, "empirical"
        )
        for a in ("joint", "split")
    )
    with pytest.raises(ValueError, match="expected sums over the same blocks"):
        ekfac.merge(joint, split)


def test_batches_that_can_be_read_once_are_refused(tiny, model):
    with pytest.raises(ValueError, match="can be read twice, got 4 documents on the first pass and 0 on the second"):
        fit_factors(model, iter(_batches(tiny)), fisher="empirical")


def test_empty_batches_are_refused(model):
    with pytest.raises(ValueError, match="at least one position, got none"):
        fit_factors(model, [], fisher="empirical")


def test_sums_over_no_document_are_refused(tiny, model):
    basis = fit_factors(model, _batches(tiny), fisher="empirical").basis
    with pytest.raises(ValueError, match="at least one document, got none"):
        finish(basis, accumulate_eigenvalues(model, [], basis, "empirical"))


def test_fitting_leaves_the_model_as_it_was(tiny):
    model = tiny.tiny_model("qwen2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_factors(model, _batches(tiny), fisher="empirical")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("damping_scale", [0.0, -1.0, float("nan")])
def test_damping_that_is_not_positive_is_refused(tiny, model, damping_scale):
    factors = fit_factors(model, _batches(tiny), fisher="empirical")
    with pytest.raises(ValueError, match="damping_scale: expected a positive number"):
        apply_inverse(factors, {}, damping_scale)


def test_a_gradient_of_other_blocks_is_refused(tiny, model):
    factors = fit_factors(model, _batches(tiny), "joint", "empirical")
    with pytest.raises(ValueError, match=r"expected the factors' 10 blocks, got a difference at .*k_proj"):
        apply_inverse(factors, tiny.random_direction(find_blocks(model, "split")))


def test_a_block_without_curvature_is_named(tiny, model):
    factors = fit_factors(model, _batches(tiny), fisher="empirical")
    name = factors.basis.blocks[2].name
    flat = {**factors.eigenvalues, name: torch.zeros_like(factors.eigenvalues[name])}
    with pytest.raises(FloatingPointError, match=f"{name}: expected finite iHVP"):
        apply_inverse(replace(factors, eigenvalues=flat), tiny.random_direction(list(factors.basis.blocks)))


def test_factors_survive_their_flattening(tiny, model):
    factors = fit_factors(model, _batches(tiny), "split", "empirical")
    again = factors_from_tensors(factors_to_tensors(factors))
    assert again.basis.blocks == factors.basis.blocks
    gradient = tiny.random_direction(list(factors.basis.blocks))
    torch.testing.assert_close(apply_inverse(again, gradient), apply_inverse(factors, gradient), rtol=0, atol=0)


def test_eigenvalue_sums_survive_their_flattening(tiny, model):
    basis = fit_factors(model, _batches(tiny), fisher="empirical").basis
    sums = accumulate_eigenvalues(model, _batches(tiny), basis, "empirical")
    again = eigenvalue_sums_from_tensors(eigenvalue_sums_to_tensors(sums))
    assert again.n_documents == sums.n_documents
    torch.testing.assert_close(again.squares, sums.squares, rtol=0, atol=0)


def test_a_float32_model_keeps_float32_factors_close_to_float64_ones(tiny):
    exact = fit_factors(tiny.tiny_model("llama"), _batches(tiny), fisher="empirical")
    single = fit_factors(tiny.tiny_model("llama").float(), _batches(tiny), fisher="empirical")
    for name, curvature in _curvatures(single).items():
        expected = _dense_curvature(exact, next(b for b in exact.basis.blocks if b.name == name))
        assert curvature.dtype == torch.float32
        assert torch.linalg.norm(curvature - expected) < 1e-3 * torch.linalg.norm(expected)


def _masked(covariances, max_width):
    """The covariances with what lies between two diagonal parts put to zero, whole."""
    sides = []
    for side in (covariances.activation, covariances.gradient):
        kept = {}
        for key, sum_XX in side.items():
            kept[key] = torch.zeros_like(sum_XX)
            for part in diagonal_parts(key, len(sum_XX), max_width).values():
                kept[key][part, part] = sum_XX[part, part]
        sides.append(kept)
    return replace(covariances, activation=sides[0], gradient=sides[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_diagonal_parts_are_the_curvature_without_what_is_between_them(tiny, family):
    model = tiny.tiny_model(family)
    batches, blocks = _batches(tiny), find_blocks(model)
    factors = fit_factors(model, batches, fisher="empirical", max_width=7)
    masked = decompose(_masked(accumulate_covariances(model, batches, blocks, "empirical"), 7))
    whole = finish(masked, accumulate_eigenvalues(model, batches, masked, "empirical"))
    assert max(len(U) for side in (factors.basis.activation, factors.basis.gradient) for U in side.values()) <= 7
    gradient = tiny.random_direction(blocks)
    expected = apply_inverse(whole, gradient)
    for name, inverse in apply_inverse(factors, gradient).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(inverse, expected[name], rtol=1e-6, atol=1e-8 * scale)


def test_diagonal_parts_merge_and_survive_their_flattening(tiny, model):
    blocks, batches = find_blocks(model), _batches(tiny)
    parts = [accumulate_covariances(model, [batch], blocks, "empirical", max_width=6) for batch in batches]
    basis = basis_from_tensors(basis_to_tensors(decompose(merge(*parts))))
    factors = finish(basis, accumulate_eigenvalues(model, batches, basis, "empirical"))
    again = factors_from_tensors(factors_to_tensors(factors))
    gradient = tiny.random_direction(blocks)
    expected = apply_inverse(fit_factors(model, batches, fisher="empirical", max_width=6), gradient)
    for name, inverse in apply_inverse(again, gradient).items():
        torch.testing.assert_close(inverse, expected[name], rtol=1e-6, atol=1e-8 * float(inverse.abs().max()))


def test_parts_are_of_like_width_and_named_by_their_range():
    assert diagonal_parts("down", 10, 4) == {
        "down[0:3]": slice(0, 3),
        "down[3:6]": slice(3, 6),
        "down[6:10]": slice(6, 10),
    }
    assert diagonal_parts("down", 10, 10) == diagonal_parts("down", 10, None) == {"down": slice(0, 10)}


def test_a_covariance_that_is_not_finite_names_its_part(tiny, model):
    covariances = accumulate_covariances(model, _batches(tiny), find_blocks(model), "empirical", max_width=9)
    name = next(key for key in covariances.gradient if "[" in key)
    broken = {**covariances.gradient, name: torch.full_like(covariances.gradient[name], float("nan"))}
    with pytest.raises(FloatingPointError, match=f"{re.escape(name)}: expected finite covariance"):
        decompose(replace(covariances, gradient=broken))


def test_groups_of_blocks_are_decomposed_as_all_of_them_are(tiny):
    model = tiny.tiny_model("llama")
    blocks = find_blocks(model)
    for max_width in (None, 6):
        sums = accumulate_covariances(model, _batches(tiny), blocks, "empirical", max_width=max_width)
        parts = [select_blocks(sums, group) for group in (blocks[:5], blocks[5:])]
        assert len(parts[0].gradient) + len(parts[1].gradient) == len(sums.gradient)
        whole, joined = decompose(sums), join_bases(decompose(part) for part in parts)
        assert joined.blocks == whole.blocks
        for side in ("activation", "gradient"):
            expected, found = getattr(whole, side), getattr(joined, side)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
