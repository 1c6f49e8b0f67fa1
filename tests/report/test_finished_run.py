"""What a finished run committed, as the report reads it."""

import numpy as np
import pyarrow as pa
import pytest

from quad_tasks.report.finished_run import read_random_draws, read_run
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.storage.store import open_store


@pytest.fixture
def run(small_run):
    store = open_store(small_run.workspace)
    reference = pinned_reference(store, small_run.run)
    return read_run(store, small_run, pinned_pool(store, small_run.run), reference)


def test_a_scored_document_is_selected_where_the_choice_holds_it(run):
    chosen = set(run.chosen["position"].to_pylist())
    scored = run.scores["position"].to_pylist()
    assert run.is_selected.tolist() == [position in chosen for position in scored]
    assert run.last_stage == run.config.training.stages - 1


def test_random_draws_are_what_the_last_stages_pulls_covered(run):
    drawn = read_random_draws(run)
    assert set(drawn["stage"].to_pylist()) == {run.last_stage}
    assert 0 < drawn.num_rows <= run.scores.num_rows
    scored = run.scores.filter(pa.array(np.asarray(run.scores["stage"]) == run.last_stage))
    assert set(drawn["position"].to_pylist()) <= set(scored["position"].to_pylist())


def test_amounts_are_those_of_the_pool(run):
    assert sum(run.amounts["documents"].to_pylist()) == run.pool.documents
    assert sum(run.amounts["tokens"].to_pylist()) == run.pool.tokens
