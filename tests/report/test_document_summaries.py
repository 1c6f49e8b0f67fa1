"""What the report says of documents is what was scored, selected and embedded."""

import numpy as np
import pytest

from quad_tasks.report import document_summaries
from quad_tasks.report.finished_run import read_random_draws, read_run
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.stages.bandit.ledger import load_arms
from quad_tasks.stages.pool.count_amounts import sum_tokens
from quad_tasks.storage.rounds import list_rounds, read_round_table
from quad_tasks.storage.store import open_store


@pytest.fixture(scope="module")
def run(small_run):
    store, name = open_store(small_run.workspace), small_run.run
    return read_run(store, small_run, pinned_pool(store, name), pinned_reference(store, name))


def test_the_histogram_counts_what_pulls_drew_at_random_and_nothing_else(run):
    drawn = drawn_by_pulls(run)
    assert 0 < len(drawn) < run.scores.num_rows
    histogram = document_summaries.histogram_of_influence(run, read_random_draws(run))
    assert len(histogram.bin_edges) == document_summaries.BINS + 1
    assert sum(histogram.scored) == len(drawn)
    assert sum(histogram.selected) == len(drawn & set(run.chosen.column("position").to_pylist()))


def drawn_by_pulls(run):
    """Positions in what pulls along the direction that ranked the last stage's documents went over."""
    first = load_arms(run.store, run.version)["position"].to_pylist()
    covered = set()
    for number in range(run.last_stage + 1):
        for committed in list_rounds(run.store, run.config.run, number):
            if committed.info.direction == run.ranking.direction:
                for pull in read_round_table(run.store, committed, "pulls").to_pylist():
                    start = first[pull["arm"]] + pull["cursor"]
                    covered |= set(range(start, start + pull["n_documents"]))
    return covered & set(run.ranked["position"].to_pylist())


def test_examples_are_the_best_the_worst_and_those_nearest_the_threshold(run):
    influence = np.sort(run.ranked.column("influence").to_numpy())
    threshold = float(np.median(influence))
    examples = document_summaries.example_documents(run, threshold)
    n = document_summaries.EXAMPLES
    assert [one.influence for one in examples.best] == influence[::-1][:n].tolist()
    assert [one.influence for one in examples.worst] == influence[:n].tolist()
    nearest = np.sort(np.abs(influence - threshold))[:n]
    np.testing.assert_allclose([abs(one.influence - threshold) for one in examples.borderline], nearest)
    assert all(one.text for one in (*examples.best, *examples.borderline, *examples.worst))


def test_a_long_example_says_how_much_of_it_is_left_out(run, monkeypatch):
    whole = document_summaries.example_documents(run, 0.0).best[0].text
    monkeypatch.setattr(document_summaries, "EXAMPLE_CHARACTERS", 10)
    cut = document_summaries.example_documents(run, 0.0).best[0]
    assert cut.text == whole[:10]
    assert cut.characters_left_out == len(whole) - 10


def test_the_map_knows_influence_and_selection_of_each_of_its_documents(run):
    documents = document_summaries.map_documents(run)
    n = run.pool.documents  # fewer than a map shows
    assert len(documents.x) == len(documents.y) == len(documents.arm) == n
    assert sum(documents.selected) == run.chosen.num_rows
    assert sum(influence is not None for influence in documents.influence) == run.ranked.num_rows


def test_diversity_is_measured_of_the_selection_and_of_three_other_choices(run):
    profiles = document_summaries.measure_diversity(run)
    assert set(profiles) == {"selected", "random", "top_influence", "cluster_uniform"}
    assert len({tuple(profile) for profile in profiles.values()}) == 1
    assert profiles == document_summaries.measure_diversity(run)


def test_tokens_are_summed_up_by_a_columns_values(run):
    by_arm = sum_tokens(run.chosen, "arm")
    assert sum(by_arm.values()) == sum(run.chosen.column("n_tokens").to_pylist())
    assert set(by_arm) == set(run.chosen.column("arm").to_pylist())


def test_documents_are_drawn_from_arms_uniformly_and_never_twice():
    first, size = np.array([0, 2, 12]), np.array([2, 10, 28])
    drawn = [document_summaries._draw_from_arms(first, size, 6, np.random.default_rng(seed)) for seed in range(2000)]
    assert all(len(set(one.tolist())) == 6 for one in drawn)
    firsts = np.array([one[0] for one in drawn])
    arm = np.searchsorted(first, firsts, side="right") - 1
    assert np.bincount(arm) / 2000 == pytest.approx(np.full(3, 1 / 3), abs=0.04)
    assert np.bincount(firsts[arm == 1] - 2) / np.sum(arm == 1) == pytest.approx(np.full(10, 0.1), abs=0.04)
    whole = document_summaries._draw_from_arms(first, size, 40, np.random.default_rng(0))
    assert sorted(whole.tolist()) == list(range(40))
