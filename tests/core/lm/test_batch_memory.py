"""Tokens of a batch from a device's memory, by hand, and measured on a stand-in for one."""

import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import batch_memory
from quad_tasks.core.lm.batch_memory import CONTEXT_BYTES, MOST_TOKENS, fitting_tokens, measure_batch_tokens

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("free", "kept", "token", "window", "expected"),
    [
        (10 * GIB, 1 * GIB, 1 * MIB, 256, 7168),  # (8 - 1) GiB
        (10 * GIB, 1 * GIB, 1 * MIB, 1000, 7000),
        (10 * GIB, 9 * GIB, 1 * MIB, 256, 256),  # no room: a window all the same, which is then refused by its name
        (10000 * GIB, 0, 1, 256, MOST_TOKENS),
    ],
)
def test_tokens_fill_the_room_beside_what_is_kept_and_a_margin(free, kept, token, window, expected):
    assert fitting_tokens(free, kept, token, window) == expected


class Device:
    """Stands in for a GPU of 40 GiB that holds a model of 5 GiB, each token of a batch taking so much."""

    def __init__(self, monkeypatch, token_bytes, sums_bytes):
        self.held, self.peak, self.token_bytes, self.sums_bytes, self.read = 5 * GIB, 0, token_bytes, sums_bytes, []
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.forget)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * GIB - self.held, 40 * GIB))
        monkeypatch.setattr(batch_memory, "gradient_sums", self.work)

    def forget(self, device):
        self.peak = self.held

    def work(self, model, batches, blocks):
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        self.read.append(tokens)
        needed = self.held + self.sums_bytes + tokens * self.token_bytes
        if needed > 40 * GIB:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.peak = max(self.peak, needed)


def _sums(blocks):
    return sum(4 * block.shape[0] * block.shape[1] for block in blocks)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("llama")


def test_the_peak_of_one_batch_is_measured_without_its_sums(model, monkeypatch):
    blocks = find_blocks(model)
    device = Device(monkeypatch, 1 * MIB, _sums(blocks))
    assert measure_batch_tokens(model, blocks, 8 * GIB, 1024) == 20 * 1024  # .8 of 35 GiB, less 8
    assert device.read == [8192]


def test_a_device_that_is_shared_holds_a_smaller_batch(model, monkeypatch):
    blocks = find_blocks(model)
    Device(monkeypatch, 1 * MIB, _sums(blocks))
    assert measure_batch_tokens(model, blocks, 4 * GIB, 1024, sharing=2) == 7 * 1024  # .8 of 14.75 GiB, less 4


@pytest.mark.parametrize("sharing", [1, 2, 4])
def test_all_that_share_a_device_fit_it_with_their_models_and_batches(model, monkeypatch, sharing):
    """By what the device then holds: contexts but for the measured one's, models, what is kept, and batches."""
    blocks = find_blocks(model)
    device, kept = Device(monkeypatch, 1 * MIB, _sums(blocks)), 1 * GIB
    tokens = measure_batch_tokens(model, blocks, kept, 1024, sharing)
    held = sharing * (device.held + kept + tokens * MIB) + (sharing - 1) * CONTEXT_BYTES
    assert 0.75 * 40 * GIB < held < 40 * GIB


def test_where_the_measured_batch_does_not_fit_a_single_window_is_measured(model, monkeypatch):
    blocks = find_blocks(model)
    device = Device(monkeypatch, 8 * MIB, _sums(blocks))
    assert measure_batch_tokens(model, blocks, 0, 1024) == 3 * 1024  # 28 GiB
    assert device.read == [8192, 1024]


def test_a_window_that_does_not_fit_is_the_devices_own_error(model, monkeypatch):
    blocks = find_blocks(model)
    device = Device(monkeypatch, 100 * MIB, _sums(blocks))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        measure_batch_tokens(model, blocks, 0, 1024)
    assert device.read == [8192, 1024]
