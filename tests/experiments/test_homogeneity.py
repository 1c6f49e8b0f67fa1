"""The split of the variance is that of data made with known variances; the m that follows gives the wanted error."""

import numpy as np
import pytest

from quad_tasks.experiments import homogeneity
from quad_tasks.experiments.experiment import write_result
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.store import open_store

BETWEEN, WITHIN = 0.5, 1.5


@pytest.fixture(scope="module")
def made():
    generator = np.random.default_rng(0)
    arm = np.repeat(np.arange(300), 40).astype(np.int32)
    return BETWEEN * generator.standard_normal(300)[arm] + WITHIN * generator.standard_normal(len(arm)), arm


def test_known_variances_are_found(made):
    found = homogeneity.split(*made, seed=0)
    assert found["between"] == pytest.approx(BETWEEN, rel=0.1)
    assert found["within"] == pytest.approx(WITHIN, rel=0.02)
    truth = BETWEEN**2 / (BETWEEN**2 + WITHIN**2)
    assert found["low"] < truth < found["high"]
    assert found["documents_per_pull"] == pytest.approx((WITHIN / (0.5 * BETWEEN)) ** 2, rel=0.2)
    assert found["real_error"] == pytest.approx(found["wanted_error"], rel=0.1)


def test_the_error_of_a_pull_falls_with_the_root_of_its_documents(made):
    few, many = (homogeneity.real_error(*made, m, np.random.default_rng(1)) for m in (4, 64))
    assert few == pytest.approx(WITHIN / 2, rel=0.05)
    assert few / many == pytest.approx(4, rel=0.1)


def test_the_experiment_splits_by_every_number_of_arms(tiny_laboratory, monkeypatch):
    monkeypatch.setattr(homogeneity, "find_laboratory", lambda *_: tiny_laboratory)
    body = homogeneity.measure_homogeneity("", None, quick=True)
    assert {row["arms"] for row in body["clusterings"]} == {2, 4, 8, 16}
    key = write_result(tiny_laboratory.workspace, "homogeneity", homogeneity.HOMOGENEITY, True, body, 1.0)
    store = open_store(tiny_laboratory.workspace)
    assert read_manifest(store, key)["shows"] == body["shows"]
    assert {k.rsplit(".", 1)[1] for k in store.list(key.rsplit("/", 1)[0])} == {"json", "svg", "png"}
    titles = homogeneity.tables(body)
    assert all(len(rows) for rows in titles.values())
