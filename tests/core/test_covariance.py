from collections import defaultdict
from functools import partial

import pytest
import torch
from torch.nn import functional

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.covariance import (
    accumulate_covariances,
    add_tensors,
    covariances_from_tensors,
    covariances_to_tensors,
    merge,
)
from quad_tasks.core.loss import draw_uniforms, frozen, head_weight, hidden_states, loss_gradient, read_batch

LENGTHS = [5, 9, 2, 7]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("llama_bias")


def _assert_equal(a, b):
    assert (a.n_positions, a.n_documents) == (b.n_positions, b.n_documents)
    for part in ("activation", "gradient"):
        torch.testing.assert_close(dict(getattr(a, part)), dict(getattr(b, part)), rtol=1e-9, atol=1e-12)


def _watched_pass(tiny, model, blocks, document):
    """Keep each module's input and output gradient of a plain forward and backward pass over one document."""
    kept = {}

    def keep(name, _module, inputs, output):
        output.retain_grad()
        kept[name] = (inputs[0][0], output)

    names = [name for block in blocks for name in block.modules]
    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    tiny.document_loss(model, document).backward()
    for handle in handles:
        handle.remove()
    return {name: (inputs.detach(), output.grad[0]) for name, (inputs, output) in kept.items()}


def _hand_sums(tiny, model, blocks, documents):
    """Sum outer products document by document, token by token, the last token of each left out."""
    A, S = defaultdict(int), defaultdict(int)
    for document in documents:
        kept = _watched_pass(tiny, model, blocks, document)
        for token in range(len(document) - 1):
            for source, bias in {block.source: block.bias for block in blocks}.items():
                a = torch.cat([kept[source][0][token], torch.ones(int(bias), dtype=torch.float64)])
                A[source] = A[source] + torch.outer(a, a)
            for block in blocks:
                delta = torch.cat([kept[name][1][token] for name in block.modules])
                S[block.name] = S[block.name] + torch.outer(delta, delta)
    return A, S


@pytest.mark.parametrize("attention", ["joint", "split", "none"])
def test_covariances_equal_sums_by_hand(tiny, attention):
    model = tiny.tiny_model("qwen2")
    documents = tiny.random_documents(LENGTHS)
    blocks = find_blocks(model, attention)
    covariances = accumulate_covariances(model, [tiny.pad(documents)], blocks, "empirical")
    A, S = _hand_sums(tiny, model, blocks, documents)
    torch.testing.assert_close(dict(covariances.activation), dict(A))
    torch.testing.assert_close(dict(covariances.gradient), dict(S))
    assert (covariances.n_positions, covariances.n_documents) == (sum(LENGTHS) - len(LENGTHS), len(LENGTHS))


def test_activation_covariance_is_summed_once_per_shared_input(tiny, model):
    covariances = accumulate_covariances(
        model, [tiny.pad(tiny.random_documents([4]))], find_blocks(model, "split"), "empirical"
    )
    assert (len(covariances.activation), len(covariances.gradient)) == (2 * 4, 2 * 7)


def test_constant_coordinate_counts_the_positions(tiny, model):
    covariances = accumulate_covariances(
        model, [tiny.pad(tiny.random_documents(LENGTHS))], find_blocks(model), "empirical"
    )
    assert all(sum_II[-1, -1] == covariances.n_positions for sum_II in covariances.activation.values())


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_merged_covariances_equal_one_pass(tiny, model, fisher):
    documents = tiny.random_documents(LENGTHS)
    blocks = find_blocks(model)
    halves = [
        accumulate_covariances(model, [tiny.pad(documents[part], seeds=[*range(4)][part])], blocks, fisher)
        for part in (slice(0, 2), slice(2, 4))
    ]
    one_pass = accumulate_covariances(model, [tiny.pad(documents, seeds=[*range(4)])], blocks, fisher)
    _assert_equal(merge(*halves), one_pass)


def test_covariances_of_other_blocks_do_not_merge(tiny, model):
    batches = [tiny.pad(tiny.random_documents([4]))]
    joint, split = (
        accumulate_covariances(model, batches, find_blocks(model, a), "empirical") for a in ("joint", "split")
    )
    with pytest.raises(ValueError, match="expected covariances of the same blocks"):
        merge(joint, split)


