"""Pieces used alone give what the core gives, and importing the package imports nothing heavy."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_pool import topic_records

import quad_tasks
from quad_tasks.core import ekfac, influence
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import encode, train_tokenizer

TEXTS = [str(r["text"]) for r in topic_records("harbour", 12, seed=3)]


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(TEXTS, 300)
    return fresh_llama(LlamaSize(16, 2, 2, 1, 32), len(tokenizer), 32, seed=1), tokenizer


def test_the_package_imports_nothing_until_a_name_is_asked_for():
    code = "import sys, quad_tasks; print(sorted({'torch', 'prefect', 'transformers', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_no_other():
    assert all(callable(getattr(quad_tasks, name)) for name in quad_tasks.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        quad_tasks.nothing  # noqa: B018


def test_scores_of_texts_are_the_cores_summed_over_windows(model):
    factors = quad_tasks.fit_text_factors(*model, TEXTS[:8], window_tokens=32)
    direction = quad_tasks.fit_text_direction(*model, TEXTS[8:], factors, window_tokens=32)
    scores = quad_tasks.score_texts(*model, [*TEXTS, ""], direction, window_tokens=32)
    language_model, tokenizer = model
    for i, ids in enumerate(encode(tokenizer, TEXTS)):
        batches, _ = make_batches([ids], 32, 64)
        alone = influence.score_documents(language_model, batches, direction)
        assert scores[i] == pytest.approx(alone.influence.sum() / (len(ids) - 1), rel=1e-3, abs=1e-7)
    assert np.isnan(scores[-1])
    assert isinstance(factors, ekfac.Factors)
    assert all(torch.isfinite(v).all() for v in direction.values())


def test_labels_of_another_seed_give_other_factors(model):
    """Seeds 0 and 2 agree in the lower 32 bits of their product with 2^31, all that torch keeps of a seed."""
    fitted = [quad_tasks.fit_text_factors(*model, TEXTS[:8], window_tokens=32, seed=seed) for seed in (0, 2, 0)]
    (first, other, again) = (next(iter(one.eigenvalues.values())) for one in fitted)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_a_bandit_on_any_scorer_finds_the_best_arm():
    """Means 0, 1, 2 with noise 0.1: with ten rounds of one pull, most go to the last."""
    generator = np.random.default_rng(0)
    pulled = quad_tasks.pull_arms(
        [200, 200, 200], lambda arm, row, n: arm + 0.1 * generator.standard_normal(n), 120, arms_per_round=1,
        documents_per_pull=10, alpha=0.5,
    )  # fmt: skip
    assert len(pulled.influence) == 120
    counts = np.bincount(pulled.arm, minlength=3)
    assert counts.argmax() == 2
    assert counts.min() >= 10  # each was visited
    for arm in range(3):
        np.testing.assert_array_equal(pulled.row[pulled.arm == arm], np.arange(counts[arm]))
    np.testing.assert_array_equal(pulled.state.cursor, counts)


def test_a_bandit_ends_when_all_is_drawn_and_refuses_a_wrong_number_of_scores():
    assert len(quad_tasks.pull_arms([5, 3], lambda arm, row, n: np.zeros(n), 100).influence) == 8
    with pytest.raises(ValueError, match=r"score: expected 5 scores of arm 0 from row 0, got shape \(1,\)"):
        quad_tasks.pull_arms([5], lambda arm, row, n: [0.0], 100)


def test_clusters_of_separated_points_are_those_points():
    centres = np.eye(3, 4, dtype=np.float32)
    points = np.repeat(centres, 5, axis=0)
    arms, centroids = quad_tasks.cluster_embeddings(points, 3)
    assert [len(set(arms[i : i + 5])) for i in (0, 5, 10)] == [1, 1, 1]
    np.testing.assert_allclose(centroids[arms], points, atol=1e-6)


def test_repeated_texts_are_less_diverse():
    varied, same = quad_tasks.measure_diversity(TEXTS), quad_tasks.measure_diversity(TEXTS[:1] * len(TEXTS))
    assert same["vendi_score"] == pytest.approx(1, abs=1e-3)
    assert varied["vendi_score"] > 2
    assert (same["near_duplicate_rate"], varied["near_duplicate_rate"]) == (1.0, 0.0)
