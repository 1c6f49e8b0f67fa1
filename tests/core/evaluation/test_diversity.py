"""Diversity against values worked by hand and the package of the Vendi score's authors."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from quad_tasks.core.evaluation.diversity import (
    cluster_entropy,
    compression_ratio,
    coverage,
    distinct_ngrams,
    diversity_profile,
    effective_arms,
    near_duplicate_rate,
    vendi_score,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_entropy_equals_the_value_worked_by_hand() -> None:
    assert cluster_entropy([2, 1, 1, 0]) == pytest.approx(1.5 * np.log(2), rel=1e-15)


@given(st.integers(1, 50), st.floats(1e-3, 1e3))
def test_equal_weights_are_as_many_effective_arms(k: int, weight: float) -> None:
    assert effective_arms(np.full(k, weight)) == pytest.approx(k)


def test_one_arm_is_one_effective_arm_with_no_entropy() -> None:
    assert effective_arms([0, 7, 0]) == 1
    assert str(cluster_entropy([0, 7, 0])) == "0.0"


@pytest.mark.parametrize("weights", [[], [0, 0]])
def test_no_weight_has_no_entropy(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected an arm with documents, tokens or pulls, found none in"):
        effective_arms(weights)


def test_coverage_counts_only_arms_the_pool_has_documents_of() -> None:
    assert coverage([3, 0, 0, 1], [5, 5, 0, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20)])
def test_vendi_score_equals_its_definition_on_the_similarity_matrix(n: int, d: int) -> None:
    rows = unit(np.random.default_rng(0).standard_normal((n, d)))
    eigenvalues = linalg.eigvalsh(rows @ rows.T / n)
    eigenvalues = eigenvalues[eigenvalues > 1e-14]
    expected = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
    assert vendi_score(rows) == pytest.approx(expected, rel=1e-9)


def test_vendi_score_equals_its_authors_package() -> None:
    vendi = pytest.importorskip("vendi_score.vendi")
    rows = unit(np.random.default_rng(1).standard_normal((30, 8)))
    assert vendi_score(rows) == pytest.approx(vendi.score_dual(rows, normalize=False), rel=1e-9)


def test_orthogonal_documents_count_one_each_and_copies_count_once() -> None:
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.repeat(np.eye(5), 3, axis=0)) == pytest.approx(5)
    assert vendi_score(np.repeat(np.eye(5)[:1], 9, axis=0)) == pytest.approx(1)


def test_distinct_ngrams_equal_the_count_by_hand() -> None:
    texts = ["a b a b", "a b c"]
    assert distinct_ngrams(texts, 1) == pytest.approx(3 / 7)
    assert distinct_ngrams(texts, 2) == pytest.approx(3 / 5)  # ab ba ab, ab bc


def test_ngrams_do_not_cross_texts_and_none_are_none_distinct() -> None:
    assert distinct_ngrams(["a", "b"], 2) == 0


def test_compression_ratio_is_bytes_over_compressed_bytes() -> None:
    raw = "ä\nbb".encode()
    assert compression_ratio(["ä", "bb"]) == pytest.approx(len(raw) / len(zlib.compress(raw)))


def test_repetition_compresses_better() -> None:
    letters = np.random.default_rng(0).choice(list("abcdefghij "), (50, 80))
    varied = ["".join(row) for row in letters]
    assert compression_ratio([varied[0]] * 50) > 10 * compression_ratio(varied)


def test_near_duplicates_are_counted_with_their_original() -> None:
    rows = np.array([[1, 0, 0], [1, 0.01, 0], [1, 0, 0.01], [0, 1, 0], [0, 0, 1]])
    assert near_duplicate_rate(unit(rows)) == pytest.approx(3 / 5)


@pytest.mark.parametrize("n", [0, 1])
def test_no_document_is_its_own_duplicate(n: int) -> None:
    assert near_duplicate_rate(np.eye(3)[:n]) == 0


def test_a_profile_holds_every_measure_as_a_finite_number() -> None:
    texts = ["one two three four", "five six seven eight", "one two three nine"]
    profile = diversity_profile(texts, np.eye(3), [2, 1, 0], [9, 9, 9])
    assert profile == {
        "cluster_entropy": pytest.approx(cluster_entropy([2, 1])),
        "effective_arms": pytest.approx(effective_arms([2, 1])),
        "coverage": pytest.approx(2 / 3),
        "vendi_score": pytest.approx(3),
        "distinct_1grams": pytest.approx(9 / 12),
        "distinct_3grams": pytest.approx(5 / 6),
        "compression_ratio": pytest.approx(compression_ratio(texts)),
        "near_duplicate_rate": 0,
    }
