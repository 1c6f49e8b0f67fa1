"""Every way pays for what it sees; what all of it costs adds up."""

import numpy as np
import pytest

from quad_tasks.experiments import sampling
from quad_tasks.experiments.sample import cut_passages
from quad_tasks.experiments.sampling import spend


def test_passages_hold_every_word_once():
    text = " ".join(f"word{n}" for n in range(100))
    passages = cut_passages(text, 60)
    assert " ".join(passages).split() == text.split()
    assert all(30 <= len(passage) <= 90 for passage in passages)
    assert cut_passages(text, None) == [text]


@pytest.mark.parametrize("way", sampling.WAYS)
def test_scoring_more_reaches_more_and_all_of_it_everything(tiny_laboratory, way):
    place = (tiny_laboratory.workspace, tiny_laboratory.key)
    found = spend(*place, way, 1.0, 0)
    assert tiny_laboratory.n_tokens[found["rows"]].sum() <= tiny_laboratory.size.budget_tokens
    if way == "random_sampling":
        assert found["influence_share"] == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(spend(*place, way, 0.2, 1)["rows"], spend(*place, way, 0.2, 1)["rows"])


def test_the_experiment_gives_a_curve_and_trains_on_three_selections(tiny_laboratory, monkeypatch):
    monkeypatch.setattr(sampling, "find_laboratory", lambda *_: tiny_laboratory)
    monkeypatch.setattr(sampling, "SHARES", (0.1, 0.5))
    body = sampling.measure_sampling("", None, quick=True)
    seconds = tiny_laboratory.seconds
    assert len(body["points"]) == 2 * len(sampling.WAYS)
    cheap = next(p for p in body["points"] if p["way"] == "random_sampling" and p["scored_share"] == 0.1)
    assert cheap["cost_s"] >= seconds["fit_joint"] + 0.1 * seconds["score"]
    assert cheap["cost_s"] < body["full_cost_s"]
    assert set(body["reference_loss"]) == {"random", "quad", "full_influence"}
    assert all(sampling.tables(body).values())
    assert set(sampling.draw(body)) == {"accuracy-against-cost"}
