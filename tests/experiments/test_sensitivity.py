"""Settings span what they say; what is said of them follows from the values."""

import dataclasses

import numpy as np
import pytest

from quad_tasks.experiments import sensitivity
from quad_tasks.experiments.clusterings import ALGORITHMS
from quad_tasks.experiments.sensitivity import Setting, judge, list_settings, overlap


def test_every_setting_is_varied_alone_and_the_default_is_among_its_values():
    base, settings = Setting(100), list_settings(100)
    for name, tried in settings.items():
        assert base in tried
        assert {dataclasses.replace(one, **{name: getattr(base, name)}) for one in tried} == {base}
    arms = [one.k for one in settings["k"]]
    assert max(arms) / min(arms) == 16
    assert {one.clustering for one in settings["clustering"]} == set(ALGORITHMS)


def test_overlap_is_shared_tokens_over_all_tokens(tiny_laboratory):
    n = tiny_laboratory.n_tokens
    expected = n[2] / (n[1] + n[2] + n[3])
    assert overlap(tiny_laboratory, np.array([1, 2]), np.array([2, 3])) == pytest.approx(expected)
    assert overlap(tiny_laboratory, np.array([4]), np.array([4])) == 1


def test_a_default_that_another_value_beats_by_far_is_called_so():
    def value(setting, what, shares, default=False):
        return {"setting": setting, "value": what, "influence_share": shares, "default": default}

    found = judge(
        [
            value("k", 25, [0.5, 0.52, 0.51]),
            value("k", 100, [0.7, 0.71, 0.7], default=True),
            value("alpha", 0.0, [0.8, 0.81, 0.8]),
            value("alpha", 1.0, [0.7, 0.71, 0.7], default=True),
        ]
    )
    assert found["ranges"]["k"] == pytest.approx(0.703 - 0.51, abs=0.001)
    assert [show["holds"] for show in found["shows"]] == [True, False]
    assert found["shows"][1]["measured"] == pytest.approx(0.1)


def test_the_experiment_tries_trains_and_draws(tiny_laboratory, monkeypatch):
    monkeypatch.setattr(sensitivity, "find_laboratory", lambda *_: tiny_laboratory)
    monkeypatch.setattr(sensitivity, "SEEDS", 2)
    body = sensitivity.measure_sensitivity("", None, quick=True)
    defaults = [value for value in body["values"] if value["default"]]
    assert {value["setting"] for value in defaults} == set(list_settings(4))
    assert all(value["overlap"] == [1.0, 1.0] for value in defaults)
    assert len({tuple(value["influence_share"]) for value in defaults}) == 1
    assert [one["name"] for one in body["trained"]] == ["default", "least", "most"]
    assert all(sensitivity.tables(body).values())
    assert set(sensitivity.draw(body)) == {"sensitivity"}
