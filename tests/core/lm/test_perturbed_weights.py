"""Copies of the weights along a direction: which are made, how many, and that the model keeps its own."""

import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.influence import prepare_directions, score_documents, score_prepared
from quad_tasks.core.lm.perturbed_weights import perturb


def _sizes(perturbed):
    """Numbers of all copies, one that several hold counted once."""
    held = {id(tensor): tensor for one in perturbed for side in (one.plus, one.minus) for tensor in side.values()}
    return sum(tensor.numel() for tensor in held.values())


@pytest.mark.parametrize("n_directions", [1, 3])
def test_tracked_weights_are_copied_twice_a_direction_and_others_of_a_bfloat16_model_once(tiny, n_directions):
    model = tiny.tiny_model("gpt2").to(torch.bfloat16)
    blocks = find_blocks(model)
    tracked = sum(block.shape[0] * block.shape[1] for block in blocks)
    below = sum(p.numel() for p in model.base_model.parameters())
    directions = [tiny.random_direction(blocks, seed) for seed in range(n_directions)]
    perturbed = perturb(model, blocks, directions, 1e-3)
    assert _sizes(perturbed) == 2 * n_directions * tracked + below - tracked
    assert {tensor.dtype for one in perturbed for tensor in one.plus.values()} == {torch.float32}


def test_both_sides_lie_a_step_from_the_weights_and_these_stay(tiny):
    model = tiny.tiny_model("llama_bias")
    before = {name: value.clone() for name, value in model.named_parameters()}
    blocks = find_blocks(model)
    [one] = perturb(model, blocks, [tiny.random_direction(blocks)], 1e-2)
    norm = sum(before[f"model.{name}"].square().sum() for name in one.plus).sqrt()
    for side in (one.plus, one.minus):
        moved = sum((value - before[f"model.{name}"]).square().sum() for name, value in side.items()).sqrt()
        torch.testing.assert_close(moved, 1e-2 * norm)
    for name, value in one.plus.items():
        torch.testing.assert_close((value + one.minus[name]) / 2, before[f"model.{name}"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_weights_copied_once_score_as_weights_copied_each_time(tiny):
    model = tiny.tiny_model("phi3")
    blocks = find_blocks(model)
    directions = {"a": tiny.random_direction(blocks, 0), "b": tiny.random_direction(blocks, 1)}
    prepared = prepare_directions(model, directions, "forward_only")
    for seed in (0, 1):
        batches = [tiny.pad(tiny.random_documents([4, 6], seed=seed))]
        found = score_prepared(model, batches, prepared)
        for name, direction in directions.items():
            expected = score_documents(model, batches, direction, "forward_only").influence
            assert found[name].influence.tolist() == expected.tolist()
