"""The bandit against values worked by hand, invariants, and the regret of a simulation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.bandit import (
    Policy,
    choose_arms,
    contextual_policy,
    exhausted_arms,
    initial_state,
    mean_rewards,
    paper_policy,
    released_policy,
    reward_deviation,
    thompson_policy,
    ucb_scores,
    update,
)
from quad_tasks.core.carry_over import discount, rescale, scale_between
from quad_tasks.core.wasserstein import Neighbours
from quad_tasks.records import BanditState, Pull

M = 4
PAPER = paper_policy(alpha=0.5, arms_per_round=2, documents_per_pull=M)


def pull(arm: int, reward: float, cursor: int = 0, n_documents: int = M) -> Pull:
    return Pull(arm, cursor, n_documents, 10 * n_documents, reward, 0.0)


def equal(a: BanditState, b: BanditState) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


CHAIN = Neighbours(
    indptr=np.array([0, 1, 3, 4]),
    indices=np.array([1, 0, 2, 1], dtype=np.int32),
    weights=np.array([0.5, 0.5, 0.25, 0.25], dtype=np.float32),
)


def test_ucb_score_equals_the_value_worked_by_hand() -> None:
    state = update(initial_state([50, 50]), [pull(0, 1.0), pull(0, 3.0, cursor=M), pull(1, 2.0)], PAPER)
    sigma = math.sqrt(((1 - 2) ** 2 + (3 - 2) ** 2 + 0) / 3)
    expected = [2 + 0.5 * sigma * math.sqrt(2 * math.log(3) / 2), 2 + 0.5 * sigma * math.sqrt(2 * math.log(3) / 1)]
    assert ucb_scores(state, PAPER) == pytest.approx(expected, rel=1e-14)


def test_released_score_has_one_more_pull_in_its_denominator_and_a_centred_reward() -> None:
    policy = released_policy(documents_per_pull=M, propagation="none")
    state = update(initial_state([50, 50]), [pull(0, 0.012), pull(0, 0.022, cursor=M)], policy)
    expected = [0.015 + 1e-4 * math.sqrt(2 * math.log(2) / 3), 0 + 1e-4 * math.sqrt(2 * math.log(2) / 1)]
    assert ucb_scores(state, policy) == pytest.approx(expected, rel=1e-12)


def test_the_released_preset_holds_the_published_constants() -> None:
    policy = released_policy()
    assert (policy.alpha, policy.arms_per_round, policy.documents_per_pull) == (1e-4, 50, 10)
    assert (policy.reward_offset, policy.bonus_pulls, policy.bandwidth) == (2e-3, 1, 0.2)
    assert (policy.propagation, policy.scale_by_deviation) == ("released", False)


def test_a_prior_pull_gives_unvisited_arms_the_mean_of_all() -> None:
    policy = paper_policy(alpha=0.0, documents_per_pull=M, visit_every_arm=False)
    state = update(initial_state([50, 50, 50]), [pull(0, 1.0), pull(1, 2.0)], policy)
    assert ucb_scores(state, policy) == pytest.approx([1.25, 1.75, 1.5])


def test_unvisited_arms_come_first_even_without_a_bonus() -> None:
    policy = paper_policy(alpha=0.0, arms_per_round=2, documents_per_pull=M)
    state = update(initial_state([50] * 4), [pull(0, 9.0), pull(2, 5.0)], policy)
    assert set(choose_arms(state, policy, np.random.default_rng(0)).tolist()) == {1, 3}


@pytest.mark.parametrize("policy", [PAPER, thompson_policy(2, M), released_policy(arms_per_round=2)])
def test_exhausted_arms_are_never_chosen(policy: Policy) -> None:
    state = update(
        initial_state([M, M, 50]), [pull(0, 9.0), pull(1, 9.0)], dataclasses.replace(policy, propagation="none")
    )
    state = dataclasses.replace(state, cursor=np.array([M, M, 0]))
    assert exhausted_arms(state).tolist() == [True, True, False]
    assert choose_arms(state, policy, np.random.default_rng(0)).tolist() == [2]


def test_no_arm_is_chosen_when_all_are_exhausted() -> None:
    assert choose_arms(initial_state([0, 0]), PAPER, np.random.default_rng(0)).size == 0


def test_the_first_round_draws_its_order_from_the_generator() -> None:
    policy = paper_policy(arms_per_round=3, documents_per_pull=M)
    draws = {tuple(choose_arms(initial_state([9] * 50), policy, np.random.default_rng(s)).tolist()) for s in range(20)}
    assert len(draws) > 15
    assert all(len(set(draw)) == 3 for draw in draws)


@pytest.mark.parametrize("policy", [PAPER, thompson_policy(2, M), released_policy(arms_per_round=2)])
def test_the_same_generator_replays_the_same_choice(policy: Policy) -> None:
    pulls = [pull(i, float(i % 3)) for i in range(10)]
    state = update(initial_state([50] * 12), pulls, dataclasses.replace(policy, propagation="none"))
    first, second = (choose_arms(state, policy, np.random.default_rng(7)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_arms_are_listed_best_first() -> None:
    policy = paper_policy(alpha=0.0, arms_per_round=3, documents_per_pull=M)
    state = update(initial_state([50] * 5), [pull(i, reward) for i, reward in enumerate([1, 5, 3, 4, 2])], policy)
    assert choose_arms(state, policy, np.random.default_rng(0)).tolist() == [1, 3, 2]


def test_a_partial_pull_counts_its_fraction() -> None:
    state = update(initial_state([50]), [pull(0, 1.0), pull(0, 5.0, cursor=M, n_documents=1)], PAPER)
    assert state.pulls.tolist() == [1.25]
    assert mean_rewards(state) == pytest.approx([(1.0 * M + 5.0) / (M + 1)])
    assert reward_deviation(state) == pytest.approx(np.std([1.0] * M + [5.0]))


def test_a_pull_without_targets_moves_only_the_cursor() -> None:
    before = initial_state([50])
    after = update(before, [Pull(0, 0, 3, 0, float("nan"), 0.0)], PAPER)
    assert equal(after, dataclasses.replace(before, cursor=np.array([3]), round=1))


def test_a_pull_of_a_single_target_counts() -> None:
    state = update(initial_state([50]), [Pull(0, 0, 1, 1, 5.0, 0.0)], PAPER)
    assert (state.pulls.tolist(), mean_rewards(state).tolist()) == ([1 / M], [5.0])


def test_propagation_by_weight_adds_the_weight_to_both_sums() -> None:
    policy = paper_policy(documents_per_pull=M, propagation="weights")
    state = update(initial_state([50] * 3), [pull(1, 2.0)], policy, CHAIN)
    assert state.pulls.tolist() == [0.5, 1.0, 0.25]
    assert state.reward_sum.tolist() == [1.0, 2.0, 0.5]
    assert state.reward_moments.tolist() == [1.0, 2.0, 4.0]


def test_released_propagation_adds_a_whole_pull_to_each_neighbour() -> None:
    policy = released_policy(documents_per_pull=M, threshold=0.0)
    state = update(initial_state([50] * 3), [pull(1, 2.0)], policy, CHAIN)
    assert state.pulls.tolist() == [1.0, 1.0, 1.0]
    assert state.reward_sum.tolist() == [1.0, 2.0, 0.5]


def test_update_leaves_the_state_before_it_as_it_was() -> None:
    before = initial_state([50] * 3)
    copy = initial_state([50] * 3)
    update(before, [pull(1, 2.0)], PAPER)
    discount(before, 0.5)
    assert equal(before, copy)


def test_discount_keeps_means_and_deviation_but_not_confidence() -> None:
    state = update(initial_state([50] * 2), [pull(0, 1.0), pull(1, 4.0)], PAPER)
    older = discount(state, 0.25)
    assert mean_rewards(older).tolist() == mean_rewards(state).tolist()
    assert reward_deviation(older) == pytest.approx(reward_deviation(state))
    assert older.pulls.tolist() == [0.25, 0.25]
    assert older.cursor.tolist() == state.cursor.tolist()


def test_rescaling_scales_means_and_deviation_and_keeps_confidence() -> None:
    state = update(initial_state([50, 50]), [pull(0, 1.0), pull(1, 3.0)], PAPER)
    scaled = rescale(state, -2.0)
    assert mean_rewards(scaled).tolist() == [-2, -6]
    assert reward_deviation(scaled) == pytest.approx(2 * reward_deviation(state))
    assert scaled.pulls.tolist() == state.pulls.tolist()


def test_the_scale_between_directions_is_the_slope_through_the_origin() -> None:
    assert scale_between(np.array([1.0, 2.0]), np.array([3.0, 1.0])) == pytest.approx(5 / 5)
    assert scale_between(np.zeros(3), np.ones(3)) == 0.0


def after_refit(carry: str, agreement: float, scale: float, seed: int) -> float:
    """Play 12 rounds along one direction and 12 along the next; return how much of the best eight arms' reward is had.

    Influence along the two directions correlates by `agreement`, and the second one's is `scale` times as large.
    """
    generator, n_arms, policy = np.random.default_rng(seed), 60, paper_policy(1.0, 8, M)
    mean_2K, noise = generator.normal(size=(2, n_arms)), 1.5 * generator.normal(size=(2, n_arms, 400))
    other = math.sqrt(1 - agreement**2)
    old = mean_2K[0][:, None] + noise[0]
    new = scale * (agreement * old + other * (mean_2K[1][:, None] + noise[1]))
    state = initial_state([400] * n_arms)

    def play(state: BanditState, influence: np.ndarray) -> tuple[BanditState, float]:
        reached = []
        for number in range(13):
            arms = np.arange(n_arms) if number == 0 else choose_arms(state, policy, generator)
            draws = [(int(arm), int(state.cursor[arm])) for arm in arms]
            pulls = [Pull(a, c, M, M, float(influence[a, c : c + M].mean()), 0.0) for a, c in draws]
            state = update(state, pulls, policy)
            reached.append(influence[arms].mean())
        return state, float(np.mean(reached[1:]))

    state, _ = play(state, old)
    again = generator.choice(np.flatnonzero(np.arange(400) < state.cursor[:, None]), 100)
    state = discount(state, 0.5)
    if carry == "anew":
        state = discount(state, 0.0)
    elif carry == "rescaled":
        state = rescale(state, scale_between(old.ravel()[again], new.ravel()[again]))
    _, reward = play(state, new)
    mean_K = new.mean(axis=1)
    return float((reward - mean_K.mean()) / (np.sort(mean_K)[-8:].mean() - mean_K.mean()))


@pytest.mark.parametrize("agreement", [0.2, 0.9])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_rescaled_statistics_are_worth_more_after_a_refit_than_none_or_mixed_ones(
    agreement: float, scale: float
) -> None:
    reached = {
        carry: np.mean([after_refit(carry, agreement, scale, seed) for seed in range(12)])
        for carry in ("mixed", "anew", "rescaled")
    }
    assert reached["rescaled"] > reached["anew"] + 0.05
    assert reached["rescaled"] > reached["mixed"] + (0.1 if scale < 1 else -0.03)  # of equal scale they may be mixed


def test_a_full_discount_forgets_everything_but_the_cursors() -> None:
    state = discount(update(initial_state([50] * 2), [pull(0, 1.0)], PAPER), 0.0)
    assert np.isnan(mean_rewards(state)).all()
    assert reward_deviation(state) == 0.0
    assert state.cursor.tolist() == [M, 0]


def test_thompson_draws_have_the_arms_mean_and_standard_error() -> None:
    policy = thompson_policy(arms_per_round=1, documents_per_pull=M)
    state = update(initial_state([99] * 2), [pull(0, 0.0), pull(0, 2.0, cursor=M), pull(1, 1.5)], policy)
    generator = np.random.default_rng(0)
    wins = np.mean([choose_arms(state, policy, generator)[0] == 1 for _ in range(4000)])
    sigma = reward_deviation(state)
    standardised = (1.5 - 1.0) / (sigma * math.sqrt(1 / 2 + 1))
    assert wins == pytest.approx(0.5 * (1 + math.erf(standardised / math.sqrt(2))), abs=0.025)


def test_a_pull_away_from_the_cursor_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 1: expected a pull from cursor 0, got 4"):
        update(initial_state([50, 50]), [pull(1, 1.0, cursor=M)], PAPER)


def test_a_pull_past_the_arms_end_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 0: expected a pull of 1 to 3 documents, got 4"):
        update(initial_state([3]), [pull(0, 1.0)], PAPER)


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 0: expected a finite reward at cursor 0, got nan"):
        update(initial_state([50]), [pull(0, float("nan"))], PAPER)


def test_propagation_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="expected neighbour lists for propagation 'weights', got None"):
        update(initial_state([50]), [pull(0, 1.0)], paper_policy(propagation="weights"))


def test_the_contextual_policy_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match="expected features of 3 arms, got None"):
        choose_arms(initial_state([50] * 3), contextual_policy(), np.random.default_rng(0))


def test_a_discount_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma: expected a share in \[0, 1\], got 1.5"):
        discount(initial_state([1]), 1.5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_permuting_pulls_changes_nothing(data: st.DataObject) -> None:
    rewards = data.draw(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
    cursors = np.zeros(3, dtype=np.int64)
    pulls = []
    for reward in rewards:
        arm = data.draw(st.integers(0, 2))
        n_documents = data.draw(st.integers(1, M))
        pulls.append(pull(arm, reward, cursor=int(cursors[arm]), n_documents=n_documents))
        cursors[arm] += n_documents
    policy = paper_policy(documents_per_pull=M, propagation="weights")
    state = initial_state([99] * 3)
    shuffled = data.draw(st.permutations(pulls))
    assert equal(update(state, pulls, policy, CHAIN), update(state, shuffled, policy, CHAIN))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["paper", "released", "thompson"]))
def test_cursors_rise_monotonically_to_each_arms_end_and_no_further(seed: int, name: str) -> None:
    policy = {
        "paper": paper_policy(arms_per_round=2, documents_per_pull=M),
        "released": released_policy(arms_per_round=2, documents_per_pull=M, propagation="none"),
        "thompson": thompson_policy(2, M),
    }[name]
    generator = np.random.default_rng(seed)
    state = initial_state(generator.integers(0, 20, size=5))
    while len(arms := choose_arms(state, policy, generator)) > 0:
        after = update(state, [_draw(state, int(arm), generator.normal()) for arm in arms], policy)
        assert (after.cursor >= state.cursor).all()
        assert (after.cursor <= after.n_documents).all()
        state = after
    assert state.cursor.tolist() == state.n_documents.tolist()


def _draw(state: BanditState, arm: int, reward: float) -> Pull:
    left = int(state.n_documents[arm] - state.cursor[arm])
    return pull(arm, reward, cursor=int(state.cursor[arm]), n_documents=min(M, left))


def regret(
    policy: Policy | None, seed: int, features_KD: np.ndarray | None = None, means_K: np.ndarray | None = None
) -> float:
    """Regret per pull against the best arm over 100 rounds of 8; None pulls arms uniformly."""
    generator = np.random.default_rng(seed)
    means_K = generator.normal(size=100) if means_K is None else means_K
    rules = policy or paper_policy(documents_per_pull=M)
    state, lost = initial_state([10_000] * 100), 0.0
    for _ in range(100):
        if policy is None:
            arms = generator.choice(100, size=8, replace=False)
        else:
            arms = choose_arms(state, policy, generator, features_KD)
        lost += float(np.sum(np.sort(means_K)[-8:]) - means_K[arms].sum())
        state = update(state, [_draw(state, int(a), means_K[a] + generator.normal()) for a in arms], rules)
    return lost / 800


@pytest.mark.parametrize("policy", [paper_policy(documents_per_pull=M), thompson_policy(documents_per_pull=M)])
def test_regret_is_at_most_half_of_uniform_pulls(policy: Policy) -> None:
    assert np.mean([regret(policy, seed) for seed in range(3)]) <= 0.5 * np.mean([regret(None, s) for s in range(3)])
