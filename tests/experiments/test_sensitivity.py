"""Settings span what they say; what is said of them follows from the values."""

import dataclasses

import numpy as np
import pytest

from quad_tasks.experiments import sensitivity
from quad_tasks.experiments.lab.clusterings import ALGORITHMS
from quad_tasks.experiments.sensitivity import Setting, Value, judge, list_settings, overlap


def test_every_setting_is_varied_alone_and_the_default_is_among_its_values():
    base, settings = Setting(100), list_settings(100)
    for name, tried in settings.items():
        assert base in tried
        assert {dataclasses.replace(one, **{name: getattr(base, name)}) for one in tried} == {base}
    arms = [one.k for one in settings["k"]]
    assert max(arms) / min(arms) == 16
    assert {one.clustering for one in settings["clustering"]} == set(ALGORITHMS)


def test_overlap_is_shared_tokens_over_all_tokens(tiny_testbed):
    n = tiny_testbed.n_tokens
    expected = n[2] / (n[1] + n[2] + n[3])
    assert overlap(tiny_testbed, np.array([1, 2]), np.array([2, 3])) == pytest.approx(expected)
    assert overlap(tiny_testbed, np.array([4]), np.array([4])) == 1


def test_a_default_that_another_value_beats_by_far_is_called_so():
    ranges, claims = judge(
        [
            Value("k", 25, False, [0.5, 0.52, 0.51], []),
            Value("k", 100, True, [0.7, 0.71, 0.7], []),
            Value("alpha", 0.0, False, [0.8, 0.81, 0.8], []),
            Value("alpha", 1.0, True, [0.7, 0.71, 0.7], []),
        ]
    )
    assert ranges["k"] == pytest.approx(0.703 - 0.51, abs=0.001)
    assert [claim.holds for claim in claims] == [True, False]
    assert claims[1].measured == pytest.approx(0.1)


def test_the_experiment_tries_trains_and_draws(tiny_testbed, monkeypatch):
    monkeypatch.setattr(sensitivity, "find_testbed", lambda *_: tiny_testbed)
    monkeypatch.setattr(sensitivity, "SEEDS", 2)
    result = sensitivity.measure_sensitivity("", None, quick=True)
    defaults = [value for value in result.values if value.default]
    assert {value.setting for value in defaults} == set(list_settings(4))
    assert all(value.overlap == [1.0, 1.0] for value in defaults)
    assert len({tuple(value.influence_share) for value in defaults}) == 1
    assert [one.name for one in result.trained] == ["default", "least", "most"]
    least = next(v for v in result.values if result.trained[1].value == f"{v.setting} = {v.value}")
    assert np.mean(least.influence_share) == min(np.mean(value.influence_share) for value in result.values)
    assert all(sensitivity.lay_out(result).values())
    assert set(sensitivity.draw(result)) == {"sensitivity"}
