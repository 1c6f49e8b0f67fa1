"""The conditional loss against transformers' own losses, and, for a small step, against the influence it stands for."""

import copy

import numpy as np
import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.influence import score_documents
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.conditional_loss import STEPS_A_PASS, adapt, conditional_losses
from quad_tasks.core.lm.model import LlamaSize, fresh_llama

DOCUMENTS = [[int(t) for t in np.random.default_rng(n).integers(0, 320, 6 + 5 * n)] for n in range(8)]


def small_model():
    return fresh_llama(LlamaSize(16, 2, 2, 1, 32), 320, 64, 0).double()


def test_it_is_the_difference_of_two_models_losses_summed_over_a_documents_targets():
    model, other = small_model(), fresh_llama(LlamaSize(16, 2, 2, 1, 32), 320, 64, 1).double()
    found, targets = conditional_losses(model, [other, model], DOCUMENTS, 64, 128)
    assert targets.tolist() == [len(ids) - 1 for ids in DOCUMENTS]
    for row, ids in enumerate(DOCUMENTS):
        tensor = torch.tensor([ids])
        with torch.no_grad():
            first, second = (float(one(input_ids=tensor, labels=tensor).loss) for one in (model, other))
        assert found[row, 0] == pytest.approx((first - second) * (len(ids) - 1), rel=1e-3)
    assert not found[:, 1].any()


def test_for_a_small_displacement_it_is_the_influence_along_it():
    """Sign and size: a copy moved by -ε v has the conditional loss ε <v, g>."""
    model, step, direction = small_model(), 1e-4, {}
    moved = copy.deepcopy(model)
    for number, block in enumerate(find_blocks(model)):
        generator = torch.Generator().manual_seed(number)
        along = torch.randn(block.shape, generator=generator, dtype=torch.float64)
        direction[block.name] = along
        with torch.no_grad():
            first = 0
            for name in block.modules:
                weight = moved.get_submodule(name).weight
                weight -= step * along[first : first + len(weight)]
                first += len(weight)
    found, _ = conditional_losses(model, [moved], DOCUMENTS, 64, 128)
    batches, owner = make_batches(DOCUMENTS, 64, 128)
    influence = score_documents(model, batches, direction).influence[np.argsort(owner.numpy())]
    np.testing.assert_allclose(found[:, 0] / step, influence, rtol=0.02, atol=0.005 * np.abs(influence).max())


def test_adapting_lowers_the_loss_of_what_it_was_adapted_to_and_takes_enough_steps():
    model = small_model().float()
    adapted = copy.deepcopy(model)
    record = adapt(adapted, DOCUMENTS[:4], 4, 1e-2, 64, 4096, 128, np.random.default_rng(0))
    assert record.target_tokens == 4 * sum(len(ids) - 1 for ids in DOCUMENTS[:4])
    assert record.steps >= 4 * STEPS_A_PASS
    found, targets = conditional_losses(model, [adapted], DOCUMENTS, 64, 128)
    gain = found[:, 0] / targets
    assert gain[:4].min() > gain[4:].max()
    assert gain[:4].min() > 0


def test_a_copy_is_the_same_whenever_it_is_made():
    first, second = small_model().float(), small_model().float()
    for one in (first, second):
        adapt(one, DOCUMENTS, 2, 1e-2, 64, 64, 128, np.random.default_rng(3))
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in weights)
