"""A score that is not finite is reported with the document's id and file, never with its place in a chunk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quad_tasks.core import scorers
from quad_tasks.core.influence import NotFinite
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit import score_round
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.rounds import read_round
from quad_tasks.storage.store import open_store


def test_a_score_that_is_not_finite_names_document_and_file(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    direction = read_round(store, small_run.run, 0, 0).info.direction
    positions = (5, 2, 9)
    ids = read_positions(store, version, np.array(positions), ["id"])["id"].to_pylist()

    def fail(_model, _batches, *_arguments, **_options):
        raise NotFinite(0)

    monkeypatch.setattr(score_round, "score_prepared", fail)
    stage = Stage(small_run.run, 0, version, "", direction)
    with pytest.raises(FloatingPointError) as failed:
        score_round.score_chunk(store, stage, positions, small_run.model_use(), {"scorer": "exact"})
    message = str(failed.value)
    assert message.endswith("expected a finite influence, got NaN or infinity")
    (named,) = [one for one in ids if f"document {one!r} of " in message]
    file = message.partition(" of ")[2].partition(": expected")[0]
    assert json.dumps({"id": named})[1:-1] in Path(file).read_text()


def test_a_directions_blocks_are_decomposed_once_for_all_chunks(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, "", read_round(store, small_run.run, 0, 0).info.direction)
    decompose, decomposed = scorers._truncate_block, []
    monkeypatch.setattr(scorers, "_truncate_block", lambda *given: decomposed.append(1) or decompose(*given))
    score_round.load_on_device.cache_clear()
    low_rank = {"scorer": "low_rank", "energy": 0.5}
    one, other, again = (
        score_round.score_chunk(store, stage, positions, small_run.model_use(), low_rank)
        for positions in ((5, 2, 9), (1, 7), (5, 2, 9))
    )
    blocks = len(next(iter(score_round.load_on_device(store, stage.direction, "cpu").by_set.values())))
    assert blocks <= len(decomposed) <= 2 * blocks  # a block that is higher than wide turns itself round
    assert one.equals(again)
    assert not np.allclose(
        one["influence"],
        score_round.score_chunk(store, stage, (5, 2, 9), small_run.model_use(), {"scorer": "low_rank", "energy": 0.9})[
            "influence"
        ],
        rtol=1e-6,
    )
    assert len(other) == 2


class _Device:
    """Stands in for a device whose memory holds batches of so many tokens."""

    def __init__(self, most_tokens, monkeypatch):
        self.most_tokens, self.asked, score = most_tokens, [], score_round.score_prepared

        def score_or_fail(model, batches, prepared):
            batches = list(batches)
            self.asked.append(max(batch["input_ids"].numel() for batch in batches))
            if self.asked[-1] > self.most_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return score(model, batches, prepared)

        monkeypatch.setattr(score_round, "score_prepared", score_or_fail)


def test_a_batch_too_large_for_the_device_is_halved_and_scores_stay(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, "", read_round(store, small_run.run, 0, 0).info.direction)
    positions, use = tuple(range(40)), replace(small_run.model_use(), batch_tokens=2048)
    score_round.load_on_device.cache_clear()
    expected = score_round.score_chunk(store, stage, positions, use, {"scorer": "exact"})
    device, said = _Device(300, monkeypatch), []
    monkeypatch.setattr(score_round, "notice", said.append)
    found = score_round.score_chunk(store, stage, positions, use, {"scorer": "exact"})
    np.testing.assert_allclose(found["influence"], expected["influence"], rtol=1e-3)
    assert len(device.asked) > 1
    assert said[0].startswith("scoring: a batch of 2048 tokens is too large for the device, 1024 from here on")
    assert len(said) == len(device.asked) - 1
    asked = len(device.asked)
    score_round.score_chunk(store, stage, positions, use, {"scorer": "exact"})
    assert len(device.asked) == asked + 1  # the next documents begin where these ended


def test_a_document_too_large_for_the_device_is_not_tried_for_ever(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, "", read_round(store, small_run.run, 0, 0).info.direction)
    score_round.load_on_device.cache_clear()
    device = _Device(1, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        score_round.score_chunk(store, stage, (5, 2, 9), small_run.model_use(), {"scorer": "exact"})
    assert len(device.asked) < 12
    score_round.load_on_device.cache_clear()


@pytest.mark.parametrize("full_at", ["load_checkpoint", "prepare_directions"])
def test_a_device_without_room_for_model_or_directions_is_not_taken_for_too_large_a_batch(
    small_run, monkeypatch, full_at
):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, "", read_round(store, small_run.run, 0, 0).info.direction)
    score_round.load_on_device.cache_clear()
    asked, said = [], []

    def fail(*given, **also):
        asked.append(given)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(score_round, full_at, fail)
    monkeypatch.setattr(score_round, "notice", said.append)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        score_round.score_chunk(store, stage, (5, 2, 9), small_run.model_use(), {"scorer": "exact"})
    assert (len(asked), said) == (1, [])
    assert score_round.load_on_device(store, stage.direction, "cpu").fitting == {}
    score_round.load_on_device.cache_clear()


def test_copies_of_the_weights_are_made_once_for_all_chunks(small_run, monkeypatch):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    stage = Stage(small_run.run, 0, version, "", read_round(store, small_run.run, 0, 0).info.direction)
    score_round.load_on_device.cache_clear()
    copies, perturb = [], scorers.perturb
    monkeypatch.setattr(scorers, "perturb", lambda *given: copies.append(1) or perturb(*given))
    by_losses = {"scorer": "forward_only", "step": 1e-3}
    for positions in ((5, 2, 9), (1, 7)):
        score_round.score_chunk(store, stage, positions, small_run.model_use(), by_losses)
    assert copies == [1]
    score_round.load_on_device.cache_clear()
