import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quad_tasks.core import loss, precision
from quad_tasks.core.blocks import UnsupportedLayer
from quad_tasks.core.lm.measurement import measure
from quad_tasks.core.lm.training import Schedule, make_optimizer
from quad_tasks.core.lm.training import train as train_model

CPU = torch.device("cpu")


@pytest.fixture(params=["one chunk", "few rows per chunk"])
def _chunks(request, monkeypatch):
    if request.param == "few rows per chunk":
        monkeypatch.setattr(loss, "_CPU_CHUNK_BYTES", 1)
        monkeypatch.setattr(loss, "_LEAST_CHUNK_TARGETS", 2)


@pytest.mark.usefixtures("_chunks")
def test_losses_equal_the_plain_path(tiny):
    model = tiny.tiny_model("llama")
    documents = tiny.random_documents([5, 2, 8])
    batch = loss.read_batch(tiny.pad(documents, "left", extra=2), CPU)
    with torch.no_grad():
        losses = loss.losses(loss.hidden_states(model, batch), loss.head_weight(model), batch)
        expected = torch.stack([tiny.document_loss(model, document) for document in documents])
    torch.testing.assert_close(torch.stack([part.sum() for part in losses.split(batch.n_targets_N)]), expected)


@pytest.mark.usefixtures("_chunks")
def test_loss_gradient_equals_autograd_through_the_head(tiny):
    model = tiny.tiny_model("llama")
    document = tiny.random_documents([7])[0]
    batch = loss.read_batch(tiny.pad([document], extra=3), CPU)
    hidden = loss.hidden_states(model, batch).detach().requires_grad_()
    logits = model.lm_head(hidden)[0, :-1]
    torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum").backward()
    torch.testing.assert_close(loss.loss_gradient(hidden, loss.head_weight(model), batch), hidden.grad)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_summed_loss_has_the_gradients_of_plain_cross_entropy(tiny, family):
    """Of every parameter: heads that share the embedding's weight (GPT-2, OPT) and heads of their own."""
    model = tiny.tiny_model(family)
    documents = tiny.random_documents([5, 2, 8])
    expected = [tiny.dense_gradient(model, document) for document in documents]
    nats = loss.summed_loss(model, loss.read_batch(tiny.pad(documents, "left", extra=2), CPU))
    (nats / 4).backward()
    plain = sum(float(tiny.document_loss(model, document).detach()) for document in documents)
    assert float(nats.detach()) == pytest.approx(plain, rel=1e-12)
    for name, parameter in model.named_parameters():
        whole = sum(gradient[name] for gradient in expected) / 4
        torch.testing.assert_close(parameter.grad, whole, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rounded_products_are_torchs_own_mixed_precision(tiny, monkeypatch, family):
    """Head and tied embedding too: gradients in float32, as far from exact ones as autocast's, and nearer to those."""
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda device: True)
    model = tiny.tiny_model(family).float()
    documents = tiny.random_documents([5, 2, 8])
    batch = loss.read_batch(tiny.pad(documents), CPU)

    def gradients(call):
        model.zero_grad()
        call().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    def mixed():
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.ids_NT).logits
        targets = logits.flatten(0, 1)[batch.positions_M].float()
        return torch.nn.functional.cross_entropy(targets, batch.targets_M, reduction="sum")

    exact = gradients(lambda: loss.summed_loss(model, batch))
    rounded = gradients(lambda: loss.summed_loss(model, batch, rounded=True))
    autocast = gradients(mixed)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 1.5 * (autocast - exact).norm() < 0.03 * exact.norm()
    assert (rounded - autocast).norm() < (autocast - exact).norm()


def test_summed_loss_leaves_a_frozen_head_alone(tiny):
    model = tiny.tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    document = tiny.random_documents([7])[0]
    loss.summed_loss(model, loss.read_batch(tiny.pad([document]), CPU)).backward()
    model.lm_head.weight.requires_grad_(True)
    assert model.lm_head.weight.grad is None
    expected = tiny.dense_gradient(model, document)["model.embed_tokens.weight"]
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected)


