"""Every named stream is its own, for every seed, and labels are where torch's generator can tell them apart."""

import itertools

import numpy as np
import pytest
import torch

from quad_tasks.core.seeds import Stream, draw_seed, label_seed, make_generator

SEEDS = (0, 1, 2, 1000, 2**31, 2**32 - 1)
N_INDICES = {
    Stream.EMBEDDER_SAMPLE: 1,
    Stream.CENTROID_SAMPLE: 1,
    Stream.FACTOR_SAMPLE: 0,
    Stream.ROUND: 2,
    Stream.BANDWIDTH: 0,
    Stream.RANDOM_CONTROL: 2,
    Stream.FRESH_MODEL_TRAINING: 0,
    Stream.FRESH_MODEL_SAMPLE: 0,
    Stream.TRAINING: 2,
    Stream.REPORT_MAP: 0,
    Stream.REPORT_DIVERSITY: 0,
    Stream.GENERAL_SHARE: 1,
    Stream.SELECTION_REGRESSION: 1,
    Stream.ROUND_REGRESSION: 2,
    Stream.CALIBRATION: 1,
    Stream.EIGENVALUE_SAMPLE: 0,
    Stream.GATE_TRAINING: 1,
    Stream.SELECTION_DIVERSITY: 1,
    Stream.REMAINING: 2,
    Stream.ADAPTATION: 0,
}


def test_no_two_streams_are_alike_whatever_the_seed_and_what_they_are_drawn_for():
    drawn = {}
    for seed, (stream, n) in itertools.product(SEEDS, N_INDICES.items()):
        for indices in itertools.product(range(3), repeat=n):
            drawn[seed, stream, indices] = make_generator(seed, stream, *indices).bytes(16)
    assert len(set(drawn.values())) == len(drawn)


def test_every_stream_is_drawn_above_and_no_number_is_given_twice():
    assert set(N_INDICES) | {Stream.FISHER_LABELS} == set(Stream)
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)


@pytest.mark.parametrize("positions", [range(300), range(2**31, 2**31 + 300)])
def test_labels_of_different_seeds_and_documents_differ_in_the_bits_torch_keeps(positions):
    kept = [label_seed(seed, position) % 2**32 for seed in SEEDS for position in positions]
    assert len(set(kept)) == len(kept)
    assert all(0 <= label_seed(seed, position) < 2**63 for seed in SEEDS for position in positions)


def test_torch_draws_other_labels_for_another_seed():
    drawn = [
        torch.rand(8, generator=torch.Generator().manual_seed(label_seed(seed, 5))).tolist() for seed in (0, 2, 1000)
    ]
    assert len({tuple(row) for row in drawn}) == 3


def test_a_stream_is_the_same_every_time():
    first, again = (make_generator(3, Stream.ROUND, 1, 2).integers(0, 1000, 5) for _ in range(2))
    assert np.array_equal(first, again)


def test_seeds_of_orders_are_drawn_by_their_stream():
    drawn = {draw_seed(make_generator(seed, Stream.RANDOM_CONTROL, 0, n)) for seed in range(20) for n in range(5)}
    assert len(drawn) == 100
    assert all(0 <= seed < 2**63 for seed in drawn)
