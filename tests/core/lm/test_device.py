"""Loops over batches ask the device for nothing: what a chunk's results are is asked once, however many its batches.

The model lies on torch's `meta` device, which has no numbers to give: whatever asks for one is counted here and given
zeros, or it fails.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.covariance import accumulate_covariances
from quad_tasks.core.ekfac import Eigenbasis, accumulate_eigenvalues
from quad_tasks.core.influence import gradient_sums, score_directions
from quad_tasks.core.lm.conditional_loss import conditional_losses
from quad_tasks.core.lm.device import to_device
from quad_tasks.core.lm.hidden_states import losses_and_states
from quad_tasks.core.lm.measurement import token_losses
from quad_tasks.core.lm.training import Schedule, train
from quad_tasks.core.loss import hidden_states, read_batch

ANSWERS = {
    torch.Tensor.__bool__: lambda tensor: True,
    torch.Tensor.__float__: lambda tensor: 1.0,
    torch.Tensor.__int__: lambda tensor: 1,
    torch.Tensor.item: lambda tensor: 1.0,
    torch.Tensor.tolist: lambda tensor: torch.zeros(tensor.shape).tolist(),
    torch.Tensor.cpu: lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype),
}


class Questions(TorchFunctionMode):
    """Answers what is asked of a device without numbers, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta and function in ANSWERS:
            self.counts[function.__name__] += 1
            return ANSWERS[function](args[0])
        return function(*args, **(kwargs or {}))


def _questions(work, *arguments) -> Counter[str]:
    with Questions() as asked:
        work(*arguments)
    return asked.counts


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("llama_bias").to("meta")


def _batches(tiny, n):
    return [tiny.pad(tiny.random_documents([5, 9, 2], seed=i), seeds=[i, i + 1, i + 2]) for i in range(n)]


def _direction(model):
    return {block.name: torch.zeros(block.shape, device="meta", dtype=model.dtype) for block in find_blocks(model)}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "opt", "gpt2", "gpt_neox", "phi3"])
def test_reading_a_batch_asks_for_nothing(tiny, family):
    """Whatever a model's own forward pass looks at."""
    model = tiny.tiny_model(family).to("meta")
    batch = _batches(tiny, 1)[0]
    assert _questions(lambda: hidden_states(model, read_batch(batch, torch.device("meta")))) == {}


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_scoring_asks_once_for_a_chunk(tiny, model, scorer):
    directions = {"a": _direction(model), "b": _direction(model)}
    one, three = (_questions(score_directions, model, _batches(tiny, n), directions, scorer) for n in (1, 3))
    assert one == three
    assert one["cpu"] == 1


def test_the_conditional_loss_asks_once_for_a_chunk_and_model(model):
    documents = [np.arange(9) % 7]
    one, three = (_questions(conditional_losses, model, [model, model], documents * n, 9, 9) for n in (1, 3))
    assert one == three == {"cpu": 3}


def test_the_fit_asks_once_for_each_sum(tiny, model):
    blocks = find_blocks(model)
    basis = Eigenbasis(
        tuple(blocks),
        {b.source: torch.zeros(b.shape[1], b.shape[1], device="meta", dtype=model.dtype) for b in blocks},
        {b.name: torch.zeros(b.shape[0], b.shape[0], device="meta", dtype=model.dtype) for b in blocks},
    )

    def fit(batches):
        accumulate_covariances(model, batches, blocks)
        accumulate_eigenvalues(model, batches, basis)
        gradient_sums(model, batches, blocks)

    one, three = (_questions(fit, _batches(tiny, n)) for n in (1, 3))
    assert one == three


def test_measuring_asks_once_for_a_chunk(tiny, model):
    for work in (token_losses, losses_and_states):
        one, three = (_questions(work, model, _batches(tiny, n)) for n in (1, 3))
        assert one == three
        assert sum(one.values()) <= 2


def test_a_training_asks_for_nothing(tiny):
    model = tiny.tiny_model("llama").float().to("meta")
    optimizer = torch.optim.SGD(model.parameters())
    documents = [np.arange(9) % 7] * 4
    limits = (9, 16, 9)
    asked = _questions(train, model, optimizer, documents, Schedule(1e-3, 0, 2), 0, *limits, np.random.default_rng(0))
    assert asked == {}


def test_a_copy_to_the_host_is_the_tensor_itself():
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor
