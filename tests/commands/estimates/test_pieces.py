"""Pieces of a pool as they are counted, against the stages' own cuts of a made-up pool."""

import itertools

import numpy as np
import pytest

from quad_tasks.commands.estimates.pieces import count_pieces, pieces_at_once, touched
from quad_tasks.stages.bandit.pool_prediction import cut_blocks
from quad_tasks.stages.pool import sort_layout
from quad_tasks.stages.pool.sort_layout import PIECE_BYTES, PIECE_ROWS, Sizes, cut_groups
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


@pytest.mark.parametrize("mean_bytes", [1_400, 40_000])
@pytest.mark.parametrize(("documents", "shards"), [(5_000, 2), (3_000_000, 1000), (20_000_000, 20), (300_000_000, 300)])
def test_bundles_are_as_many_as_the_layout_makes(documents, shards, mean_bytes):
    found = count_pieces(documents, documents * mean_bytes, shards, 200)
    bounds = cut_rows(np.full(documents // shards, mean_bytes), PIECE_ROWS, PIECE_BYTES)
    n_bytes = [mean_bytes * (end - first) for first, end in itertools.pairwise(bounds)]
    none = np.empty(0, dtype=np.int64)
    sizes = Sizes(none, none, none, [bounds] * shards, [n_bytes] * shards)
    bundles = sort_layout._bundle_pieces([""] * shards, [none] * shards, [sizes])
    assert sum(map(len, bundles)) == found.sorted
    assert found.bundles == pytest.approx(len(bundles), rel=0.1)


def test_a_range_gathers_from_as_many_bundles_as_a_random_order_puts_into_it():
    found = count_pieces(3_000_000, 3_000_000 * 300, 60_000, 200)
    assert found.bundles == pytest.approx(256, rel=0.05)
    generator = np.random.default_rng(0)
    rows = 3_000_000 // found.bundles
    inside = [len(np.unique(generator.integers(0, found.ranges, rows))) for _ in range(found.bundles)]
    assert found.dealt == pytest.approx(sum(inside), rel=0.02)


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
