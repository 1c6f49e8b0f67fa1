import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quad_tasks.core.model import LlamaSize, fresh_llama, make_batches
from quad_tasks.core.training import Schedule, bits_per_byte, make_optimizer, measure, token_losses, train

SIZE = LlamaSize(width=16, layers=1, heads=2, key_value_heads=1, mlp_width=24)
DOCUMENTS = [[int(t) for t in np.random.default_rng(n).integers(0, 64, 5 + n)] for n in range(12)]


@pytest.fixture
def model():
    return fresh_llama(SIZE, 64, 32, seed=0)


def train_once(model, tokens_before=0, seed=0):
    optimizer = make_optimizer(model, 0.01)
    generator = np.random.default_rng(seed)
    return train(model, optimizer, DOCUMENTS, Schedule(1e-2, 20, 400), tokens_before, 16, 48, generator)


def test_losses_are_those_of_each_document_alone(model):
    batches, _ = make_batches(DOCUMENTS, 32, 64)
    total, count = token_losses(model, batches)
    alone = 0.0
    for ids in DOCUMENTS:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        alone += float(F.cross_entropy(logits.double(), tokens[0, 1:], reduction="sum"))
    assert count == sum(len(ids) - 1 for ids in DOCUMENTS)
    assert total == pytest.approx(alone, rel=1e-6)


def test_training_lowers_the_loss_counts_every_window_token_and_ends_in_eval_mode(model):
    before, targets = measure(model, DOCUMENTS, 16, 64)
    trained = train_once(model)
    after, _ = measure(model, DOCUMENTS, 16, 64)
    assert after < before
    windows = sum(max(math.ceil((len(ids) - 1) / 15), 1) for ids in DOCUMENTS)
    assert trained == targets + windows
    assert not model.training


def test_training_is_a_function_of_its_generator():
    first, second, other = (fresh_llama(SIZE, 64, 32, seed=0) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        train_once(model, seed=seed)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_schedule_warms_up_peaks_and_ends_at_a_tenth():
    schedule = Schedule(peak=1.0, warmup_tokens=100, total_tokens=1100)
    rates = [schedule.rate(t) for t in (0, 50, 100, 600, 1100, 5000)]
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[2:] == pytest.approx([1.0, 0.1 + 0.9 * 0.5, 0.1, 0.1])
    assert rates[0] < rates[1] < rates[2]


def test_bits_per_byte_of_a_fair_coin_per_byte_is_one():
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)
