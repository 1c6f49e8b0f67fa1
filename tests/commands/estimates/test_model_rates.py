"""A large model's rates are measured on a part of its factors and on short batches."""

import math

import pytest
import torch
from small_pool import small_config

from quad_tasks.commands.estimates import model_rates as rates
from quad_tasks.config.load import parse_config
from quad_tasks.core import covariance
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.stages.influence import factor_memory


def test_a_first_group_of_blocks_stands_for_all_and_no_sum_of_the_others_is_made(tmp_path, monkeypatch):
    config = parse_config(small_config(tmp_path, str(tmp_path)), "rates")
    model = fresh_llama(LlamaSize(16, 3, 2, 1, 32), 320, 64, 0)
    summed = []
    accumulate = covariance.accumulate_covariances

    def spy(model, batches, blocks, *arguments, **named):
        summed.append(len(blocks))
        return accumulate(model, batches, blocks, *arguments, **named)

    monkeypatch.setattr(covariance, "accumulate_covariances", spy)
    documents = [list(range(40))] * 8
    for group_bytes, expected in ((2**30, 15), (1, 1)):
        monkeypatch.setattr(factor_memory, "GROUP_BYTES", group_bytes)
        found = rates.model_rates(config, model, documents, 0.01)
        assert set(summed) == {expected}
        assert all(math.isfinite(taken) and taken > 0 for taken in found.values())
        assert rates.decompose_s(config, model, find_blocks(model), documents[0]) > 0
        summed.clear()


@pytest.mark.parametrize(("dtype", "rounded"), [("float32", False), ("bfloat16", True)])
def test_a_fit_is_timed_with_the_products_that_the_run_takes(dtype, rounded, tmp_path, monkeypatch):
    config = parse_config(small_config(tmp_path, str(tmp_path), model__dtype=dtype), "rates")
    model = fresh_llama(LlamaSize(16, 2, 2, 1, 32), 320, 64, 0).to(getattr(torch, dtype))
    asked = []
    accumulate = covariance.accumulate_covariances

    def spy(*arguments, rounded):
        asked.append(rounded)
        return accumulate(*arguments, rounded=rounded)

    monkeypatch.setattr(covariance, "accumulate_covariances", spy)
    rates.model_rates(config, model, [list(range(40))] * 8, 0.01)
    assert set(asked) == {rounded}


def test_batches_of_a_large_model_are_cut_to_a_window_at_least(tmp_path, monkeypatch):
    config = parse_config(small_config(tmp_path, str(tmp_path)), "rates")
    model = fresh_llama(LlamaSize(16, 3, 2, 1, 32), 320, 64, 0)
    parameters = sum(p.numel() for p in model.parameters())
    assert rates._batch_tokens(config, model) == 512
    monkeypatch.setattr(rates, "PROBED_FLOPS", 6 * parameters * 100)
    assert rates._batch_tokens(config, model) == 100
    monkeypatch.setattr(rates, "PROBED_FLOPS", 1)
    assert rates._batch_tokens(config, model) == 64
