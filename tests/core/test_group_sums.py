"""Grouped sums against exact sums in rational numbers, and totals that do not depend on how rows are cut."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.group_sums import add_group_sums, group_means, group_sums

rows = st.lists(st.tuples(st.integers(0, 4), st.floats(-1e6, 1e6)), max_size=60)


def exact_sums(pairs: list[tuple[int, float]]) -> list[Fraction]:
    return [sum((Fraction(value) for group, value in pairs if group == g), Fraction(0)) for g in range(6)]


def columns(pairs: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value for _, value in pairs], np.float64), np.array([group for group, _ in pairs], np.int64)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_sums_equal_exact_ones_and_a_group_without_rows_has_zero(pairs: list[tuple[int, float]]) -> None:
    value_N, group_N = columns(pairs)
    exact_G = [float(total) for total in exact_sums(pairs)]
    assert group_sums(value_N, group_N, 6) == pytest.approx(exact_G, rel=1e-12, abs=1e-7)
    assert group_sums(value_N, group_N, 6)[5] == 0


@settings(max_examples=50, deadline=None)
@given(rows)
def test_every_column_of_a_matrix_is_summed_as_alone(pairs: list[tuple[int, float]]) -> None:
    value_N, group_N = columns(pairs)
    both_G2 = group_sums(np.stack([value_N, -3 * value_N], axis=1), group_N, 6)
    assert both_G2.shape == (6, 2)
    assert both_G2[:, 0].tolist() == group_sums(value_N, group_N, 6).tolist()
    assert both_G2[:, 1].tolist() == group_sums(-3 * value_N, group_N, 6).tolist()


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 60))
def test_totals_added_in_parts_equal_one_pass_bit_for_bit(pairs: list[tuple[int, float]], cut: int) -> None:
    value_N, group_N = columns(pairs)
    start_G = np.zeros(6)
    part_G = add_group_sums(start_G, value_N[:cut], group_N[:cut])
    whole_G = add_group_sums(start_G, value_N, group_N)
    assert add_group_sums(part_G, value_N[cut:], group_N[cut:]).tolist() == whole_G.tolist()
    assert whole_G.tolist() == group_sums(value_N, group_N, 6).tolist()
    assert not start_G.any()


def test_means_by_hand_and_none_for_an_empty_group() -> None:
    means = group_means(np.array([1.0, 2.0, 6.0], np.float32), np.array([2, 0, 2]), 3)
    assert means.dtype == np.float64
    np.testing.assert_array_equal(means, [2.0, np.nan, 3.5])


def test_counts_of_integers_sum_exactly() -> None:
    assert group_sums(np.array([2**40, 1, 3]), np.array([0, 0, 1]), 2).tolist() == [2**40 + 1, 3]
