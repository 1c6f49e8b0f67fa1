"""A budget filled in runs is the budget filled one document after another."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.fill_budget import fill_budget


def fill_one_by_one(order: np.ndarray, n_tokens_N: np.ndarray, budget: int) -> list[int]:
    taken = []
    for row in order:
        if n_tokens_N[row] <= budget:
            taken.append(int(row))
            budget -= n_tokens_N[row]
    return taken


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_filling_in_runs_equals_filling_one_by_one(n_tokens: list[int], budget: int, seed: int) -> None:
    n_tokens_N = np.array(n_tokens, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(n_tokens))
    assert fill_budget(order, n_tokens_N, budget).tolist() == fill_one_by_one(order, n_tokens_N, budget)
