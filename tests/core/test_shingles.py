"""Alike texts against brute force over all pairs, and what a shingle leaves out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.shingles import candidate_pairs, shingles, signature, similarity


def tuples(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def edited_texts(seed: int, n: int = 60) -> list[str]:
    """Texts of which every third begins anew and the others are its copies with a few words changed."""
    generator = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for i in range(n):
        if i % 3 == 0:
            words = [f"w{x}" for x in generator.integers(0, 500, int(generator.integers(3, 200)))]
        else:
            words = list(texts[i - i % 3])
            for place in generator.integers(0, len(words), int(generator.integers(0, 6))):
                words[place] = "changed"
        texts.append(words)
    return [" ".join(words) for words in texts]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_similarity_equals_jaccard_of_the_word_tuples(seed: int) -> None:
    texts = edited_texts(seed, 12)
    for a in texts:
        for b in texts:
            assert similarity(shingles(a), shingles(b)) == pytest.approx(jaccard(tuples(a), tuples(b)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.95])
def test_every_pair_at_least_that_similar_is_a_candidate(seed: int, threshold: float) -> None:
    texts = edited_texts(seed)
    sets = [tuples(text) for text in texts]
    found = {tuple(pair) for pair in candidate_pairs(np.stack([signature(shingles(t)) for t in texts]), threshold)}
    alike = {(i, j) for j in range(len(texts)) for i in range(j) if jaccard(sets[i], sets[j]) >= threshold}
    assert alike
    assert alike <= found
    assert all(jaccard(sets[i], sets[j]) > threshold - 0.4 for i, j in found)


def test_candidates_are_distinct_pairs_in_order() -> None:
    copies = np.tile(signature(shingles("one two three four five six")), (50, 1))
    assert candidate_pairs(copies, 0.8).tolist() == [[i, j] for i in range(50) for j in range(i + 1, 50)]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_texts_make_no_pair(n: int) -> None:
    assert candidate_pairs(np.zeros((n, 128), dtype=np.uint32), 0.8).shape == (0, 2)


@pytest.mark.parametrize(
    ("a", "b"),
    [("The quick, brown fox -- jumps!", "the QUICK brown\tfox jumps"), ("short one", "Short one."), ("--", " -- ")],
)
def test_case_punctuation_and_white_space_say_nothing(a: str, b: str) -> None:
    assert shingles(a).tolist() == shingles(b).tolist()


def test_texts_without_spaces_are_shingled_by_character() -> None:
    text = "人類社会のすべての構成員の固有の尊厳と平等"
    assert len(shingles(text)) == len(text) - 4
    assert similarity(shingles(text), shingles(text[1:])) > 0.9


def test_a_signature_is_the_same_in_every_process() -> None:
    assert signature(shingles("one two three four five six"))[:2].tolist() == [2248198670, 830408002]
