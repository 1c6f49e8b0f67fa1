"""Values of a configuration: what a range takes and refuses, and which names an editor is shown."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from quad_tasks.config.values import (
    BatchTokens,
    EmbedderName,
    LearningRate,
    Name,
    PolicyName,
    Positive,
    Share,
    Shares,
    SizeBytes,
)
from quad_tasks.plugins import plugin_names


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (Name, ["a", "lambada-2", "x" * 80], ["", "../up", ".hidden", "a/b", "x" * 81]),
        (Share, [0.0, 1.0], [-0.1, 1.1]),
        (Positive, [1], [0, -1]),
        (Shares, [(), (0.0, 0.1, 1.0)], [(0.1, 0.1), (0.1, 0.1000000001), (2.0,)]),
        (SizeBytes, [1], [0, "0GB", "plenty"]),
        (LearningRate, [1e-8, 1.0], [0.0, 1e-9, 1.1]),
        (BatchTokens, [1, "auto"], [0, "most"]),
        (EmbedderName, ["ngrams"], ["word2vec"]),
    ],
)
def test_values_outside_their_range_are_refused(kind: Any, taken: list[Any], refused: list[Any]):
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in taken] == taken
    for value in refused:
        with pytest.raises(ValidationError, match="validation error"):
            adapter.validate_python(value)


def test_an_editor_is_shown_the_names_of_extensions():
    assert TypeAdapter(EmbedderName).json_schema()["enum"] == list(plugin_names("embedders"))
    assert TypeAdapter(PolicyName).json_schema()["enum"] == list(plugin_names("policies"))
