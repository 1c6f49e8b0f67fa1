"""The section `model`: a fresh model's numbers fit one another, and batches have a number or are to be measured."""

import pytest
from pydantic import ValidationError
from small_pool import small_config

from quad_tasks.config.load import parse_config
from quad_tasks.config.model import FreshModelConfig


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"width": 100, "heads": 3}, "width an even multiple of heads"),
        ({"heads": 4, "key_value_heads": 3}, "key_value_heads that divide heads"),
    ],
)
def test_a_fresh_models_numbers_fit_one_another(numbers, message):
    with pytest.raises(ValidationError, match=message):
        FreshModelConfig(**numbers)


@pytest.mark.parametrize(("tokens", "used"), [(300, 300), ("auto", 2048)])
def test_a_batch_that_nobody_has_measured_is_a_cpus(tmp_path, tokens, used):
    config = parse_config(small_config(tmp_path, str(tmp_path), model__batch_tokens=tokens), "small")
    assert config.model_use().batch_tokens == used
    assert config.with_batch_tokens(77).model_use().batch_tokens == 77
    assert config.identity()["model"]["batch_tokens"] == tokens
