"""Near-duplicates and the diverse choice against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.redundancy import near_duplicates, select_diverse, shared_texts
from quad_tasks.core.selection import fill_budget
from quad_tasks.core.shingles import shingles, signature, similarity


def unit_vectors(n: int, dimension: int, seed: int) -> np.ndarray:
    x_ND = np.random.default_rng(seed).normal(size=(n, dimension))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


def drop_one_by_one(x_ND: np.ndarray, arm_N: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    kept: list[int] = []
    dropped = np.zeros(len(arm_N), dtype=bool)
    for row in order.tolist():
        if any(arm_N[k] == arm_N[row] and x_ND[k] @ x_ND[row] > threshold for k in kept):
            dropped[row] = True
        else:
            kept.append(row)
    return dropped


def choose_one_by_one(
    order: np.ndarray,
    influence: np.ndarray,
    n_tokens: np.ndarray,
    x_ND: np.ndarray,
    arm: np.ndarray,
    budget: int,
    r: float,
    share: float = 1.0,
) -> list[int]:
    scale, taken, rest = r * influence[order].std(), [], order.tolist()
    left = dict.fromkeys(arm.tolist(), int(share * budget))
    while rest := [row for row in rest if n_tokens[row] <= min(budget, left[arm[row]])]:
        worth = [
            influence[row] - scale * max([0.0] + [float(x_ND[t] @ x_ND[row]) for t in taken if arm[t] == arm[row]])
            for row in rest
        ]
        row = rest.pop(int(np.argmax(worth)))
        taken.append(row)
        budget -= n_tokens[row]
        left[arm[row]] -= n_tokens[row]
    return taken


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
    assert near_duplicates(x_ND, arm_N, order, threshold).tolist() == expected.tolist()


def test_of_copies_the_highest_ranked_is_kept_across_search_blocks() -> None:
    x_ND = np.tile(unit_vectors(2, 8, 0), (400, 1))
    order = np.arange(800)[::-1]
    dropped = near_duplicates(x_ND, np.zeros(800, dtype=np.int32), order, 0.99)
    assert np.flatnonzero(~dropped).tolist() == [798, 799]


def test_copies_in_different_arms_are_both_kept() -> None:
    x_ND = np.tile(unit_vectors(1, 4, 0), (2, 1))
    assert not near_duplicates(x_ND, np.array([0, 1], dtype=np.int32), np.arange(2), 0.5).any()


def test_rows_outside_the_order_are_neither_marked_nor_compared_with() -> None:
    x_ND = np.tile(unit_vectors(1, 4, 0), (3, 1))
    assert near_duplicates(x_ND, np.zeros(3, dtype=np.int32), np.array([2, 1]), 0.5).tolist() == [False, True, False]


def test_of_texts_that_share_their_words_the_best_is_kept_whatever_lies_between() -> None:
    words = [f"w{i}" for i in range(100)]
    copy = " ".join([*words[:50], "changed", *words[51:]])
    texts = ["short", " ".join(words), "something else of five words", copy, " ".join(words[::-1]), "Short!"]
    cut = [shingles(text) for text in texts]
    asked: list[int] = []

    def read(rows: np.ndarray) -> list[np.ndarray]:
        asked.extend(rows.tolist())
        return [cut[row] for row in rows.tolist()]

    dropped = shared_texts(np.stack([signature(each) for each in cut]), read, 0.8)
    assert dropped.tolist() == [False, False, False, True, False, True]
    assert asked == [0, 1, 3, 5]


def test_a_text_like_a_dropped_one_alone_is_kept() -> None:
    words = [f"w{i}" for i in range(100)]
    chain = [[*(["x"] * k), *words[k:]] for k in (0, 12, 24)]  # each shares 0.8 with the next, 0.6 with the one after
    cut = [shingles(" ".join(f"{w}{i if w == 'x' else ''}" for i, w in enumerate(text))) for text in chain]
    threshold = min(similarity(cut[0], cut[1]), similarity(cut[1], cut[2])) - 0.01
    assert similarity(cut[0], cut[2]) < threshold
    dropped = shared_texts(np.stack([signature(each) for each in cut]), lambda rows: [cut[r] for r in rows], threshold)
    assert dropped.tolist() == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.integers(0, 300), st.floats(0.1, 1))
def test_the_lazy_choice_equals_the_greedy_one(seed: int, redundancy: float, budget: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    influence, n_tokens = generator.normal(size=50), generator.integers(1, 20, 50)
    x_ND, arm = unit_vectors(50, 4, seed), generator.integers(0, 3, 50).astype(np.int32)
    order = np.argsort(-influence)[:40]
    expected = choose_one_by_one(order, influence, n_tokens, x_ND, arm, budget, redundancy, share)
    assert select_diverse(order, influence, n_tokens, x_ND, arm, budget, redundancy, share).tolist() == expected


def test_without_a_penalty_the_choice_is_by_influence_alone() -> None:
    generator = np.random.default_rng(0)
    influence, n_tokens = generator.normal(size=50), generator.integers(1, 20, 50)
    order = np.argsort(-influence)
    taken = select_diverse(order, influence, n_tokens, unit_vectors(50, 4, 0), np.zeros(50, dtype=np.int32), 200, 0.0)
    assert taken.tolist() == fill_budget(order, n_tokens, 200).tolist()


def test_a_penalty_prefers_the_unlike_to_a_copy() -> None:
    x_ND = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    influence = np.array([1.0, 0.9, 0.5])
    taken = select_diverse(
        np.arange(3), influence, np.ones(3, dtype=np.int64), x_ND, np.zeros(3, dtype=np.int32), 2, 4.0
    )
    assert taken.tolist() == [0, 2]


def test_a_negative_redundancy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"redundancy: expected >= 0, got -0.5"):
        select_diverse(
            np.arange(1), np.ones(1), np.ones(1), unit_vectors(1, 2, 0), np.zeros(1, dtype=np.int32), 1, -0.5
        )
