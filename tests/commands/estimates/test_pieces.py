"""Pieces of a pool as they are counted, against the stages' own cuts of a made-up pool."""

import itertools

import numpy as np
import pytest

from quad_tasks.commands.estimates.pieces import count_pieces, pieces_at_once, touched
from quad_tasks.stages.bandit.pool_prediction import cut_blocks
from quad_tasks.stages.pool.lay_out_arms import PIECE_BYTES, PIECE_ROWS, cut_groups
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.tables import PART_BYTES, PART_ROWS, ROW_GROUP_BYTES, ROW_GROUP_ROWS


@pytest.mark.parametrize("mean_bytes", [1_400, 40_000])
@pytest.mark.parametrize(("documents", "shards", "arms"), [(2_000_000, 7, 800), (300_000, 40, 3), (5_000, 2, 40)])
def test_pieces_are_as_many_as_the_stages_cut(documents, shards, arms, mean_bytes):
    found = count_pieces(documents, documents * mean_bytes, shards, arms)
    of_shard = np.full(documents // shards, mean_bytes)
    assert found.sorted == shards * (len(cut_rows(of_shard, PIECE_ROWS, PIECE_BYTES)) - 1)
    rows_K = np.full(arms, documents // arms)
    groups = cut_groups(rows_K, rows_K * mean_bytes)[0]
    assert found.groups == pytest.approx(len(groups), rel=0.05, abs=1)
    group = np.full(documents // len(groups), mean_bytes)
    parts = cut_rows(group, PART_ROWS, PART_BYTES)
    assert found.parts == pytest.approx(len(groups) * (len(parts) - 1), rel=0.15, abs=1)
    row_groups = sum(
        len(cut_rows(group[first:end], ROW_GROUP_ROWS, ROW_GROUP_BYTES)) - 1 for first, end in itertools.pairwise(parts)
    )
    assert found.row_groups == pytest.approx(len(groups) * row_groups, rel=0.05, abs=len(groups))
    assert found.blocks == len(cut_blocks("folder", documents))


def test_a_group_gathers_from_as_many_pieces_as_a_random_order_puts_into_it():
    found = count_pieces(3_000_000, 3_000_000 * 300, 60, 200)
    generator = np.random.default_rng(0)
    inside = [len(np.unique(generator.integers(0, found.groups, 50_000))) for _ in range(found.sorted)]
    assert found.ranges == pytest.approx(sum(inside), rel=0.02)


def test_documents_drawn_at_random_lie_in_as_many_places_as_a_draw_finds():
    generator = np.random.default_rng(0)
    for draws, of in ((10, 4), (500, 100), (3, 1000)):
        found = np.mean([len(np.unique(generator.integers(0, of, draws))) for _ in range(200)])
        assert touched(draws, of) == pytest.approx(found, rel=0.05)
    assert touched(5, 1) == 1


def test_the_last_turn_keeps_fewer_workers_busy():
    assert pieces_at_once(12, 256) == 12
    assert pieces_at_once(300, 256) == 150
    assert pieces_at_once(512, 256) == 256
