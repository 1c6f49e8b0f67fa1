"""The diverse choice against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import unit_vectors

from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.core.selection.redundancy import select_diverse


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


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget_tokens: expected >= 0, got -1"):
        select_diverse(np.arange(1), np.ones(1), np.ones(1), unit_vectors(1, 2, 0), np.zeros(1, np.int32), -1, 0.5)
