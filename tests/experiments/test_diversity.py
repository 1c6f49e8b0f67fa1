"""Methods are trained and measured alike in every testbed; what is claimed of them follows from the losses."""

from types import SimpleNamespace

import numpy as np
import pytest
from experiments.conftest import TINY

from quad_tasks.experiments import diversity, diversity_methods
from quad_tasks.experiments.diversity import Selected, compare_methods, compare_outcomes, select_by
from quad_tasks.experiments.diversity_report import draw, lay_out
from quad_tasks.experiments.lab.evaluation import Outcome
from quad_tasks.experiments.lab.model_baselines import Adapted
from quad_tasks.experiments.lab.scorer_cost import EXACT
from quad_tasks.experiments.lab.testbed import find_testbeds
from quad_tasks.experiments.lab.train_choice import measure_losses
from quad_tasks.experiments.lab.trials import hold_out


def test_methods_are_trained_and_measured_alike_in_every_testbed(tiny_testbed, tiny_config):
    testbeds = find_testbeds(tiny_testbed.workspace, tiny_config, TINY, 2)
    assert testbeds[0].key == tiny_testbed.key != testbeds[1].key
    result = compare_methods(testbeds)
    found = result.methods
    assert found["full_influence"].influence_share[0] == pytest.approx(1.0, abs=0.05)
    assert found["random"].flops == 0 < found["quad"].flops < found["full_influence"].flops
    for method in found.values():
        assert len(method.reference_loss) == len(method.other_domains_bpb) == 2
        assert sum(method.by_source.values()) == pytest.approx(1.0)
        assert method.worst_domain_bpb[0] >= method.other_domains_bpb[0]
    assert found["quad"].cost_share <= 0.1 < 1 == found["full_influence"].cost_share
    assert len(result.scorers) == 2
    assert all(lay_out(result).values())
    assert set(draw(result)) == {"outcome", "diversity"}


def test_some_methods_are_measured_beside_those_that_are_compared(tiny_testbed):
    result = compare_methods([tiny_testbed, tiny_testbed], ["dsir"])
    assert set(result.methods) == {"dsir", "quad", "full_influence", "random"}


def test_a_methods_time_is_the_same_whatever_its_worker_did_before(tiny_testbed, monkeypatch):
    """Seconds by hand: a second for each method's features, which it pays itself, in whatever order workers select."""
    clock, compute = [0.0], diversity_methods.prediction_features

    def slowly(testbed, features=None):
        clock[0] += 1
        return compute(testbed, features)

    monkeypatch.setattr(diversity_methods, "prediction_features", slowly)
    monkeypatch.setattr(diversity, "time", SimpleNamespace(process_time=lambda: clock[0]))
    for name, seconds in {"quad": 1, "dsir": 0, "quad_conditional_loss": 1, "quad_at_5_percent": 1}.items():
        assert select_by(tiny_testbed.workspace, tiny_testbed.key, EXACT, name, 0).seconds == seconds, name


def test_an_adapted_copy_is_paid_for_once_and_what_it_reads_by_who_reads_the_pool(tiny_testbed):
    methods, seconds = diversity_methods.list_methods(tiny_testbed), tiny_testbed.seconds
    losses, selected = measure_losses(tiny_testbed.model, hold_out(tiny_testbed)), Selected([0, 1, 2], 0.1, 0.5, 3.0)
    adapted = Adapted([], train_s=100.0, read_s=1000.0)
    arms_s = seconds["embed"] + seconds["cluster"]
    expected = {
        "conditional_loss": seconds["loss"] + 1100,
        "loss_drop": seconds["loss"] + 1100,
        "quad_conditional_loss": arms_s + 100,
        "quad": arms_s + seconds["fit_joint"],
    }
    for name, shared_s in expected.items():
        found = diversity._measure_method(tiny_testbed, methods[name], selected, losses, adapted)
        assert found.time_s == pytest.approx(shared_s + 0.5 * seconds["score"] + 3.0), name


def test_claims_follow_from_losses_repeat_by_repeat():
    compared = compare_outcomes(
        {
            "random": Outcome([5.0, 5.2], [3.0, 3.0], 0.0, 0.0),
            "dsir": Outcome([4.7, 4.8], [3.1, 3.1], 0.0, 0.0),
            "full_influence": Outcome([4.0, 4.2], [3.2, 3.3], 1.0, 0.0),
            "quad": Outcome([4.1, 4.3], [3.1, 3.3], 0.1, 0.0),
            "quad_hidden_states": Outcome([4.0, 4.2], [3.1, 3.3], 0.1, 0.0),
        }
    )
    assert compared.gain_share == pytest.approx(0.9)
    claims = {claim.claim: claim for claim in compared.shows}
    assert claims["gain over random, as a share of full scoring's"].holds
    assert claims["reference loss, Quad less dsir"].measured == pytest.approx(-0.55)
    assert "reference loss, Quad less full influence" not in claims
    assert claims["other domains' bits per byte, Quad less full scoring"].measured == pytest.approx(-0.05)
    assert len(claims) == 4


def test_without_other_domains_no_claim_is_made_of_them():
    same = Outcome([4.0, 4.1], [None, None], 0.1, 0.0)
    random = Outcome([5.0, 5.3], [None, None], 0.0, 0.0)
    full = Outcome(same.reference_loss, same.other_domains_bpb, 1.0, 0.0)
    compared = compare_outcomes({"random": random, "quad": same, "full_influence": full})
    assert compared.quad_less_full_other_domains_bpb is None
    assert len(compared.shows) == 2


def test_a_source_that_a_repeat_lacks_counts_as_nothing_there(tiny_testbed):
    assert diversity._means([{"a": 0.5, "b": 0.5}, {"a": 1.0}]) == {"a": 0.75, "b": 0.25}
    shares = diversity._share_by_source(tiny_testbed, np.array([0, 1, 2]))
    n, source = tiny_testbed.n_tokens, tiny_testbed.texts.source
    expected = sum(n[row] for row in range(3) if source[row] == source[0]) / n[:3].sum()
    assert shares[source[0]] == pytest.approx(expected)
