"""Every method keeps to the budget; what is claimed of them follows from the losses."""

import numpy as np
import pytest
from experiments.conftest import TINY

from quad_tasks.experiments.diversity import compare_methods, compare_outcomes, list_methods
from quad_tasks.experiments.laboratory import find_laboratories


def test_every_method_keeps_to_the_budget_and_repeats_itself(tiny_laboratory):
    for name, method in list_methods(tiny_laboratory).items():
        rows = method.choose(0)
        assert len(set(rows.tolist())) == len(rows) > 0, name
        assert tiny_laboratory.n_tokens[rows].sum() <= tiny_laboratory.size.budget_tokens, name
        np.testing.assert_array_equal(method.choose(0), rows)


def test_methods_are_trained_and_measured_alike_in_every_laboratory(tiny_laboratory, tiny_config):
    laboratories = find_laboratories(tiny_laboratory.workspace, tiny_config, TINY, 2)
    assert laboratories[0].key == tiny_laboratory.key != laboratories[1].key
    body = compare_methods(laboratories)
    found = body["methods"]
    assert found["full_influence"]["influence_share"][0] == pytest.approx(1.0, abs=0.05)
    assert found["random"]["flops"] == 0 < found["quad"]["flops"] < found["full_influence"]["flops"]
    for method in found.values():
        assert len(method["reference_loss"]) == len(method["other_domains_bpb"]) == 2
        assert sum(method["by_source"].values()) == pytest.approx(1.0)
        assert method["worst_domain_bpb"][0] >= method["other_domains_bpb"][0]


def test_claims_follow_from_losses_repeat_by_repeat():
    def method(loss, others, scored_share):
        return {"reference_loss": loss, "other_domains_bpb": others, "scored_share": scored_share}

    body = compare_outcomes(
        {
            "random": method([5.0, 5.2], [3.0, 3.0], 0.0),
            "dsir": method([4.7, 4.8], [3.1, 3.1], 0.0),
            "full_influence": method([4.0, 4.2], [3.2, 3.3], 1.0),
            "quad": method([4.1, 4.3], [3.1, 3.3], 0.1),
            "quad_hidden_states": method([4.0, 4.2], [3.1, 3.3], 0.1),
        }
    )
    assert body["gain_share"] == pytest.approx(0.9)
    claims = {show["claim"]: show for show in body["shows"]}
    assert claims["gain over random, as a share of full scoring's"]["holds"]
    assert claims["reference loss, Quad less dsir"]["measured"] == pytest.approx(-0.55)
    assert "reference loss, Quad less full influence" not in claims
    assert claims["other domains' bits per byte, Quad less full scoring"]["measured"] == pytest.approx(-0.05)
    assert len(claims) == 4
