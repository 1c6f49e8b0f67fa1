"""Selections against budgets, by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.in_memory_selection import Candidates, Mode, SelectionSettings, random_control, select


def candidates(
    influence: list[float], n_tokens: list[int], arm: list[int] | None = None, scored: list[bool] | None = None
) -> Candidates:
    n = len(influence)
    return Candidates(
        id=np.arange(n),
        arm=np.array(arm or [0] * n, dtype=np.int32),
        n_tokens=np.array(n_tokens, dtype=np.int64),
        influence=np.array(influence, dtype=np.float64),
        scored=np.array([True] * n if scored is None else scored, dtype=np.bool_),
    )


pools = st.lists(
    st.tuples(st.floats(-1, 1), st.integers(1, 40), st.integers(0, 3), st.booleans()), min_size=0, max_size=40
).map(lambda rows: candidates([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows]))


def test_documents_above_the_threshold_are_taken_best_first() -> None:
    pool = candidates([0.1, 0.4, -0.2, 0.3], [10, 10, 10, 10])
    assert select(pool, 100, SelectionSettings(0.1)).tolist() == [1, 3]


def test_what_does_not_fit_is_skipped_for_what_does() -> None:
    pool = candidates([4, 3, 2, 1], [6, 5, 3, 1])
    assert select(pool, 10, SelectionSettings(0)).tolist() == [0, 2, 3]


def test_ties_are_broken_by_id_whatever_the_order_of_rows() -> None:
    pool = candidates([1.0] * 4, [1] * 4)
    turned = Candidates(pool.id[::-1], pool.arm, pool.n_tokens, pool.influence, pool.scored)
    assert select(pool, 2, SelectionSettings(0)).tolist() == [0, 1]
    assert select(turned, 2, SelectionSettings(0)).tolist() == [3, 2]


def test_unscored_documents_are_not_taken_one_by_one() -> None:
    pool = candidates([0.5, 0.9], [1, 1], scored=[True, False])
    assert select(pool, 10, SelectionSettings(0, "instance")).tolist() == [0]


def test_predicted_mode_ranks_measured_and_predicted_together() -> None:
    pool = candidates([0.5, 0.9, 0.1], [1, 1, 1], scored=[True, False, True])
    assert select(pool, 10, SelectionSettings(0.2, "predicted")).tolist() == [1, 0]


def test_cluster_mode_takes_the_rest_of_accepted_arms_by_their_mean() -> None:
    pool = candidates(
        [0.3, np.nan, 0.1, np.nan, np.nan, np.nan],
        [1] * 6,
        arm=[0, 0, 1, 1, 2, 1],
        scored=[True, False, True] + [False] * 3,
    )
    taken = select(pool, 10, SelectionSettings(0.2, "cluster"), arm_mean_K=np.array([0.3, 0.4, 0.1]))
    assert taken.tolist() == [0, 3, 5, 1]


def test_an_arm_fills_no_more_than_its_share() -> None:
    pool = candidates([4, 3, 2, 1], [4, 4, 4, 4], arm=[0, 0, 0, 1])
    assert select(pool, 16, SelectionSettings(0, per_arm_share=0.5)).tolist() == [0, 1, 3]


def test_a_document_that_fills_the_budget_and_its_arms_share_to_the_last_token_is_taken() -> None:
    pool = candidates([4, 3, 2], [4, 4, 1], arm=[0, 1, 1])
    assert select(pool, 8, SelectionSettings(0, per_arm_share=0.5)).tolist() == [0, 1]


@pytest.mark.parametrize("per_arm_share", [None, 0.5])
def test_a_negative_budget_is_refused_and_none_selects_nothing(per_arm_share: float | None) -> None:
    settings = SelectionSettings(0, per_arm_share=per_arm_share)
    assert select(candidates([1.0], [1]), 0, settings).tolist() == []
    with pytest.raises(ValueError, match="budget_tokens: expected >= 0, got -1"):
        select(candidates([1.0], [1]), -1, settings)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'instance', 'cluster' or 'predicted', got 'best'"):
        SelectionSettings(0, mode="best")


def test_cluster_mode_without_arm_means_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the arms' means for mode 'cluster', got None"):
        select(candidates([1.0], [1]), 1, SelectionSettings(0, "cluster"))


def test_a_share_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"per_arm_share: expected a share in \(0, 1\], got 0"):
        SelectionSettings(0, per_arm_share=0)


@settings(max_examples=100, deadline=None)
@given(pools, st.integers(0, 300), st.floats(-1, 1), st.sampled_from(["instance", "predicted"]))
def test_the_budget_is_exact_and_no_document_is_taken_twice(
    pool: Candidates, budget: int, threshold: float, mode: Mode
) -> None:
    taken = select(pool, budget, SelectionSettings(threshold, mode))
    total = int(pool.n_tokens[taken].sum())
    eligible = pool.influence > threshold
    if mode == "instance":
        eligible &= pool.scored
    left = np.setdiff1d(np.flatnonzero(eligible), taken)
    assert total <= budget
    assert len(set(taken.tolist())) == len(taken)
    assert eligible[taken].all()
    assert (pool.n_tokens[left] > budget - total).all()


@settings(max_examples=100, deadline=None)
@given(pools, st.integers(0, 300), st.floats(0.05, 1))
def test_a_capped_selection_keeps_both_limits_and_leaves_nothing_that_fits(
    pool: Candidates, budget: int, share: float
) -> None:
    taken = select(pool, budget, SelectionSettings(-2, "predicted", share))
    used = np.bincount(pool.arm[taken], weights=pool.n_tokens[taken], minlength=4)
    left = np.setdiff1d(np.arange(len(pool.id)), taken)
    assert used.sum() <= budget
    assert (used <= int(share * budget)).all()
    fits = (pool.n_tokens[left] <= budget - used.sum()) & (
        pool.n_tokens[left] <= int(share * budget) - used[pool.arm[left]]
    )
    assert not fits.any()


def test_the_random_control_draws_each_document_equally_often() -> None:
    n_tokens_N = np.full(20, 5)
    generator = np.random.default_rng(0)
    taken = [random_control(n_tokens_N, 50, generator) for _ in range(2000)]
    frequency = np.bincount(np.concatenate(taken), minlength=20) / 2000
    assert all(len(rows) == 10 for rows in taken)
    assert frequency == pytest.approx(np.full(20, 0.5), abs=0.05)


def test_the_same_generator_replays_the_same_control() -> None:
    n_tokens_N = np.arange(1, 100)
    first, second = (random_control(n_tokens_N, 700, np.random.default_rng(3)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_a_general_share_fills_the_same_budget_from_the_rest() -> None:
    generator = np.random.default_rng(0)
    pool = candidates(list(generator.normal(size=400)), [1] * 400, arm=list(generator.integers(0, 4, 400)))
    taken = select(pool, 100, SelectionSettings(1.0, general_share=0.4), generator=generator)
    assert len(taken) == len(set(taken.tolist())) == 100
    assert (pool.influence[taken[:60]] > 1.0).all()
    assert (pool.influence[taken[60:]] > 1.0).sum() < 10


def test_the_general_part_takes_up_what_the_targeted_part_could_not_fill() -> None:
    pool = candidates([1.0, 0, 0, 0], [1] * 4)
    taken = select(pool, 4, SelectionSettings(0.5, general_share=0.1), generator=np.random.default_rng(0))
    assert sorted(taken.tolist()) == [0, 1, 2, 3]


def test_the_general_part_holds_arms_in_proportion_to_their_tokens() -> None:
    arm_N = np.repeat([0, 1, 2], [700, 200, 100])
    n_tokens_N = np.random.default_rng(0).integers(1, 10, 1000)
    pool = candidates([0.0] * 1000, n_tokens_N.tolist(), arm_N.tolist())
    taken = select(pool, 1000, SelectionSettings(1.0, general_share=1), generator=np.random.default_rng(1))
    share = np.bincount(arm_N[taken], weights=n_tokens_N[taken]) / 1000
    expected = np.bincount(arm_N, weights=n_tokens_N) / n_tokens_N.sum()
    assert share == pytest.approx(expected, abs=0.01)


def test_a_general_share_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"generator: expected one to draw a general share of 0.5, got None"):
        select(candidates([1.0], [1]), 1, SelectionSettings(0, general_share=0.5))


@pytest.mark.parametrize(("setting", "message"), [("general_share", r"in \[0, 1\], got -0.5"), ("redundancy", ">= 0")])
def test_a_setting_out_of_its_range_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: expected .*{message}"):
        SelectionSettings(0, **{setting: -0.5})


def test_a_redundancy_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="read_embeddings: expected a reader for a redundancy of 1, got None"):
        select(candidates([1.0], [1]), 1, SelectionSettings(0, redundancy=1))


def test_a_redundancy_prefers_the_unlike_and_looks_at_a_few_budgets_alone() -> None:
    pool = candidates([1.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], [1] * 8)
    vectors_ND = np.repeat(np.eye(2, dtype=np.float32)[[0, 0, 1, 0]], [1, 1, 1, 5], axis=0)
    read: list[int] = []

    def read_embeddings(ids: np.ndarray) -> np.ndarray:
        read.extend(ids.tolist())
        return vectors_ND[ids]

    taken = select(pool, 2, SelectionSettings(0, redundancy=4.0), read_embeddings=read_embeddings)
    assert taken.tolist() == [0, 2]
    assert read == [0, 1, 2, 3, 4, 5, 6]  # three budgets of two tokens, and one document


def test_an_unscored_document_of_an_accepted_arm_counts_as_its_arms_mean() -> None:
    pool = candidates([0.9, np.nan, 0.8], [1, 1, 1], arm=[0, 1, 0], scored=[True, False, True])
    vectors_ND = np.eye(3, dtype=np.float32)
    settings = SelectionSettings(0.2, "cluster", redundancy=0.5)
    means = np.array([0.85, 0.87])
    taken = select(pool, 3, settings, arm_mean_K=means, read_embeddings=lambda ids: vectors_ND[: len(ids)])
    assert taken.tolist() == [0, 1, 2]
