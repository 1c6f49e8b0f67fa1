"""Keywords of groups, by hand and by what they must not depend on."""

import numpy as np
import pytest

from quad_tasks.core.clustering.keywords import keywords

GROUPS = [
    ["the cat sat on the mat", "a cat and another cat"],
    ["the stock market fell", "the market rose and the market fell"],
    ["the cell divides", "every cell of the cell wall"],
]


def test_a_groups_own_frequent_word_comes_first_and_a_common_one_does_not() -> None:
    found = keywords(GROUPS, 3)
    assert [words[0] for words in found] == ["cat", "market", "cell"]
    assert all("the" not in words[:2] for words in found)


def test_weights_are_the_formulas_by_hand() -> None:
    """Two groups: tf weight 1 + ln count, idf ln(3 / (1 + groups with the word)) + 1, highest product first."""
    found = keywords([["bbb bbb bbb aaa ccc"], ["aaa aaa"]], 3)
    weight = {"bbb": (1 + np.log(3)) * (np.log(3 / 2) + 1), "ccc": np.log(3 / 2) + 1, "aaa": 1.0}
    assert found == [sorted(weight, key=lambda word: -weight[word]), ["aaa"]]


def test_how_a_group_is_cut_into_texts_cannot_be_seen() -> None:
    joined = [[" ".join(texts)] for texts in GROUPS]
    assert keywords(joined, 4) == keywords(GROUPS, 4)


def test_case_digits_and_short_words_are_ignored_and_other_scripts_are_not() -> None:
    assert keywords([["Kosmos KOSMOS ab 1234 x1y"], ["Мир мир"]], 5) == [["kosmos"], ["мир"]]


@pytest.mark.parametrize("empty", [[""], ["12 a b"], []])
def test_a_group_without_words_has_none(empty: list[str]) -> None:
    assert keywords([["planet"], empty], 3) == [["planet"], []]
    assert keywords([empty, empty], 3) == [[], []]
