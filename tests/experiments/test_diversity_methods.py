"""Every method keeps to the budget and repeats itself; its cost is worked by hand."""

import numpy as np
import pytest

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm import flops
from quad_tasks.experiments.diversity_methods import (
    COST_SHARE,
    cost_share,
    embedding_order,
    estimate_flops,
    list_methods,
    released_rules,
)
from quad_tasks.experiments.lab.scorer_cost import ScorerCost

SCORER = ScorerCost("forward_only", 0.9995, 0.5, 0.01)


def test_every_method_keeps_to_its_budgets_and_repeats_itself(tiny_testbed):
    for name, method in list_methods(tiny_testbed, SCORER).items():
        chosen = method.select(0)
        assert len(set(chosen.rows.tolist())) == len(chosen.rows) > 0, name
        assert tiny_testbed.n_tokens[chosen.rows].sum() <= tiny_testbed.size.budget_tokens, name
        assert chosen.scoring in (0, 1) or chosen.scoring <= {
            "quad_at_15_percent": 0.15,
            "quad_at_5_percent": 0.05,
        }.get(name, COST_SHARE), name
        np.testing.assert_array_equal(method.select(0).rows, chosen.rows)


def test_a_cheaper_scorer_scores_more_documents_at_no_more_cost(tiny_testbed):
    methods = list_methods(tiny_testbed, SCORER)
    run, exact = (methods[name].select(0) for name in ("quad", "quad_scored_exactly"))
    assert run.scored_share > exact.scored_share
    assert methods["full_influence"].select(0).scored_share == methods["full_influence"].select(0).scoring == 1


def test_a_method_pays_for_what_it_uses(tiny_testbed):
    methods, seconds = list_methods(tiny_testbed), tiny_testbed.seconds
    assert methods["quad"].shared_s == pytest.approx(seconds["embed"] + seconds["cluster"] + seconds["fit_joint"])
    assert methods["quad_states"].shared_s == pytest.approx(methods["quad"].shared_s + seconds["loss"])
    assert methods["full_influence"].shared_s == seconds["fit_joint"]
    assert methods["random"].shared_s == methods["dsir"].shared_s == methods["bm25"].shared_s == 0
    assert methods["embedding_similarity"].shared_s == seconds["embed"]


def test_embeddings_like_the_references_come_first(tiny_testbed):
    sea = np.array(["captain" in tiny_testbed.texts.pool[row] for row in embedding_order(tiny_testbed)])
    assert sea[: sea.sum()].all()


def test_costs_are_shares_of_scoring_the_whole_pool(tiny_testbed):
    methods, model = list_methods(tiny_testbed), tiny_testbed.model
    size = flops.model_size(model, find_blocks(model))
    ways = (flops.forward_flops(size), flops.exact_flops(size))
    forward, exact = (flops.document_flops(way, tiny_testbed.n_tokens, 10_000).sum() for way in ways)
    assert cost_share(tiny_testbed, methods["full_influence"], 1.0) == 1
    assert cost_share(tiny_testbed, methods["dsir"], 0.0) == 0
    assert cost_share(tiny_testbed, methods["conditional_loss"], 0.0) == pytest.approx(2 * forward / exact)
    assert cost_share(tiny_testbed, methods["quad_states"], 0.1) == pytest.approx(0.1 + forward / exact)
    assert estimate_flops(tiny_testbed, methods["perplexity_lowest"], 0.0) == pytest.approx(forward)


def test_flops_count_what_is_read_of_the_reference_adapting_a_copy_included(tiny_testbed):
    methods, model, counted = list_methods(tiny_testbed), tiny_testbed.model, tiny_testbed.size
    size = flops.model_size(model, find_blocks(model))
    ways = (flops.forward_flops(size), flops.exact_flops(size))
    forward, exact = (flops.document_flops(way, tiny_testbed.n_tokens, 10_000).mean() for way in ways)  # of a document
    n, reference = len(tiny_testbed.documents), len(tiny_testbed.texts.reference)
    expected = {
        ("full_influence", 1.0): exact * (n + reference + 2 * counted.factor_documents),
        ("gradient_similarity", 1.0): exact * (n + reference),
        ("representation_similarity", 0.0): forward * (n + reference),
        ("conditional_loss", 0.0): 2 * forward * n + 4 * exact * reference,
        ("loss_drop", 0.0): 2 * forward * n + 4 * exact * reference,
        ("quad_conditional_loss", 0.1): exact * (0.1 * n + 4 * reference),
        ("quad", 0.1): exact * (0.1 * n + reference + 2 * counted.factor_documents),
    }
    for (name, scoring), wanted in expected.items():
        assert estimate_flops(tiny_testbed, methods[name], scoring) == pytest.approx(wanted), name


def test_the_published_rules_accept_whole_arms_and_drop_no_near_duplicates(tiny_testbed):
    rules = released_rules(tiny_testbed)
    assert (rules.mode, rules.active_documents, rules.near_duplicate_cosine) == ("cluster", 0, None)
    assert len(rules.neighbours.indptr) == tiny_testbed.arm.max() + 2
