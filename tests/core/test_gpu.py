"""The engine on a GPU against itself on the CPU: factors, directions, every scorer, and that no loop waits for it."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.covariance import accumulate_covariances
from quad_tasks.core.ekfac import accumulate_eigenvalues, apply_inverse, decompose, fit_factors
from quad_tasks.core.influence import gradient_sums, reference_gradient, score_documents
from quad_tasks.core.lm import measurement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]
LENGTHS = [5, 9, 2, 7, 12, 3]


def _direction(tiny, model, fisher="true"):
    factors = fit_factors(
        model, [tiny.pad(tiny.random_documents(LENGTHS), seeds=list(range(len(LENGTHS))))], "joint", fisher
    )
    reference = [tiny.pad(tiny.random_documents([8] * 4, seed=1))]
    return apply_inverse(factors, reference_gradient(model, reference, find_blocks(model)))


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "phi3"])
def pair(tiny, request):
    """One model on the CPU and its copy on the GPU, in float64."""
    model = tiny.tiny_model(request.param)
    return model, copy.deepcopy(model).cuda()


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_factors_and_directions_are_the_cpu_s(tiny, pair, fisher):
    """Sampled labels among them: their randomness is drawn on the CPU."""
    expected, found = (_direction(tiny, model, fisher) for model in pair)
    for name, V in found.items():
        torch.testing.assert_close(V.cpu(), expected[name], rtol=1e-6, atol=1e-7 * float(expected[name].abs().max()))


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_scores_are_the_cpu_s(tiny, pair, scorer):
    direction = _direction(tiny, pair[0])
    batches = [tiny.pad(tiny.random_documents(LENGTHS), "left")]
    expected, found = (score_documents(model, batches, direction, scorer).influence for model in pair)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_float32_scores_are_the_cpu_s_to_float32(tiny, pair):
    direction = _direction(tiny, pair[0])
    batches = [tiny.pad(tiny.random_documents(LENGTHS))]
    expected, found = (score_documents(model.float(), batches, direction).influence for model in pair)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_scores_rank_as_float32_s(tiny, pair):
    direction = _direction(tiny, pair[0])
    batches = [tiny.pad(tiny.random_documents([9] * 40))]
    single = score_documents(pair[1].float(), batches, direction).influence
    half = score_documents(pair[1].bfloat16(), batches, direction).influence
    assert spearmanr(single, half).statistic > 0.99


@pytest.mark.parametrize("scorer", ["low_rank", "forward_only"])
def test_approximate_scorers_are_calibrated_there(tiny, pair, scorer):
    direction = _direction(tiny, pair[0])
    sample = [tiny.pad(tiny.random_documents([8] * 24, seed=3))]
    assert calibrate(pair[1].float(), sample, np.arange(24), {"": direction}, scorer, floor=0.99).accepted


def _watched(batches):
    """Give batches; from the second on the device may not be waited for, until all are read."""
    yield batches[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield from batches[1:]
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("scorer", ["exact", "low_rank", "forward_only"])
def test_scoring_waits_for_the_device_only_after_its_batches(tiny, pair, scorer):
    direction = _direction(tiny, pair[0])
    batches = [tiny.pad(tiny.random_documents(LENGTHS, seed=i)) for i in range(3)]
    assert len(score_documents(pair[1], _watched(batches), direction, scorer).influence) == 3 * len(LENGTHS)


def test_the_fit_waits_for_the_device_only_after_its_batches(tiny, pair):
    model, blocks = pair[1], find_blocks(pair[1])
    batches = [tiny.pad(tiny.random_documents(LENGTHS, seed=i), seeds=list(range(len(LENGTHS)))) for i in range(3)]
    covariances = accumulate_covariances(model, _watched(batches), blocks)
    assert covariances.n_documents == 3 * len(LENGTHS)
    assert accumulate_eigenvalues(model, _watched(batches), decompose(covariances)).n_documents == 3 * len(LENGTHS)
    assert gradient_sums(model, _watched(batches), blocks)[1] == 3 * sum(n - 1 for n in LENGTHS)


def test_losses_of_documents_are_waited_for_once(tiny, pair, monkeypatch):
    """What the conditional loss is made of."""
    real = measurement.make_batches

    def watched(*given):
        batches, owner_W = real(*given)
        return _watched(batches), owner_W

    monkeypatch.setattr(measurement, "make_batches", watched)
    documents = [document.tolist() for document in tiny.random_documents([8] * 6)]
    _, targets_N = measurement.document_losses(pair[1], documents, 8, 16)
    assert targets_N.tolist() == [7] * 6


def test_logits_of_a_whole_batch_never_exist(tiny):
    """Peak memory stays below what the batch's logits alone would take."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=131072, max_position_embeddings=512, **shape)).cuda().eval()
    direction = {block.name: torch.randn(block.shape) for block in find_blocks(model)}
    ids = torch.randint(0, 131072, (32, 512))
    torch.cuda.reset_peak_memory_stats()
    score_documents(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], direction)
    assert torch.cuda.max_memory_allocated() < ids.numel() * 131072 * 4 / 4
