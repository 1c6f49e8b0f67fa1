"""Every way pays for what it sees; what all of it costs adds up."""

from types import SimpleNamespace

import pytest

from quad_tasks.experiments import sampling
from quad_tasks.experiments.sampling import spend


@pytest.mark.parametrize("way", sampling.WAYS)
def test_scoring_more_reaches_more_and_all_of_it_everything(tiny_testbed, way):
    place = (tiny_testbed.workspace, tiny_testbed.key)
    found = spend(*place, way, 1.0, 0)
    assert tiny_testbed.n_tokens[found.rows].sum() <= tiny_testbed.size.budget_tokens
    if way == "random_sampling":
        assert found.influence_share == pytest.approx(1.0, abs=0.05)
    assert spend(*place, way, 0.2, 1).rows == spend(*place, way, 0.2, 1).rows


@pytest.mark.parametrize("way", sampling.WAYS)
def test_a_way_pays_for_the_features_that_it_uses(tiny_testbed, monkeypatch, way):
    clock, compute = [0.0], sampling.prediction_features

    def slowly(testbed, features=None):
        clock[0] += {"embedding": 1, None: 10, "hidden_states": 100}[features]
        return compute(testbed, features)

    monkeypatch.setattr(sampling, "prediction_features", slowly)
    monkeypatch.setattr(sampling, "time", SimpleNamespace(process_time=lambda: clock[0]))
    expected = {"quad": 10, "quad_states": 100, "cluster_sampling": 1, "random_sampling": 0}
    assert spend(tiny_testbed.workspace, tiny_testbed.key, way, 0.2, 0).choose_s == expected[way]


def test_the_experiment_gives_a_curve_and_trains_on_three_selections(tiny_testbed, monkeypatch):
    monkeypatch.setattr(sampling, "find_testbed", lambda *_: tiny_testbed)
    monkeypatch.setattr(sampling, "SHARES", (0.1, 0.5))
    result = sampling.measure_sampling("", None, quick=True)
    seconds = tiny_testbed.seconds
    assert len(result.points) == 2 * len(sampling.WAYS)
    cheap = next(p for p in result.points if p.way == "random_sampling" and p.scored_share == 0.1)
    assert cheap.cost_s >= seconds["fit_joint"] + 0.1 * seconds["score"]
    assert cheap.cost_s < result.full_cost_s
    assert set(result.reference_loss) == {"random", "quad", "full_influence"}
    assert all(sampling.lay_out(result).values())
    assert set(sampling.draw(result)) == {"accuracy-against-cost"}