def _flat_halves(tiny, model, attention="joint"):
    documents, blocks = tiny.random_documents(LENGTHS), find_blocks(model, attention)
    return [
        accumulate_covariances(model, [tiny.pad(documents[part])], blocks, "empirical")
        for part in (slice(0, 2), slice(2, 4))
    ]


def test_sums_added_in_place_are_those_that_are_merged(tiny, model):
    first, second = _flat_halves(tiny, model)
    merged = merge(first, second)
    total = {name: tensor.clone() for name, tensor in covariances_to_tensors(first).items()}
    kept = dict(total)
    add_tensors(total, covariances_to_tensors(second).items())
    found = covariances_from_tensors(total)
    assert found.blocks == merged.blocks
    assert (found.n_positions, found.n_documents) == (merged.n_positions, merged.n_documents)
    for part in ("activation", "gradient"):
        assert all(torch.equal(tensor, getattr(merged, part)[name]) for name, tensor in getattr(found, part).items())
    assert all(total[name] is tensor for name, tensor in kept.items())


def test_sums_of_other_blocks_are_not_added(tiny, model):
    first, _ = _flat_halves(tiny, model)
    other, _ = _flat_halves(tiny, model, "split")
    with pytest.raises(ValueError, match="expected sums over the same blocks"):
        add_tensors(covariances_to_tensors(first), covariances_to_tensors(other).items())
    less = dict(list(covariances_to_tensors(first).items())[:-1])
    with pytest.raises(ValueError, match="expected sums over the same blocks, got none for gradient/"):
        add_tensors(covariances_to_tensors(first), less.items())


def test_batch_order_and_padding_do_not_change_sampled_covariances(tiny, model):
    documents = tiny.random_documents(LENGTHS)
    blocks = find_blocks(model)
    seeds = [11, 12, 13, 14]
    one = accumulate_covariances(model, [tiny.pad(documents, seeds=seeds)], blocks)
    batches = [tiny.pad([documents[i]], "left", extra=i, seeds=[seeds[i]]) for i in (3, 0, 2, 1)]
    _assert_equal(accumulate_covariances(model, batches, blocks), one)


def test_sampled_labels_follow_the_model_s_distribution(tiny, model):
    """Over labels, δ δ^T at the head averages to W^T (diag(p) - p p^T) W; here of the only target of one document."""
    document = tiny.random_documents([2])[0]
    n_draws = 4000
    with frozen(model), torch.no_grad():
        documents = read_batch(tiny.pad([document] * n_draws, seeds=list(range(n_draws))), torch.device("cpu"))
        weight_VD = head_weight(model)
        states = hidden_states(model, documents)
        delta = loss_gradient(states, weight_VD, documents, draw_uniforms(documents, "true", None))[:, 0]
        p = functional.softmax(states[0, 0] @ weight_VD.T, dim=0)
    expected = weight_VD.T @ (torch.diag(p) - torch.outer(p, p)) @ weight_VD
    assert torch.linalg.norm(delta.T @ delta / n_draws - expected) < 0.05 * torch.linalg.norm(expected)


def test_generator_draws_the_labels_of_batches_without_seeds(tiny, model):
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    blocks = find_blocks(model)
    a, b, c = (
        accumulate_covariances(model, batches, blocks, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    _assert_equal(a, b)
    assert not torch.allclose(a.gradient[blocks[0].name], c.gradient[blocks[0].name])


def test_sampled_labels_without_seed_or_generator_are_refused(tiny, model):
    with pytest.raises(ValueError, match="expected a 'seed' per row of the batch or a generator"):
        accumulate_covariances(model, [tiny.pad(tiny.random_documents([4]))], find_blocks(model))


def test_unknown_fisher_is_refused(tiny, model):
    with pytest.raises(ValueError, match="expected 'true' or 'empirical', got 'both'"):
        accumulate_covariances(model, [tiny.pad(tiny.random_documents([4]))], find_blocks(model), "both")


def test_a_covariance_that_is_not_finite_names_its_block(tiny):
    model = tiny.tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"model.layers.0.self_attn.qkv: expected a finite covariance"):
        accumulate_covariances(model, [tiny.pad(tiny.random_documents([4]))], find_blocks(model), "empirical")


def test_covariances_survive_their_flattening(tiny, model):
    covariances = accumulate_covariances(model, [tiny.pad(tiny.random_documents([4]))], find_blocks(model), "empirical")
    again = covariances_from_tensors(covariances_to_tensors(covariances))
    assert again.blocks == covariances.blocks
    _assert_equal(again, covariances)
