"""FLOPs by hand on tiny models, and beside what torch's own counter sees of the same passes."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.hidden_states import losses_and_states
from quad_tasks.core.loss import read_batch, summed_loss
from quad_tasks.core.scorers import score_by_gradient, score_by_losses, truncate

FAMILIES = ("llama", "llama_bias", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_neox", "phi3")
VOCABULARY = 23
LENGTHS = (9, 9, 9)  # one batch without padding
WINDOW = 16


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def batches_of(lengths=LENGTHS, window=WINDOW):
    generator = np.random.default_rng(0)
    documents = [generator.integers(3, VOCABULARY, n).tolist() for n in lengths]
    return make_batches(documents, window, 10_000)[0]


def total(reading, lengths=LENGTHS, window=WINDOW):
    return flops.document_flops(reading, np.array(lengths), window).sum()


def eager(tiny, family):
    model = tiny.tiny_model(family)
    model.set_attn_implementation("eager")  # torch counts no fused attention on a CPU
    return model


def test_a_llamas_costs_by_hand(tiny):
    """Two layers of width 16: q 16x16, k and v 8x16, o 16x16, gate and up 10x16, down 16x10; 23 words."""
    model = tiny.tiny_model("llama")
    layer = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 160
    size = flops.model_size(model, find_blocks(model))
    assert size.maps == size.tracked == 2 * layer
    assert size.reached == 2 * layer - (16 * 16 + 2 * 8 * 16)
    assert (size.head, size.attention, size.attention_reached) == (23 * 16, 32, 32)
    assert flops.forward_flops(size) == (4 * layer, 2 * 23 * 16, 4 * 32)
    assert flops.exact_flops(size, 2) == (2 * 2 * layer + 2 * size.reached + 2 * 2 * 2 * layer, 4 * 23 * 16, 12 * 32)
    assert flops.forward_only_flops(size) == (8 * layer, 4 * 23 * 16, 8 * 32)
    assert flops.training_flops(size) == (12 * layer, 6 * 23 * 16, 12 * 32)
    mlp = flops.model_size(model, find_blocks(model, "none"))
    assert mlp.reached == 160 + layer  # of the first layer down alone, then the second
    assert (mlp.tracked, mlp.attention_reached) == (6 * 160, 16)


def test_windows_of_a_document_overlap_by_one_token():
    """Of 10 tokens in windows of 4: 4, 4 and 4 tokens, 9 targets; of 6: 4 and 3; of 1: none."""
    reading = flops.PassFlops(1, 100, 10_000)
    found = flops.document_flops(reading, np.array([10, 6, 4, 2, 1, 0]), 4)
    assert found.tolist() == [12 + 900 + 480_000, 7 + 500 + 250_000, 4 + 300 + 160_000, 2 + 100 + 40_000, 0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_passes_take_what_torch_counts(tiny, family):
    model = eager(tiny, family)
    size = flops.model_size(model, find_blocks(model))
    found = counted(lambda: losses_and_states(model, batches_of()))
    assert found == pytest.approx(total(flops.forward_flops(size)), rel=0.01)


@pytest.mark.parametrize("attention", ["joint", "split", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_scoring_takes_what_torch_counts(tiny, family, attention):
    model = eager(tiny, family)
    blocks = find_blocks(model, attention)
    maps = [truncate({block.name: torch.ones(block.shape) for block in blocks}, None)] * 2
    size = flops.model_size(model, blocks)
    found = counted(lambda: score_by_gradient(model, batches_of(), blocks, maps))
    if family == "gpt_neox" and attention != "none":  # beside attention, its first MLP map needs no input's gradient
        found += 2 * 16 * 10 * sum(LENGTHS)
    assert found == pytest.approx(total(flops.exact_flops(size, 2)), rel=0.01)


def test_low_rank_scoring_takes_what_torch_counts(tiny):
    model = eager(tiny, "llama")
    blocks = find_blocks(model)
    direction = {block.name: torch.ones(block.shape) for block in blocks}  # of rank one
    maps = truncate(direction, 0.9)
    numbers = sum(sum(block.shape) for block in blocks)
    found = counted(lambda: score_by_gradient(model, batches_of(), blocks, [maps]))
    expected = total(flops.contracted_flops(flops.model_size(model, blocks), numbers))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_by_losses_takes_what_torch_counts(tiny, family):
    model = eager(tiny, family)
    blocks = find_blocks(model)
    direction = {block.name: torch.ones(block.shape) for block in blocks}
    found = counted(lambda: score_by_losses(model, batches_of(), blocks, [direction, direction], 1e-3))
    expected = total(flops.forward_only_flops(flops.model_size(model, blocks), 2))
    assert found == pytest.approx(expected, rel=0.01)


def test_training_takes_what_torch_counts(tiny):
    """But for the head's weight gradient, which is added in place: torch counts no such product."""
    model = eager(tiny, "llama")
    model.requires_grad_(True)
    size = flops.model_size(model, find_blocks(model))
    found = counted(lambda: summed_loss(model, read_batch(batches_of()[0], model.device)).backward())
    in_place = 2 * 16 * VOCABULARY * sum(n - 1 for n in LENGTHS)
    assert found + in_place == pytest.approx(total(flops.training_flops(size)), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_has_the_same_size(tiny, family):
    model = tiny.tiny_model(family)
    with torch.device("meta"):
        shape = type(model)(model.config)
    assert flops.model_size(shape, find_blocks(shape)) == flops.model_size(model, find_blocks(model))


def test_the_conditional_loss_takes_a_forward_pass_of_the_checkpoint_and_of_every_copy():
    size = flops.ModelSize(maps=10, reached=8, tracked=10, head=3, attention=2, attention_reached=2)
    assert flops.conditional_loss_flops(size) == (2 * 20, 2 * 6, 2 * 8)
    assert flops.conditional_loss_flops(size, copies=3) == (4 * 20, 4 * 6, 4 * 8)
