"""Near-duplicates against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import unit_vectors

from quad_tasks.core.selection import near_duplicates
from quad_tasks.core.selection.minhash import shingles, signature, similarity
from quad_tasks.core.selection.near_duplicates import near_duplicates_by_embedding, near_duplicates_by_text


def drop_one_by_one(x_ND: np.ndarray, arm_N: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    kept: list[int] = []
    dropped = np.zeros(len(arm_N), dtype=bool)
    for row in order.tolist():
        if any(arm_N[k] == arm_N[row] and x_ND[k] @ x_ND[row] > threshold for k in kept):
            dropped[row] = True
        else:
            kept.append(row)
    return dropped


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.95))
def test_near_duplicates_equal_dropping_one_by_one(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    x_ND, arm_N, order = (
        unit_vectors(60, 3, seed),
        generator.integers(0, 3, 60).astype(np.int32),
        generator.permutation(60),
    )
    expected = drop_one_by_one(x_ND, arm_N, order, threshold)
    assert near_duplicates_by_embedding(x_ND, arm_N, order, threshold).tolist() == expected.tolist()


def test_of_copies_the_highest_ranked_is_kept_across_search_blocks() -> None:
    x_ND = np.tile(unit_vectors(2, 8, 0), (400, 1))
    order = np.arange(800)[::-1]
    dropped = near_duplicates_by_embedding(x_ND, np.zeros(800, dtype=np.int32), order, 0.99)
    assert np.flatnonzero(~dropped).tolist() == [798, 799]


def test_copies_in_different_arms_are_both_kept() -> None:
    x_ND = np.tile(unit_vectors(1, 4, 0), (2, 1))
    assert not near_duplicates_by_embedding(x_ND, np.array([0, 1], dtype=np.int32), np.arange(2), 0.5).any()


def test_rows_outside_the_order_are_neither_marked_nor_compared_with() -> None:
    x_ND = np.tile(unit_vectors(1, 4, 0), (3, 1))
    dropped = near_duplicates_by_embedding(x_ND, np.zeros(3, dtype=np.int32), np.array([2, 1]), 0.5)
    assert dropped.tolist() == [False, True, False]


def test_of_texts_that_share_their_words_the_best_is_kept_whatever_lies_between() -> None:
    words = [f"w{i}" for i in range(100)]
    copy = " ".join([*words[:50], "changed", *words[51:]])
    texts = ["short", " ".join(words), "something else of five words", copy, " ".join(words[::-1]), "Short!"]
    cut = [shingles(text) for text in texts]
    asked: list[int] = []

    def read(rows: np.ndarray) -> list[np.ndarray]:
        asked.extend(rows.tolist())
        return [cut[row] for row in rows.tolist()]

    dropped = near_duplicates_by_text(np.stack([signature(each) for each in cut]), read, 0.8)
    assert dropped.tolist() == [False, False, False, True, False, True]
    assert asked == [0, 1, 3, 5]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.8, 0.9]), st.sampled_from([1, 7, 256]), st.sampled_from([0, 4096]))
def test_near_duplicates_by_text_equal_dropping_one_by_one(seed: int, threshold: float, block: int, kept: int) -> None:
    """At these thresholds a pair shares no band once in 20 million; at 0.6, once in 85."""
    generator = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for _ in range(40):  # a new text, or an earlier one with some words changed
        words = [f"w{x}" for x in generator.integers(0, 400, 80)]
        if texts and generator.random() < 0.7:
            words = list(texts[generator.integers(len(texts))])
            for place in generator.integers(0, len(words), int(generator.integers(0, 8))):
                words[place] = f"c{generator.integers(1000)}"
        texts.append(words)
    cut = [shingles(" ".join(words)) for words in texts]
    left: list[int] = []
    for row in range(40):
        if all(similarity(cut[other], cut[row]) < threshold for other in left):
            left.append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "TEXT_BLOCK", block)
        patch.setattr(near_duplicates, "KEPT_SHINGLES", kept)
        signatures = np.stack([signature(each) for each in cut])
        dropped = near_duplicates_by_text(signatures, lambda rows: [cut[r] for r in rows], threshold)
    assert np.flatnonzero(~dropped).tolist() == left


@pytest.mark.parametrize("pages", [200, 2000])
def test_pages_of_one_template_cost_a_comparison_each(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of 10,000 pages would number 50 million, and take 75 GB."""
    template = [f"w{i}" for i in range(60)]
    compared, most_held = 0, 0

    def counted(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return similarity(a, b)

    def read(rows: np.ndarray) -> list[np.ndarray]:
        nonlocal most_held
        most_held = max(most_held, len(rows))
        return [shingles(" ".join([*template, f"page{row % 97}"])) for row in rows.tolist()]

    few = np.stack([signature(read(np.array([row]))[0]) for row in range(97)])
    monkeypatch.setattr(near_duplicates, "similarity", counted)
    dropped = near_duplicates_by_text(few[np.arange(pages) % 97], read, 0.8)
    assert np.flatnonzero(~dropped).tolist() == [0]
    assert compared == pages - 1
    assert most_held <= near_duplicates.TEXT_BLOCK


def test_pages_of_one_template_that_are_no_near_duplicates_cost_a_bounded_number(monkeypatch) -> None:
    template, compared = [f"w{i}" for i in range(50)], 0

    def counted(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return similarity(a, b)

    monkeypatch.setattr(near_duplicates, "similarity", counted)
    monkeypatch.setattr(near_duplicates, "COMPARED_KEPT", 5)
    cut = [shingles(" ".join([*template, *(f"p{page}x{i}" for i in range(6))])) for page in range(200)]
    cut.append(cut[199])
    signatures = np.stack([signature(each) for each in cut])
    dropped = near_duplicates_by_text(signatures, lambda rows: [cut[r] for r in rows.tolist()], 0.8)
    assert np.flatnonzero(dropped).tolist() == [200]
    assert compared < 200 * (5 + near_duplicates.TEXT_BLOCK)


def test_a_text_like_a_dropped_one_alone_is_kept() -> None:
    words = [f"w{i}" for i in range(100)]
    chain = [[*(["x"] * k), *words[k:]] for k in (0, 12, 24)]  # each shares 0.8 with the next, 0.6 with the one after
    cut = [shingles(" ".join(f"{w}{i if w == 'x' else ''}" for i, w in enumerate(text))) for text in chain]
    threshold = min(similarity(cut[0], cut[1]), similarity(cut[1], cut[2])) - 0.01
    assert similarity(cut[0], cut[2]) < threshold
    dropped = near_duplicates_by_text(
        np.stack([signature(each) for each in cut]), lambda rows: [cut[r] for r in rows], threshold
    )
    assert dropped.tolist() == [False, True, False]
