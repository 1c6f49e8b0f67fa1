"""What a plan expects choosing to take, by hand: documents of mean length, and the caps that apply."""

import pytest
from small_pool import small_config

from quad_tasks.commands.estimates.scoring_cost import plan_choosing
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.lm.flops import ModelSize

SIZE = ModelSize(maps=1000, reached=800, tracked=1000, head=200, attention=0, attention_reached=0)
"""Exact: 2 · 1000 + 2 · 800 + 2 · 1000 a token and 4 · 200 a target; training: 6000 and 1200."""


def planned(**changes):
    body = small_config("/corpus", "/workspace", **changes)
    body["bandit"].pop("max_scored_share")
    return plan_choosing(parse_config(body, "small"), 1000, 50_000, SIZE)


def test_scoring_and_training_are_counted_in_model_flops():
    found = planned(bandit__max_cost_share=0.2, bandit__oversample=100.0)
    document = 5600 * 50 + 800 * 49
    assert found.pool == 1000 * document
    assert found.most_share == pytest.approx(0.2)
    assert (found.tokens, found.tokens_at_most) == (10_000, 10_000)
    assert found.scoring == pytest.approx(0.2 * found.pool)
    assert found.training == pytest.approx(1500 * (6000 * 50 + 1200 * 49) / 50)


def test_hidden_states_take_their_part_of_the_cap():
    body = {"bandit__features": "hidden_states", "bandit__oversample": 100.0}
    read = (2000 * 50 + 400 * 49) / (5600 * 50 + 800 * 49)
    found = planned(bandit__max_cost_share=0.5, **body)
    assert found.share == pytest.approx(0.5, abs=0.001)
    assert found.tokens == pytest.approx((0.5 - read) * 50_000, abs=1)
    assert planned(**body).share == pytest.approx(0.1 + read, abs=0.001)  # by default beside them
    with pytest.raises(ConfigError, match=r"max_cost_share: expected more than 0\.37\d, .* found 0\.2"):
        planned(bandit__max_cost_share=0.2, **body)


def test_the_conditional_loss_reads_with_two_models_and_scores_more_documents_for_it():
    price = 2 * (2000 * 50 + 400 * 49) / (5600 * 50 + 800 * 49)
    found = planned(bandit__scorer="conditional_loss", bandit__max_cost_share=0.2, bandit__oversample=100.0)
    assert found.tokens == pytest.approx(0.2 / price * 50_000, abs=1)
    assert found.scoring == pytest.approx(0.2 * found.pool, rel=1e-3)


def test_both_caps_hold_whichever_is_the_lower():
    both = {"bandit__max_cost_share": 0.2, "bandit__oversample": 100.0}
    body = small_config("/corpus", "/workspace", bandit__max_scored_share=0.1, **both)
    assert plan_choosing(parse_config(body, "small"), 1000, 50_000, SIZE).tokens == 5000
