"""Baselines: hand-worked weights and orders, and every order a permutation."""

import math

import numpy as np
import pytest

from quad_tasks.experiments.lab import baselines

POOL = ["the cat sat on the mat", "int main ( ) { return 0 ; }", "the dog sat on the cat", "for ( ; ; ) { }"] * 5
REFERENCE = ["the cat and the dog sat", "on the mat the dog"]


def orders():
    arm = np.arange(len(POOL), dtype=np.int32) % 3
    loss = np.random.default_rng(0).normal(size=len(POOL))
    return {
        "random": baselines.random_order(len(POOL), np.random.default_rng(0)),
        "cluster": baselines.cluster_uniform_order(arm, np.random.default_rng(0)),
        "lowest": baselines.lowest_loss_order(loss),
        "middle": baselines.middle_loss_order(loss),
        "dsir": baselines.importance_order(POOL, REFERENCE, np.random.default_rng(0)),
        "classifier": baselines.classifier_order(POOL, REFERENCE),
        "bm25": baselines.bm25_order(POOL, REFERENCE),
    }


@pytest.mark.parametrize("name", ["random", "cluster", "lowest", "middle", "dsir", "classifier", "bm25"])
def test_every_order_holds_every_row_once(name):
    assert sorted(orders()[name]) == list(range(len(POOL)))


def test_clusters_give_alike_until_they_are_empty():
    arm = np.array([0] * 50 + [1] * 4 + [2] * 10, dtype=np.int32)
    order = baselines.cluster_uniform_order(arm, np.random.default_rng(0))
    assert np.bincount(arm[order[:12]]).tolist() == [4, 4, 4]
    assert np.bincount(arm[order[:24]]).tolist() == [10, 4, 10]


def test_middle_losses_stand_around_the_median():
    assert baselines.middle_loss_order(np.array([9.0, 1.0, 5.0, 4.0, 0.0])).tolist()[0] == 3
    assert set(baselines.middle_loss_order(np.array([9.0, 1.0, 5.0, 4.0, 0.0]))[:3].tolist()) == {1, 2, 3}


def test_importance_is_the_log_ratio_of_two_bags_of_ngrams():
    # "a": pool 1 of 3 unigrams, reference 2 of 2; one count is added to each of the buckets. Bigrams: none but "a b".
    found = baselines.log_importance(["a", "a b"], ["a", "a"])
    buckets = baselines.BUCKETS
    a = np.log(3 / (2 + buckets)) - np.log(3 / (4 + buckets))
    other = np.log(1 / (2 + buckets)) - np.log(2 / (4 + buckets))
    assert found == pytest.approx([a, a + 2 * other])


def test_bm25_is_that_of_its_formula():
    """A word weighs ln(1 + (N - n + ½) / (n + ½)), times its count over itself and what the length makes of k1."""
    pool, queries = ["a b", "a a a c", "d"], ["a", "b a x"]
    length, average = [2, 4, 1], 7 / 3
    idf = {"a": math.log(1 + 1.5 / 2.5), "b": math.log(1 + 2.5 / 1.5)}
    damping = [1.2 * (0.25 + 0.75 * n / average) for n in length]
    first = 2 * idf["a"] / (1 + damping[0]) + idf["b"] / (1 + damping[0])  # "a" is asked for twice, "b" once
    second = 2 * idf["a"] * 3 / (3 + damping[1])
    assert baselines.bm25_scores(pool, queries) == pytest.approx([first / 2, second / 2, 0.0])


def test_similarity_is_the_mean_cosine_to_the_reference():
    embedding = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    reference = np.array([[0.0, 1.0], [0.8, 0.6]])  # mean cosines .4, .8 and (.8 + .96) / 2
    assert baselines.similarity_order(embedding, reference).tolist() == [2, 1, 0]


@pytest.mark.parametrize("order", ["dsir", "classifier", "bm25"])
def test_text_like_the_reference_comes_first(order):
    prose = np.arange(len(POOL)) % 2 == 0
    assert prose[orders()[order][:10]].mean() >= 0.9
