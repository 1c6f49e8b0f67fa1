"""A checkpoint is left as it was; training in parts is training at once; losses are those worked out by hand."""

import copy
import math

import numpy as np
import pytest
import torch

from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.training import Schedule
from quad_tasks.experiments.lab.train_choice import (
    Domain,
    HeldOut,
    TrainingSettings,
    begin,
    branch,
    common_targets,
    measure_losses,
    one_pass,
    restart,
    train,
    train_choice,
)
from quad_tasks.stages.selection.paired_gain import UnequalTrainings

DOCUMENTS = [[1, 2, 3, 4, 5, 6]] * 40
HELD_OUT = HeldOut(DOCUMENTS[:4], {}, 16, 64)


@pytest.fixture
def model():
    return fresh_llama(LlamaSize(16, 1, 2, 2, 32), 32, 16, 0)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_training_leaves_the_checkpoint_and_lowers_the_loss(model):
    before = weights(model)
    settings = one_pass(200, 1e-2, 16, 25, 32)
    learner, losses = train_choice(begin(model), DOCUMENTS, settings, np.random.default_rng(0), HELD_OUT)
    assert same(before, model.state_dict())
    assert losses.reference_loss < measure_losses(model, HELD_OUT).reference_loss
    assert learner.trained_steps == settings.schedule.total_steps == 8  # 40 documents of five targets, 25 a step


def test_a_branch_trains_as_its_learner_would_and_leaves_it(model):
    settings = TrainingSettings(Schedule(1e-2, 1, 16), 16, 25, 32)
    learner = train(begin(model), DOCUMENTS, settings, np.random.default_rng(0))
    before = weights(learner.model)
    tried = train(branch(learner), DOCUMENTS, settings, np.random.default_rng(1))
    assert same(before, learner.model.state_dict())
    after = train(learner, DOCUMENTS, settings, np.random.default_rng(1))
    assert same(weights(after.model), tried.model.state_dict())
    assert after.trained_steps == tried.trained_steps == 16


def test_trainings_on_a_budget_take_the_same_whole_steps_whatever_the_documents_lengths(model):
    """1,000 tokens in documents of 16 and of 200 have 938 and 995 targets: 37 steps of 25 for both."""
    targets = common_targets(1000, 25)
    assert targets == 37 * 25
    settings, generator = one_pass(targets, 1e-2, 16, 25, 32), np.random.default_rng(0)
    learners = [
        train(begin(model), [[1] * n] * (1000 // n) + [[1] * (1000 % n)], settings, generator) for n in (16, 200)
    ]
    assert [learner.trained_steps for learner in learners] == [37, 37]
    with pytest.raises(UnequalTrainings, match="expected documents of 925 targets, found 909"):
        train(begin(model), [[1] * 11] * 90 + [[1] * 10], settings, generator)
    assert common_targets(20, 25) == 15  # less than a step


def test_a_restart_forgets_the_optimizer_and_the_schedule(model):
    settings = one_pass(200, 1e-2, 16, 25, 32)
    trained = train(begin(model), DOCUMENTS, settings, np.random.default_rng(0))
    anew = begin(copy.deepcopy(trained.model))
    restarted = restart(trained)
    assert restarted.trained_steps == 0
    first, second = (train(each, DOCUMENTS, settings, np.random.default_rng(1)) for each in (restarted, anew))
    assert same(weights(first.model), second.model.state_dict())


def test_a_model_that_knows_nothing_has_the_loss_of_a_uniform_guess(model):
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    held_out = HeldOut(DOCUMENTS, {"near": Domain([[1, 2, 3]], 4), "far": Domain([[1, 2, 3], [4, 5]], 3)}, 16, 64)
    losses = measure_losses(model, held_out)
    assert losses.reference_loss == pytest.approx(math.log(32))
    assert losses.domains == pytest.approx({"near": 2 * 5 / 4, "far": 3 * 5 / 3})  # 5 bits a target
    assert losses.other_domains_bpb == pytest.approx((2.5 + 5) / 2)
    assert losses.worst_domain_bpb == pytest.approx(5)
    alone = measure_losses(model, HELD_OUT)
    assert (alone.domains, alone.other_domains_bpb, alone.worst_domain_bpb) == ({}, None, None)