def peak_bytes(call):
    """Most memory that torch holds at once for what `call` allocates on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(held, default=0)


@pytest.mark.parametrize("use", ["training", "measuring"])
def test_logits_of_a_whole_batch_never_exist(use):
    """A vocabulary of 50,000 and 1,024 tokens: a third of the float32 logits in place of three times as much."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50_000, **shape)).eval()
    documents = torch.randint(50_000, (4, 256), generator=torch.Generator().manual_seed(0)).tolist()
    logits_bytes = 4 * 4 * 255 * 50_000

    def train():
        optimizer, generator = make_optimizer(model, 0.0), np.random.default_rng(0)
        train_model(model, optimizer, documents, Schedule(1e-3, 0, 1), 0, 256, 1020, 1024, generator)

    peak = peak_bytes(train if use == "training" else lambda: measure(model, documents, 256, 1024))
    assert peak < logits_bytes / 3


def test_left_and_right_padding_read_the_same_documents(tiny):
    documents = tiny.random_documents([3, 6])
    left, right = (loss.read_batch(tiny.pad(documents, side, extra=2, seeds=[5, 6]), CPU) for side in ("left", "right"))
    assert torch.equal(left.ids_NT, right.ids_NT)
    assert torch.equal(left.targets_M, torch.cat([document[1:] for document in documents]))
    assert (left.lengths_N, left.n_targets_N, left.seeds_N) == ((3, 6), (2, 5), (5, 6))


@pytest.mark.parametrize("length", [0, 1])
def test_a_document_without_a_target_is_refused(tiny, length):
    batch = tiny.pad([*tiny.random_documents([4]), torch.zeros(length, dtype=torch.int64)])
    with pytest.raises(ValueError, match=f"row 1 of the batch: expected at least 2 tokens, got {length}"):
        loss.read_batch(batch, CPU)


def test_inverted_distribution_chooses_by_the_running_sum():
    weights = torch.tensor([[1.0, 0.0, 3.0]]).repeat(4, 1)
    uniforms = torch.tensor([[0.0], [0.24], [0.25], [0.999]], dtype=torch.float64)
    assert loss._invert_distribution(weights, uniforms).tolist() == [0, 0, 2, 2]


def test_a_head_with_bias_is_refused(tiny):
    model = tiny.tiny_model("llama")
    model.lm_head = torch.nn.Linear(16, tiny.VOCABULARY)
    with pytest.raises(UnsupportedLayer, match=r"lm_head: expected nn\.Linear without bias"):
        loss.head_weight(model)


def test_low_precision_models_are_summed_in_float32(tiny):
    assert loss.head_weight(tiny.tiny_model("llama").bfloat16()).dtype == torch.float32


def test_the_difference_of_losses_is_right_to_third_order(tiny):
    model = tiny.tiny_model("llama")
    documents = loss.read_batch(tiny.pad(tiny.random_documents([5, 3])), CPU)
    weight = loss.head_weight(model)
    with torch.no_grad():
        hidden = loss.hidden_states(model, documents)
    away = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=hidden.dtype)
    errors = []
    for size in (0.02, 0.01):
        plus, minus = hidden + size * away, hidden - size * away
        plain = loss.losses(plus, weight, documents) - loss.losses(minus, weight, documents)
        errors.append(float((loss.loss_difference(plus, minus, weight, documents) - plain).abs().max()))
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)


def test_uniforms_depend_on_a_documents_seed_alone(tiny):
    texts = tiny.random_documents([5, 3, 4])
    together = loss.read_batch(tiny.pad(texts, seeds=[7, 8, 9]), CPU)
    alone = loss.read_batch(tiny.pad(texts[1:2], seeds=[8]), CPU)
    uniforms = loss.draw_uniforms(together, "true", None)
    assert uniforms[4:6].tolist() == loss.draw_uniforms(alone, "true", None).tolist()
    assert loss.draw_uniforms(together, "empirical", None) is None
