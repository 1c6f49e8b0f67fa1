"""What a finished run committed, as the report reads it."""

import pytest

from quad_tasks.report.finished_run import read_random_draws, read_run
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store


@pytest.fixture
def run(small_run):
    store = open_store(small_run.workspace)
    reference = pinned_reference(store, small_run.run)
    return read_run(store, small_run, pinned_pool(store, small_run.run), reference)


def test_ranked_scores_are_those_along_the_direction_of_the_last_choice(run):
    assert run.last_stage == run.config.training.stages - 1
    directions = [list_rounds(run.store, run.config.run, number)[0].info.direction for number in range(2)]
    along = [number for number in range(2) if directions[number] == run.ranking.direction]
    expected = [row for row in run.scores.to_pylist() if row["stage"] in along]
    assert run.ranked.to_pylist() == expected
    assert 0 < len(expected) < run.scores.num_rows


def test_random_draws_are_ranked_scores_that_pulls_covered(run):
    drawn = read_random_draws(run)
    assert 0 < drawn.num_rows <= run.ranked.num_rows
    assert set(drawn["position"].to_pylist()) <= set(run.ranked["position"].to_pylist())


def test_amounts_are_those_of_the_pool(run):
    assert sum(run.amounts["documents"].to_pylist()) == run.pool.documents
    assert sum(run.amounts["tokens"].to_pylist()) == run.pool.tokens
