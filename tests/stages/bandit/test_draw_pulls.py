"""What a pull covers, passes over and has still to score, by hand and by simulation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.stages.bandit.cost import Room
from quad_tasks.stages.bandit.draw_pulls import (
    Draw,
    OpenDocuments,
    count_open,
    cut_draws,
    draw_next,
    unscored_positions,
)


def documents(sizes: list[int], cursors: list[int], not_open: list[int], scored: list[int]) -> OpenDocuments:
    """Arms of `sizes`; `not_open` were chosen or scored along another direction, `scored` along the stage's own."""
    end_K = np.cumsum(sizes)
    return OpenDocuments(
        first_K=end_K - sizes,
        cursor_K=np.array(cursors),
        end_K=end_K,
        closed_C=np.unique(np.array(not_open, dtype=np.int64)),
        scored_S=np.unique(np.array(scored, dtype=np.int64)),
    )


def test_a_pull_passes_over_what_is_not_open_and_counts_what_was_scored_before() -> None:
    # positions 5 to 14 are arm 1; 8 and 9 are not open, 7 was drawn actively: three open ones from 6 on are 6, 7, 10
    arms = documents([5, 10], [0, 1], not_open=[8, 9], scored=[7])
    assert count_open(arms).tolist() == [5, 7]
    draw = draw_next(arms, 1, 3)
    assert draw == Draw(1, 1, 5)
    assert unscored_positions(arms, draw).tolist() == [6, 10]


def test_the_rest_of_an_arm_is_covered_where_it_holds_too_few() -> None:
    arms = documents([4, 6], [0, 2], not_open=[9], scored=[])
    assert draw_next(arms, 1, 3) == Draw(1, 2, 4)
    assert draw_next(documents([4], [1], not_open=[1, 2, 3], scored=[]), 0, 2) == Draw(0, 1, 3)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sets(st.integers(0, 47)),
    st.sets(st.integers(0, 47)),
    st.integers(1, 13),
    st.data(),
)
def test_a_pull_ends_at_its_last_open_document_by_counting_one_by_one(sizes, closed, scored, n_open, data) -> None:
    n = sum(sizes)
    not_open, seen = sorted(p for p in closed if p < n), sorted(p for p in scored if p < n)
    cursors = [data.draw(st.integers(0, size)) for size in sizes]
    arms = documents(sizes, cursors, not_open, seen)
    for arm, (size, cursor, end) in enumerate(zip(sizes, cursors, np.cumsum(sizes).tolist(), strict=True)):
        rest = range(end - size + cursor, end)
        left = [p for p in rest if p not in closed]
        assert count_open(arms)[arm] == len(left)
        covered = rest if len(left) <= n_open else range(rest.start, left[n_open - 1] + 1)
        draw = draw_next(arms, arm, n_open)
        assert draw == Draw(arm, cursor, len(covered))
        assert unscored_positions(arms, draw).tolist() == [p for p in covered if p not in closed | scored]


def test_draws_are_cut_from_the_last_until_what_they_score_fits() -> None:
    arms = documents([6, 6, 6], [0, 0, 0], not_open=[], scored=[7])
    draws = [draw_next(arms, arm, 4) for arm in (2, 1, 0)]  # four, three and four to score
    rooms = {n: (Room(n, 99.0), Room(99, 2.0 * n + 1.5)) for n in (11, 8, 7, 5, 1)}  # by documents, by what they cost
    cut = {
        n: [cut_draws(arms, draws, room, lambda asked: np.full(len(asked), 2.0))[0] for room in both]
        for n, both in rooms.items()
    }
    assert cut[11] == [draws] * 2
    assert cut[8] == [[*draws[:2], Draw(0, 0, 1)]] * 2
    assert cut[7] == [draws[:2]] * 2
    assert cut[5] == [[draws[0], Draw(1, 0, 2)]] * 2  # position 7 was scored before, and costs nothing
    assert cut[1] == [[Draw(2, 0, 1)]] * 2


def test_a_document_too_dear_ends_its_pull_and_leaves_its_price_to_the_next() -> None:
    arms, cost_N = documents([3, 3], [0, 0], not_open=[], scored=[]), np.array([1.0, 9.0, 1.0, 2.0, 2.0, 2.0])
    kept, left = cut_draws(
        arms, [draw_next(arms, 0, 3), draw_next(arms, 1, 3)], Room(6, 6.0), lambda asked: cost_N[asked]
    )
    assert kept == [Draw(0, 0, 1), Draw(1, 0, 2)]
    assert left == Room(3, 1.0)
