import math

import pytest
import torch
from tiny_data import DOCUMENTS, SIZE, TARGETS
from torch.nn import functional as F

from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.measurement import bits_per_byte, measure_texts, token_losses
from quad_tasks.core.lm.model import fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer


def test_losses_are_those_of_each_document_alone(model):
    batches, _ = make_batches(DOCUMENTS, 32, 64)
    total, count = token_losses(model, batches)
    alone = 0.0
    for ids in DOCUMENTS:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        alone += float(F.cross_entropy(logits.double(), tokens[0, 1:], reduction="sum"))
    assert count == TARGETS
    assert total == pytest.approx(alone, rel=1e-6)


def test_bits_per_byte_of_a_fair_coin_per_byte_is_one():
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)


@pytest.mark.parametrize("n_bytes", [2, 5, 10, 20, 80])
def test_a_uniform_prediction_of_bytes_costs_the_logarithm_of_the_vocabulary(n_bytes):
    """Each token is a byte and is predicted uniformly: log2(V) bits a byte, at any length, in one window or many."""
    tokenizer = train_tokenizer([""], 257)
    model = fresh_llama(SIZE, len(tokenizer), 16, seed=0)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    found = measure_texts(model, tokenizer, ["é" + "a" * (n_bytes - 2)] * 5, 16, 64)
    assert found.bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)
    assert (found.target_tokens, found.target_bytes, found.left_out) == (5 * (n_bytes - 1), 5 * (n_bytes - 1), 0)


def test_texts_of_one_token_are_left_out_and_counted():
    tokenizer = train_tokenizer([""], 257)
    model = fresh_llama(SIZE, len(tokenizer), 16, seed=0)
    alone, beside = (measure_texts(model, tokenizer, texts, 16, 64) for texts in (["abc"], ["a", "abc", "b"]))
    assert (beside.nats, beside.target_bytes, beside.left_out) == (pytest.approx(alone.nats), 2, 2)
    assert beside.loss == pytest.approx(beside.nats / 2)
    with pytest.raises(ValueError, match="domain x: expected a text of at least 2 tokens, found 2 of fewer"):
        measure_texts(model, tokenizer, ["a", "b"], 16, 64, name="domain x")


def test_a_text_measured_in_part_counts_the_bytes_of_that_part():
    tokenizer = train_tokenizer([""], 257)
    model = fresh_llama(SIZE, len(tokenizer), 16, seed=0)
    found = measure_texts(model, tokenizer, ["abcdefgh"], 16, 64, max_tokens=4)
    assert (found.target_tokens, found.target_bytes) == (3, 3)
