"""Rivals that read the pool with a model: gradients by autograd, losses by transformers, and what each puts first."""

import numpy as np
import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.experiments.lab import model_baselines
from quad_tasks.experiments.lab.testbed import load_direction
from quad_tasks.storage.store import open_store


def is_sea(testbed, rows):
    return np.array(["captain" in testbed.texts.pool[row] for row in rows])


def test_norms_are_those_of_autograds_gradients(tiny_testbed):
    norms = model_baselines.gradient_norms(tiny_testbed)
    assert norms.shape == (len(tiny_testbed.documents),)
    for row in (0, 7, 31):
        ids = torch.tensor([tiny_testbed.documents[row]])
        tiny_testbed.model.requires_grad_(True)
        mean = tiny_testbed.model(input_ids=ids, labels=ids).loss
        names = {f"{name}.weight" for block in find_blocks(tiny_testbed.model) for name in block.modules}
        tracked = [weight for name, weight in tiny_testbed.model.named_parameters() if name in names]
        gradients = torch.autograd.grad(mean * (ids.shape[1] - 1), tracked)
        assert norms[row] == pytest.approx(float(sum(g.double().square().sum() for g in gradients)) ** 0.5, rel=1e-4)


def test_no_cosine_exceeds_one(tiny_testbed):
    direction = load_direction(open_store(tiny_testbed.workspace), tiny_testbed.key, "identity")
    reference = sum(float(block.double().square().sum()) for block in direction.values()) ** 0.5
    cosine = tiny_testbed.influence["identity"] / (model_baselines.gradient_norms(tiny_testbed) * reference)
    assert 0.3 < np.abs(cosine).max() <= 1 + 1e-5


def test_adapting_to_the_reference_lowers_the_losses_of_what_is_like_it_most(tiny_testbed):
    adapted = np.array(model_baselines.find_adapted(tiny_testbed).loss)
    sea = is_sea(tiny_testbed, range(len(tiny_testbed.documents)))
    drop = tiny_testbed.loss - adapted
    assert drop[sea].mean() > max(drop[~sea].mean(), 0)


def test_the_checkpoint_is_left_as_it_was(tiny_testbed):
    before = {name: weight.clone() for name, weight in tiny_testbed.model.state_dict().items()}
    adapted = model_baselines.adapt_copy(tiny_testbed.workspace, tiny_testbed.key)
    assert adapted.loss == pytest.approx(model_baselines.find_adapted(tiny_testbed).loss, rel=1e-4)
    assert adapted.train_s > 0 < adapted.read_s
    assert all(torch.equal(before[name], weight) for name, weight in tiny_testbed.model.state_dict().items())


def test_the_loss_drop_is_the_conditional_loss_over_the_checkpoints(tiny_testbed):
    adapted = np.array(model_baselines.find_adapted(tiny_testbed).loss)
    drop = (tiny_testbed.loss - adapted) / tiny_testbed.loss
    assert (np.diff(drop[model_baselines.loss_drop_order(tiny_testbed)]) <= 1e-12).all()
    assert (np.diff((tiny_testbed.loss - adapted)[model_baselines.conditional_loss_order(tiny_testbed)]) <= 0).all()


@pytest.mark.parametrize(
    "order",
    [
        model_baselines.representation_order,
        model_baselines.gradient_order,
        model_baselines.conditional_loss_order,
        model_baselines.loss_drop_order,
    ],
)
def test_every_order_holds_every_row_once_and_what_is_like_the_reference_first(order, tiny_testbed):
    rows = order(tiny_testbed)
    assert sorted(rows.tolist()) == list(range(len(tiny_testbed.documents)))
    sea = is_sea(tiny_testbed, rows)
    assert sea[:15].mean() > sea.mean() + 0.2
