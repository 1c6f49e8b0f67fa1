import copy

import numpy as np
import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import (
    gradient_sums,
    reference_gradient,
    score_directions,
    score_documents,
)

LENGTHS = [5, 9, 2, 7]
FAMILIES = ["llama", "llama_bias", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_neox", "phi3"]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("qwen2")


@pytest.mark.parametrize("attention", ["joint", "split", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_score_equals_the_product_with_autograd_s_gradient(tiny, family, attention):
    model = tiny.tiny_model(family)
    blocks = find_blocks(model, attention)
    direction = tiny.random_direction(blocks)
    documents = tiny.random_documents(LENGTHS)
    batches = [tiny.pad(documents[:3], "left", extra=2), tiny.pad(documents[3:], extra=1)]
    scores = score_documents(model, batches, direction)
    expected = [tiny.gradient_along(model, blocks, direction, document) for document in documents]
    np.testing.assert_allclose(scores.influence, expected, rtol=1e-9)
    assert scores.n_tokens.tolist() == [length - 1 for length in LENGTHS]
    assert (scores.influence.dtype, scores.n_tokens.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_gradient_equals_autograd_s_mean_per_target(tiny, family):
    model = tiny.tiny_model(family)
    blocks = find_blocks(model)
    documents = tiny.random_documents(LENGTHS)
    gradient = reference_gradient(model, [tiny.pad(documents[:2]), tiny.pad(documents[2:], "left")], blocks)
    dense = [tiny.dense_gradient(model, document) for document in documents]
    for block in blocks:
        expected = sum(tiny.dense_block(model, block, one) for one in dense) / sum(length - 1 for length in LENGTHS)
        torch.testing.assert_close(gradient[block.name], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_only_tends_to_exact_as_its_step_shrinks(tiny, family):
    model = tiny.tiny_model(family)
    direction = tiny.random_direction(find_blocks(model))
    batches = [tiny.pad(tiny.random_documents(LENGTHS), "left")]
    exact = score_documents(model, batches, direction).influence
    near = score_documents(model, batches, direction, "forward_only", step=1e-6).influence
    np.testing.assert_allclose(near, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_low_rank_equals_exact_on_a_direction_of_low_rank(tiny, model):
    generator = torch.Generator().manual_seed(0)
    direction = {
        block.name: torch.outer(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in block.shape))
        for block in find_blocks(model)
    }
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    scores = [score_documents(model, batches, direction, scorer).influence for scorer in ("low_rank", "exact")]
    np.testing.assert_allclose(*scores, rtol=1e-9)


def test_low_rank_contracts_the_truncated_direction(tiny, model):
    blocks = find_blocks(model)
    direction = tiny.random_direction(blocks)
    documents = tiny.random_documents(LENGTHS)
    truncated = {}
    for name, V in direction.items():
        U, s, W = torch.linalg.svd(V, full_matrices=False)
        kept = torch.cumsum(s**2, 0) - s**2 < 0.4 * (s**2).sum()  # the least rank that holds 40 %
        truncated[name] = (U * (s * kept)) @ W
    scores = score_documents(model, [tiny.pad(documents)], direction, "low_rank", energy=0.4)
    expected = [tiny.gradient_along(model, blocks, truncated, document) for document in documents]
    np.testing.assert_allclose(scores.influence, expected, rtol=1e-9)


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_padding_and_batch_composition_do_not_change_scores(tiny, scorer):
    model = tiny.tiny_model("llama").float()
    direction = {name: V.float() for name, V in tiny.random_direction(find_blocks(model)).items()}
    documents = tiny.random_documents(LENGTHS)
    one = score_documents(model, [tiny.pad(documents)], direction, scorer).influence
    for batches in (
        [tiny.pad(documents, "left", extra=5)],
        [tiny.pad(documents, "right", extra=5)],
        [tiny.pad([document], "left", extra=3) for document in documents],
        [tiny.pad(documents[:1]), tiny.pad(documents[1:], "left")],
    ):
        other = score_documents(model, batches, direction, scorer).influence
        tolerance = 1e-6 if scorer != "forward_only" else 1e-4  # a difference of float32 losses
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


def test_scores_follow_the_order_of_the_documents(tiny, model):
    direction = tiny.random_direction(find_blocks(model))
    documents = tiny.random_documents(LENGTHS)
    forwards = score_documents(model, [tiny.pad(documents)], direction).influence
    backwards = score_documents(model, [tiny.pad(documents[::-1])], direction).influence
    np.testing.assert_allclose(backwards[::-1], forwards, rtol=1e-9)


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_several_directions_at_once_equal_each_alone(tiny, model, scorer):
    blocks = find_blocks(model, "split")
    directions = {name: tiny.random_direction(blocks, seed) for seed, name in enumerate(["novels", "code", "law"])}
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    together = score_directions(model, batches, directions, scorer)
    assert list(together) == ["novels", "code", "law"]
    for name, direction in directions.items():
        alone = score_documents(model, batches, direction, scorer)
        np.testing.assert_allclose(together[name].influence, alone.influence, rtol=1e-9)


def test_sums_of_two_halves_equal_the_whole(tiny, model):
    blocks = find_blocks(model)
    documents = tiny.random_documents(LENGTHS)
    (a, n_a), (b, n_b), (whole, n) = (
        gradient_sums(model, [tiny.pad(part)], blocks) for part in (documents[:2], documents[2:], documents)
    )
    torch.testing.assert_close({name: a[name] + b[name] for name in a}, whole)
    assert n_a + n_b == n == sum(LENGTHS) - len(LENGTHS)


def _reference_loss(tiny, model, documents):
    with torch.no_grad():
        n_targets = sum(len(document) - 1 for document in documents)
        return sum(float(tiny.document_loss(model, document)) for document in documents) / n_targets


def _after_one_step(tiny, model, blocks, documents, reference):
    """The reference loss after one small step of gradient descent on the documents, tracked modules only."""
    stepped = copy.deepcopy(model)
    tracked = {f"{name}.{kind}" for block in blocks for name in block.modules for kind in ("weight", "bias")}
    loss = sum(tiny.document_loss(stepped, document) for document in documents)
    loss.backward()
    with torch.no_grad():
        for name, parameter in stepped.named_parameters():
            if name in tracked:
                parameter.sub_(parameter.grad, alpha=1e-5)
    return _reference_loss(tiny, stepped, reference)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_training_on_the_highest_influence_lowers_the_reference_loss_and_on_the_lowest_raises_it(tiny, family):
    """The sign. With v = g_r (no curvature) influence is the first-order fall of the loss under gradient descent."""
    model = tiny.tiny_model(family)
    blocks = find_blocks(model)
    reference = tiny.random_documents([8] * 4, seed=1)
    pool = tiny.random_documents([8] * 40, seed=2)
    direction = reference_gradient(model, [tiny.pad(reference)], blocks)
    order = np.argsort(score_documents(model, [tiny.pad(pool)], direction).influence)
    before = _reference_loss(tiny, model, reference)
    assert _after_one_step(tiny, model, blocks, [pool[i] for i in order[-10:]], reference) < before
    assert _after_one_step(tiny, model, blocks, [pool[i] for i in order[:10]], reference) > before


def test_the_reference_set_itself_has_positive_influence_under_the_curvature(tiny, model):
    """<(F + λI)^-1 g, g> > 0, the curvature being positive definite."""
    reference = [tiny.pad(tiny.random_documents([8] * 4, seed=1))]
    factors = fit_factors(model, [tiny.pad(tiny.random_documents(LENGTHS))], fisher="empirical")
    direction = apply_inverse(factors, reference_gradient(model, reference, find_blocks(model)))
    assert score_documents(model, reference, direction).influence.sum() > 0


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_scoring_leaves_the_model_as_it_was(tiny, scorer):
    model = tiny.tiny_model("gpt2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    direction = tiny.random_direction(find_blocks(model))
    score_documents(model, [tiny.pad(tiny.random_documents(LENGTHS))], direction, scorer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_an_exception_from_the_batches_leaves_the_model_as_it_was(tiny, scorer):
    model = tiny.tiny_model("gpt2").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def batches():
        yield tiny.pad(tiny.random_documents(LENGTHS))
        raise OSError("shard lost")

    with pytest.raises(OSError, match="shard lost"):
        score_documents(model, batches(), tiny.random_direction(find_blocks(model)), scorer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off_while_scoring(tiny, model):
    noisy = tiny.tiny_model("gpt2").train()
    assert noisy.config.resid_pdrop > 0
    direction = tiny.random_direction(find_blocks(noisy))
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    scores = [score_documents(noisy, batches, direction).influence for _ in range(2)]
    np.testing.assert_array_equal(*scores)


def test_one_pass_batches_can_be_scored(tiny, model):
    direction = tiny.random_direction(find_blocks(model))
    documents = tiny.random_documents(LENGTHS)
    scores = score_documents(model, (tiny.pad([document]) for document in documents), direction)
    assert len(scores.influence) == len(LENGTHS)


def test_no_documents_give_no_scores(tiny, model):
    for scorer in ("exact", "forward_only"):
        scores = score_documents(model, [], tiny.random_direction(find_blocks(model)), scorer)
        assert (scores.influence.shape, scores.n_tokens.shape) == ((0,), (0,))


def test_an_unknown_scorer_is_refused(tiny, model):
    with pytest.raises(ValueError, match="scorers: expected one of exact, low_rank, forward_only, found 'fast'"):
        score_documents(model, [], tiny.random_direction(find_blocks(model)), "fast")


def test_no_direction_is_refused(model):
    with pytest.raises(ValueError, match="directions: expected at least one, got none"):
        score_directions(model, [], {})


@pytest.mark.parametrize("energy", [0.0, 1.5])
def test_energy_outside_its_range_is_refused(tiny, model, energy):
    with pytest.raises(ValueError, match=r"energy: expected a share in \(0, 1\]"):
        score_documents(model, [], tiny.random_direction(find_blocks(model)), "low_rank", energy=energy)


def test_a_step_that_is_not_positive_is_refused(tiny, model):
    with pytest.raises(ValueError, match="step: expected a positive number, got 0"):
        score_documents(model, [], tiny.random_direction(find_blocks(model)), "forward_only", step=0)


def test_a_bfloat16_model_is_scored_by_losses_as_its_float32_self_is(tiny):
    half = tiny.tiny_model("llama").bfloat16()
    direction, batches = tiny.random_direction(find_blocks(half)), [tiny.pad(tiny.random_documents(LENGTHS))]
    found, expected = (
        score_documents(one, batches, direction, "forward_only") for one in (half, copy.deepcopy(half).float())
    )
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-3)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_an_empty_reference_set_is_refused(model):
    with pytest.raises(ValueError, match="reference set: expected at least one document, got none"):
        reference_gradient(model, [], find_blocks(model))


def test_a_score_that_is_not_finite_names_its_document(tiny):
    model = tiny.tiny_model("llama")
    documents = [torch.tensor([3, 4, 5]), torch.tensor([3, 9, 5])]
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    with pytest.raises(FloatingPointError, match="document 1: expected a finite influence"):
        score_documents(model, [tiny.pad(documents)], tiny.random_direction(find_blocks(model)))


def test_a_bfloat16_model_scores_close_to_its_float64_self(tiny):
    model = tiny.tiny_model("llama").bfloat16()
    direction = tiny.random_direction(find_blocks(model))
    batches = [tiny.pad(tiny.random_documents([9] * 12))]
    low = score_documents(model, batches, direction).influence
    high = score_documents(model.double(), batches, direction).influence
    assert np.corrcoef(low, high)[0, 1] > 0.99
