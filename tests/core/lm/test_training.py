import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import DOCUMENTS, SIZE, TARGETS
from torch.nn import functional as F

from quad_tasks.core.lm import training
from quad_tasks.core.lm.batching import split_windows
from quad_tasks.core.lm.measurement import measure
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.training import (
    Processes,
    Schedule,
    activation_bytes,
    count_steps,
    count_targets,
    fill_steps,
    make_optimizer,
    train,
)


def train_once(model, documents=DOCUMENTS, steps_before=0, seed=0, step_tokens=20, batch_tokens=48, after_step=None):
    optimizer = make_optimizer(model, 0.01)
    schedule = Schedule(1e-2, 2, 12)
    generator = np.random.default_rng(seed)
    return train(
        model, optimizer, documents, schedule, steps_before, 16, step_tokens, batch_tokens, generator,
        after_step=after_step,
    )  # fmt: skip


def test_training_lowers_the_loss_counts_every_target_and_ends_in_eval_mode(model):
    before, targets = measure(model, DOCUMENTS, 16, 64)
    seen = []
    record = train_once(model, steps_before=3, after_step=lambda record: seen.append(record.target_tokens))
    after, _ = measure(model, DOCUMENTS, 16, 64)
    assert after < before
    assert record.target_tokens == targets == TARGETS
    assert record.steps == len(seen) == count_steps(count_targets(DOCUMENTS), 20)
    assert record.schedule_steps == 3 + record.steps
    assert np.diff(seen, prepend=0).tolist() == [20] * (TARGETS // 20) + [TARGETS % 20]
    assert record.padded_tokens >= record.target_tokens
    assert not model.training


@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(2, 20),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_steps_hold_equal_targets_and_every_target_once_in_its_own_document(lengths, window_tokens, step_tokens, seed):
    """Tokens are numbered through all documents: a sequence of consecutive numbers lies in one of them."""
    ends = list(itertools.accumulate(lengths, initial=0))
    documents = [list(range(start, end)) for start, end in itertools.pairwise(ends)]
    windows = [part for ids in documents for part in split_windows(ids, window_tokens)]
    order = np.random.default_rng(seed).permutation(len(windows))
    steps = list(fill_steps((windows[i] for i in order), step_tokens))
    sequences = [sequence for step in steps for sequence in step]
    assert all(list(s) == list(range(s[0], s[0] + len(s))) and 2 <= len(s) <= window_tokens for s in sequences)
    targets = sorted(token for sequence in sequences for token in sequence[1:])
    assert targets == [token for ids in documents for token in ids[1:]]
    per_step = [count_targets(step) for step in steps]
    assert per_step[:-1] == [step_tokens] * (len(steps) - 1)
    assert all(0 < held <= step_tokens for held in per_step)
    assert len(steps) == count_steps(count_targets(documents), step_tokens)


@pytest.mark.parametrize("window_tokens", [256, 512, 1024, 2048])
@pytest.mark.parametrize("mean", [25, 60, 250, 800])
def test_the_number_of_steps_follows_from_the_targets_whatever_the_documents_lengths(window_tokens, mean):
    generator = np.random.default_rng(0)
    lengths = np.maximum(2, generator.lognormal(np.log(0.8 * mean), 0.6, 200_000 // mean).astype(int))
    windows = [part for n in lengths for part in split_windows(range(n), window_tokens)]
    held = [count_targets(step) for step in fill_steps(windows, 4096)]
    assert set(held[:-1]) == {4096}
    assert len(held) == math.ceil((lengths - 1).sum() / 4096)


def test_a_step_is_the_mean_loss_over_its_targets_whatever_the_batches(model):
    """One step of plain SGD at rate 1: the parameters move by minus the gradient of the mean."""
    moved = []
    for batch_tokens in (1, 40, 10_000):
        tried = fresh_llama(SIZE, 64, 32, seed=0).double()
        optimizer = torch.optim.SGD(tried.parameters(), lr=0.0)
        generator = np.random.default_rng(0)
        train(tried, optimizer, DOCUMENTS, Schedule(1.0, 0, 1), 0, 32, TARGETS, batch_tokens, generator)
        moved.append(torch.cat([p.detach().flatten() for p in tried.parameters()]))
    model.double()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    for ids in DOCUMENTS:
        tokens = torch.tensor([ids])
        (F.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum") / TARGETS).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    gradient /= max(1.0, float(gradient.norm()) + 1e-6)  # the clip
    for end in moved:
        torch.testing.assert_close(start - end, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "optimizer_of",
    [lambda model: torch.optim.SGD(model.parameters(), lr=0.0), lambda model: make_optimizer(model, 0.1)],
)
def test_a_short_last_step_moves_the_model_by_so_much_less(optimizer_of):
    """Three targets in a step of 30,000 move it by a hundredth of what they move it in a step of 300."""
    moved = []
    for step_tokens in (300, 30_000):
        tried = fresh_llama(SIZE, 64, 32, seed=0).double()
        before = tried.lm_head.weight.detach().clone()
        train(
            tried,
            optimizer_of(tried),
            [[1, 2, 3, 4]],
            Schedule(1e-3, 0, 1),
            0,
            8,
            step_tokens,
            8,
            np.random.default_rng(0),
        )
        moved.append(tried.lm_head.weight.detach() - before)
    torch.testing.assert_close(moved[1], moved[0] / 100, rtol=1e-6, atol=1e-14)


def markov_text(n_tokens, vocabulary=64):
    """Draw text in which a token depends on the one before it alone, so that cutting it loses nothing."""
    cumulative = np.random.default_rng(0).dirichlet(np.full(vocabulary, 0.05), vocabulary).cumsum(1)
    text = [0]
    for u in np.random.default_rng(1).random(n_tokens - 1):
        text.append(min(vocabulary - 1, int(np.searchsorted(cumulative[text[-1]], u))))
    return text


def cut(text, mean, seed):
    """Cut into documents that share a token, so that the targets stay the same; one long document comes first."""
    generator, documents, start = np.random.default_rng(seed), [text[:256]], 255
    while start < len(text) - 1:
        length = int(generator.lognormal(np.log(mean), 0.5)) + 2
        documents.append(text[start : start + length])
        start += length - 1
    return documents


def test_the_same_text_cut_long_or_short_trains_alike():
    text, held_out, losses, records = markov_text(24_000), markov_text(26_000)[24_000:], {}, {}
    for mean in (200, 20):
        documents = cut(text, mean, seed=0)
        model = fresh_llama(LlamaSize(32, 1, 2, 2, 64), 64, 256, seed=0)
        steps = count_steps(count_targets(documents), 1024)
        schedule, generator = Schedule(1e-2, 0.05 * steps, steps), np.random.default_rng(0)
        records[mean] = train(model, make_optimizer(model, 0.01), documents, schedule, 0, 256, 1024, 1024, generator)
        nats, n_targets = measure(model, [held_out[n : n + 100] for n in range(0, 2000, 100)], 256, 1024)
        losses[mean] = nats / n_targets
    assert records[200].steps == records[20].steps == 24
    assert records[200].target_tokens == records[20].target_tokens == 23_999
    assert losses[200] == pytest.approx(losses[20], abs=0.03)


def test_training_is_a_function_of_its_generator():
    first, second, other = (fresh_llama(SIZE, 64, 32, seed=0) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        train_once(model, seed=seed)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "phi3", "llama"])
def test_a_model_with_dropout_trains_the_same_whatever_was_drawn_before(tiny, family):
    """GPT-2 and OPT come with a dropout of a tenth."""
    weights = []
    for state in (1, 2):
        model = tiny.tiny_model(family)
        with torch.random.fork_rng():
            torch.manual_seed(state)
            train_once(model, documents=[[t % tiny.VOCABULARY for t in ids] for ids in DOCUMENTS])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_schedule_warms_up_peaks_and_ends_at_a_tenth():
    schedule = Schedule(peak=1.0, warmup_steps=9, total_steps=109)
    rates = [schedule.rate(step) for step in (0, 4, 9, 59, 109, 500)]
    assert rates[:2] == pytest.approx([0.1, 0.5])
    assert rates[2:] == pytest.approx([1.0, 0.1 + 0.9 * 0.5, 0.1, 0.1])


def test_a_second_stage_goes_on_where_the_first_left_the_schedule(model):
    optimizer, schedule, rates = make_optimizer(model, 0.01), Schedule(1e-2, 2, 12), []
    done = 0
    for part in (DOCUMENTS[:6], DOCUMENTS[6:]):
        generator = np.random.default_rng(0)
        record = train(
            model, optimizer, part, schedule, done, 16, 20, 48, generator,
            after_step=lambda _: rates.append(optimizer.param_groups[0]["lr"]),
        )  # fmt: skip
        done = record.schedule_steps
    assert done == sum(count_steps(count_targets(part), 20) for part in (DOCUMENTS[:6], DOCUMENTS[6:]))
    shares = [
        min(1, left / 20) for part in (DOCUMENTS[:6], DOCUMENTS[6:]) for left in range(count_targets(part), 0, -20)
    ]
    assert rates == [schedule.rate(step) * share for step, share in enumerate(shares)]


def test_the_estimate_of_activations_is_near_what_autograd_keeps():
    model = fresh_llama(LlamaSize(width=64, layers=4, heads=4, key_value_heads=4, mlp_width=172), 300, 64, seed=0)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.base_model(input_ids=torch.zeros(4, 64, dtype=torch.int64), use_cache=False).last_hidden_state
    measured = sum(kept.values()) / states[..., 0].numel()
    assert 0.75 < activation_bytes(model) / measured < 1.5


def test_a_pass_cut_to_its_memory_trains_alike(model, monkeypatch):
    whole = copy.deepcopy(model)
    monkeypatch.setattr(training, "PASS_BYTES", 1)
    record = train_once(model, batch_tokens=48)
    monkeypatch.setattr(training, "PASS_BYTES", 2**30)
    assert train_once(whole, batch_tokens=48).padded_tokens > record.padded_tokens  # one sequence a pass has no padding
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_a_step_that_processes_take_sum_to_its_gradient(model, monkeypatch, count):
    """What each process hands to the sum, added up here, is the gradient of one; without a pass it brings zeros."""
    whole = copy.deepcopy(model)
    padded = training._add_gradients(whole, DOCUMENTS[:5], 20, 16, False, Processes())
    parts = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda gradient: parts[-1].append(gradient.clone()))
    for rank in range(count):
        parts.append([])
        of_rank = training._add_gradients(copy.deepcopy(model), DOCUMENTS[:5], 20, 16, False, Processes(rank, count))
        assert of_rank == padded
    for parameter, *shares in zip(whole.parameters(), *parts, strict=True):
        torch.testing.assert_close(sum(shares), parameter.grad, rtol=1e-5, atol=1e-8)
    assert all(any(share.abs().max() > 0 for share in part) for part in parts)
