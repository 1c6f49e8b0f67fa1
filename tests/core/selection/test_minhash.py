"""Alike texts against brute force over all pairs, and what a shingle leaves out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.minhash import (
    ESTIMATE_MARGIN,
    band_codes,
    estimate_similarity,
    shingles,
    signature,
    similarity,
)


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
def test_every_pair_at_least_that_similar_shares_a_band_and_is_estimated_so(seed: int, threshold: float) -> None:
    texts = edited_texts(seed)
    sets = [tuples(text) for text in texts]
    signatures = np.stack([signature(shingles(text)) for text in texts])
    codes = band_codes(signatures)
    pairs = [(i, j) for j in range(len(texts)) for i in range(j)]
    alike = [(i, j) for i, j in pairs if jaccard(sets[i], sets[j]) >= threshold]
    assert alike
    for i, j in alike:
        assert (codes[i] == codes[j])[codes[i] >= 0].any()
        assert estimate_similarity(signatures[i], signatures[[j]])[0] >= threshold - ESTIMATE_MARGIN


def test_codes_are_equal_where_all_hashes_of_a_band_are_and_nowhere_else() -> None:
    generator = np.random.default_rng(0)
    signatures = generator.integers(0, 2, (20, 128), dtype=np.uint32)
    codes = band_codes(signatures)
    bands = signatures.reshape(20, 32, 4)
    for i in range(20):
        for j in range(20):
            if i != j:
                same = (bands[i] == bands[j]).all(axis=1)
                np.testing.assert_array_equal((codes[i] == codes[j]) & (codes[i] >= 0), same)
    assert all(len(set(codes[:, b]) & set(codes[:, b + 1]) - {-1}) == 0 for b in range(31))


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_texts_share_no_band(n: int) -> None:
    assert (band_codes(np.zeros((n, 128), dtype=np.uint32)) == -1).all()


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
