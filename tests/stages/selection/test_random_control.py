"""The random control is what the selection could have taken: the same limits, drawn by chance."""

import itertools

import numpy as np
import pytest
from small_pool import stored

from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import open_store

STAGES, SEEDS = range(2), range(2)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


@pytest.fixture
def store(leaking_run):
    return open_store(leaking_run.workspace)


def table_of(config, store, stage: int, name: str):
    return read_table(store, f"runs/{config.run}/stage-{stage:02d}/{name}.parquet")


def shingles_of(config, store, positions) -> list[set[tuple[str, ...]]]:
    texts = read_positions(store, pinned_pool(store, config.run), np.asarray(positions), ["text"])["text"]
    return [shingles(text) for text in texts.to_pylist()]


@pytest.fixture
def earlier(leaking_run, store):
    """Positions that the first stage chose."""
    return table_of(leaking_run, store, 0, "selected")["position"].to_numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_it_holds_nothing_that_an_earlier_stage_chose(leaking_run, store, earlier, seed):
    control = table_of(leaking_run, store, 1, f"random-{seed}")["position"].to_numpy()
    assert len(control)
    assert np.intersect1d(control, earlier).tolist() == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_holds_no_near_duplicates_of_each_other_or_of_earlier_choices(leaking_run, store, earlier, stage, seed):
    control = shingles_of(leaking_run, store, table_of(leaking_run, store, stage, f"random-{seed}")["position"])
    before = shingles_of(leaking_run, store, earlier) if stage else []
    pairs = itertools.chain(itertools.combinations(control, 2), itertools.product(control, before))
    assert max(jaccard(a, b) for a, b in pairs) < leaking_run.selection.near_duplicate_overlap


def test_near_duplicates_were_there_to_be_left_out(leaking_run, store):
    left_out = [
        stored(store, f"runs/{leaking_run.run}/stage-{stage:02d}/random-{seed}.json")["near_duplicates"]
        for stage in STAGES
        for seed in SEEDS
    ]
    assert any(left_out)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_it_has_the_tokens_of_the_selection_but_for_less_than_one_document(leaking_run, store, stage, seed):
    selected = table_of(leaking_run, store, stage, "selected")["n_tokens"].to_numpy()
    control = table_of(leaking_run, store, stage, f"random-{seed}")["n_tokens"].to_numpy()
    assert 0 <= selected.sum() - control.sum() < control.max()


def test_seeds_draw_other_documents_of_the_same_pool(leaking_run, store):
    first, second = (set(table_of(leaking_run, store, 0, f"random-{seed}")["id"].to_pylist()) for seed in SEEDS)
    assert first != second
