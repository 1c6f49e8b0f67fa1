"""The split of the variance is that of data made with known variances; the m that follows gives the wanted error."""

from dataclasses import asdict

import numpy as np
import pytest

from quad_tasks.core.evaluation import statistics
from quad_tasks.experiments import homogeneity

BETWEEN, WITHIN = 0.5, 1.5


@pytest.fixture(scope="module")
def made():
    generator = np.random.default_rng(0)
    arm = np.repeat(np.arange(300), 40).astype(np.int32)
    return BETWEEN * generator.standard_normal(300)[arm] + WITHIN * generator.standard_normal(len(arm)), arm


def test_known_variances_are_found(made):
    found = homogeneity.split_variance(*made, seed=0)
    assert found.between == pytest.approx(BETWEEN, rel=0.1)
    assert found.within == pytest.approx(WITHIN, rel=0.02)
    truth = BETWEEN**2 / (BETWEEN**2 + WITHIN**2)
    assert found.low < truth < found.high
    assert found.documents_per_pull == pytest.approx((WITHIN / (0.5 * BETWEEN)) ** 2, rel=0.2)
    assert found.real_error == pytest.approx(found.wanted_error, rel=0.1)


def test_the_error_of_a_pull_falls_with_the_root_of_its_documents(made):
    few, many = (homogeneity.measure_pull_error(*made, m, np.random.default_rng(1)) for m in (4, 64))
    assert few == pytest.approx(WITHIN / 2, rel=0.05)
    assert few / many == pytest.approx(4, rel=0.1)


def test_the_experiment_splits_by_every_number_of_arms(tiny_testbed, monkeypatch):
    monkeypatch.setattr(homogeneity, "find_testbed", lambda *_: tiny_testbed)
    result = homogeneity.measure_homogeneity("", None, quick=True)
    assert {split.arms for split in result.clusterings} == {2, 4, 8, 16}
    assert all(homogeneity.lay_out(result).values())
    assert set(homogeneity.draw(result)) == {"homogeneity"}


def test_the_interval_counts_clusterings_from_other_centroids_once(tiny_testbed, made):
    found = asdict(homogeneity.split_variance(*made, seed=0)) | {"wanted_error": 1.0}
    kinds = [("n-grams", 2), ("n-grams", 4), ("hidden states", 4)]
    ratios = {kind: [number + 0.8, number + 1.2] for number, kind in enumerate(kinds)}
    splits = [
        homogeneity.ClusteringSplit(**found | {"real_error": ratio}, embedding=kind[0], arms=kind[1], seed=seed)
        for kind, each in ratios.items()
        for seed, ratio in enumerate(each)
    ]
    claim = homogeneity._claims(tiny_testbed, splits)[1]
    expected = statistics.interval([1.0, 2.0, 3.0])
    assert (claim.measured, claim.low, claim.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_centred_vectors_have_norm_one_and_clipped_values_their_quantiles():
    vectors = homogeneity.centre_and_scale(np.array([[3.0, 5.0], [3.0, 1.0]], dtype=np.float32))
    np.testing.assert_allclose(vectors, [[0, 1], [0, -1]])
    clipped = homogeneity.clip_ends(np.arange(101.0))
    assert (clipped.min(), clipped.max()) == (1.0, 99.0)
