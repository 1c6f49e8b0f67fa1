"""Held-out text is found wherever it stands: the share of word tuples, against brute force over all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.overlap import FEWEST_SHINGLES, OVERLAP_SHARE, find_overlap, index_shingles

WORDS = 4


def words(generator: np.random.Generator, n: int, vocabulary: int = 300) -> list[str]:
    return [f"w{number}" for number in generator.integers(0, vocabulary, n)]


def tuples(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + WORDS]) for i in range(max(len(text) - WORDS + 1, 1))}


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_share_is_that_of_the_shorter_ones_word_tuples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    held = [words(generator, int(generator.integers(1, 40))) for _ in range(6)]
    index = index_shingles([" ".join(text) for text in held], WORDS)
    for vocabulary in (3, 300):
        text = words(generator, 30, vocabulary)
        place, source = int(generator.integers(30)), held[int(generator.integers(6))]
        text[place:place] = source[: int(generator.integers(len(source) + 1))]
        own = tuples(text)
        most = len(own) if len(own) >= FEWEST_SHINGLES else 10**6
        shares = [len(own & tuples(one)) / min(len(tuples(one)), most) for one in held]
        found = find_overlap(index, " ".join(text), least=1e-9)
        if max(shares) == 0:
            assert found is None
        else:
            assert found is not None
            assert (found.document, found.share) == (int(np.argmax(shares)), pytest.approx(max(shares)))


def test_a_passage_hidden_in_a_text_a_hundred_times_as_long_is_found() -> None:
    generator = np.random.default_rng(0)
    held, around = words(generator, 40), words(generator, 4000)
    index = index_shingles([" ".join(held)], 8)
    found = find_overlap(index, " ".join([*around[:1700], *held, *around[1700:]]))
    assert found is not None
    assert found.share == 1


def test_an_exact_copy_is_found_in_other_letters_spaces_and_punctuation() -> None:
    index = index_shingles(["Nothing here.", "The quick, brown fox -- jumps over it!"], 8)
    for text, document in (("the QUICK brown\tfox jumps over it", 1), ("nothing HERE", 0)):
        assert find_overlap(index, text) == (document, 1.0)


def test_a_piece_cut_from_a_held_out_document_is_found_unless_it_is_a_phrase() -> None:
    held = words(np.random.default_rng(1), 400, 10**6)
    index = index_shingles([" ".join(held)], 5)
    assert find_overlap(index, " ".join(held[100 : 100 + FEWEST_SHINGLES + 4])) == (0, 1.0)
    assert find_overlap(index, " ".join(held[100 : 100 + FEWEST_SHINGLES + 3])) is None


def test_half_of_a_held_out_document_beside_as_much_other_text_is_no_overlap() -> None:
    generator = np.random.default_rng(2)
    held, other = words(generator, 100, 10**6), words(generator, 100, 10**6)
    index = index_shingles([" ".join(held)], 5)
    assert find_overlap(index, " ".join(held[:50] + other)) is None
    assert find_overlap(index, " ".join(held[: int(100 * OVERLAP_SHARE) + 5] + other)) is not None


def test_a_short_document_is_found_in_its_copies_only() -> None:
    index = index_shingles(["yes it is"], 8)
    assert find_overlap(index, "Yes, it is.") is not None
    assert find_overlap(index, "he said yes it is and so it was that day") is None


@pytest.mark.parametrize("text", ["", "some words of any text at all that is long"])
def test_nothing_overlaps_with_nothing(text: str) -> None:
    assert find_overlap(index_shingles([], 8), text) is None
