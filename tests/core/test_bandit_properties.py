"""What holds for every game of every policy and every selection, whatever the arms, sizes, rewards and seeds."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.bandit import (
    Policy,
    choose_arms,
    contextual_policy,
    initial_state,
    paper_policy,
    released_policy,
    thompson_policy,
    update,
)
from quad_tasks.core.selection.in_memory_selection import (
    Candidates,
    Mode,
    SelectionSettings,
    random_control,
    rank,
    select,
)
from quad_tasks.core.wasserstein import neighbour_lists
from quad_tasks.records import BanditState, Pull

K, M = 6, 4
POLICIES = {
    "paper": paper_policy(arms_per_round=2, documents_per_pull=M),
    "unvisited": paper_policy(arms_per_round=2, documents_per_pull=M, visit_every_arm=False),
    "propagated": paper_policy(arms_per_round=2, documents_per_pull=M, propagation="weights"),
    "released": released_policy(arms_per_round=2, documents_per_pull=M),
    "thompson": thompson_policy(2, M),
    "contextual": contextual_policy(arms_per_round=2, documents_per_pull=M),
}
CENTROIDS = np.random.default_rng(0).normal(size=(K, 3))
NEIGHBOURS = neighbour_lists(CENTROIDS, np.zeros_like(CENTROIDS), bandwidth=2.0)
FEATURES = CENTROIDS - CENTROIDS.mean(axis=0)

sizes = st.lists(st.integers(0, 25), min_size=K, max_size=K)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(POLICIES))


def draw(state: BanditState, arms: np.ndarray, rewards: np.random.Generator) -> list[Pull]:
    left = state.n_documents - state.cursor
    return [
        Pull(int(a), int(state.cursor[a]), int(min(M, left[a])), int(min(M, left[a])), float(rewards.normal()), 0.0)
        for a in arms
    ]


def play(policy: Policy, n_documents: list[int], seed: int) -> list[tuple[BanditState, list[Pull]]]:
    """Every round's state before it and its pulls, until every arm is exhausted."""
    state, rewards, rounds = initial_state(n_documents), np.random.default_rng([seed, 1]), []
    while len(arms := choose(state, policy, seed)) > 0:
        pulls = draw(state, arms, rewards)
        rounds.append((state, pulls))
        state = update(state, pulls, policy, NEIGHBOURS)
    return [*rounds, (state, [])]


def choose(state: BanditState, policy: Policy, seed: int) -> np.ndarray:
    return choose_arms(state, policy, np.random.default_rng([seed, 0, state.round]), FEATURES)


def as_bytes(state: BanditState) -> list[bytes]:
    return [np.asarray(getattr(state, field.name)).tobytes() for field in dataclasses.fields(state)]


@settings(max_examples=60, deadline=None)
@given(names, sizes, seeds)
def test_every_document_is_drawn_exactly_once_and_cursors_only_rise(
    name: str, n_documents: list[int], seed: int
) -> None:
    rounds = play(POLICIES[name], n_documents, seed)
    drawn = [(p.arm, p.cursor + i) for _, pulls in rounds for p in pulls for i in range(p.n_documents)]
    assert sorted(drawn) == [(arm, i) for arm, n in enumerate(n_documents) for i in range(n)]
    for (before, _), (after, _) in itertools.pairwise(rounds):
        assert (after.cursor >= before.cursor).all()
        assert (after.cursor <= after.n_documents).all()


@settings(max_examples=30, deadline=None)
@given(names, sizes, seeds)
def test_a_game_replayed_from_any_of_its_states_goes_on_the_same(name: str, n_documents: list[int], seed: int) -> None:
    policy = POLICIES[name]
    rounds = play(policy, n_documents, seed)
    for state, pulls in rounds:
        assert choose(state, policy, seed).tolist() == [p.arm for p in pulls]
    again = play(policy, n_documents, seed)
    assert [as_bytes(state) for state, _ in again] == [as_bytes(state) for state, _ in rounds]


@settings(max_examples=60, deadline=None)
@given(names, sizes, seeds, st.randoms(use_true_random=False))
def test_the_order_in_which_pulls_come_back_cannot_be_seen(
    name: str, n_documents: list[int], seed: int, order: random.Random
) -> None:
    policy = POLICIES[name]
    for state, pulls in play(policy, n_documents, seed):
        shuffled = order.sample(pulls, len(pulls))
        first, second = (update(state, each, policy, NEIGHBOURS) for each in (pulls, shuffled))
        assert as_bytes(first) == as_bytes(second)


@settings(max_examples=30, deadline=None)
@given(names, sizes, seeds)
def test_no_round_chooses_an_arm_twice_or_more_arms_than_asked(name: str, n_documents: list[int], seed: int) -> None:
    policy = POLICIES[name]
    for state, pulls in play(policy, n_documents, seed):
        arms = [p.arm for p in pulls]
        assert len(set(arms)) == len(arms) == min(policy.arms_per_round, int((state.cursor < state.n_documents).sum()))


pools = st.lists(
    st.tuples(st.floats(-1, 1), st.integers(1, 40), st.integers(0, 3), st.booleans()), min_size=0, max_size=40
).map(
    lambda rows: Candidates(
        id=np.arange(len(rows)),
        arm=np.array([r[2] for r in rows], dtype=np.int32),
        n_tokens=np.array([r[1] for r in rows], dtype=np.int64),
        influence=np.array([r[0] for r in rows], dtype=np.float64),
        scored=np.array([r[3] for r in rows], dtype=np.bool_),
    )
)
modes = st.sampled_from(["instance", "cluster", "predicted"])
MEANS = np.array([0.5, np.nan, -0.2, 0.1])


@settings(max_examples=100, deadline=None)
@given(
    pools,
    st.integers(0, 300),
    st.floats(-1, 1),
    modes,
    st.none() | st.floats(0.05, 1),
    st.sampled_from([0, 0.3, 1]),
    seeds,
)
def test_no_choice_of_options_exceeds_the_budget_or_takes_a_document_twice(
    pool: Candidates, budget: int, threshold: float, mode: Mode, per_arm: float | None, general: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rules = SelectionSettings(threshold, mode, per_arm, general)
    taken = select(pool, budget, rules, arm_mean_K=MEANS, generator=generator)
    assert pool.n_tokens[taken].sum() <= budget
    assert len(set(taken.tolist())) == len(taken)


@settings(max_examples=100, deadline=None)
@given(pools, st.integers(0, 300), modes, st.none() | st.floats(0.05, 1), st.sampled_from([0, 0.3, 1]), seeds)
def test_no_two_documents_taken_are_alike_and_the_budget_is_filled_without_them(
    pool: Candidates, budget: int, mode: Mode, per_arm: float | None, general: float, seed: int
) -> None:
    kind = np.random.default_rng(seed).integers(0, 8, len(pool.id))  # documents of one kind are near-duplicates
    kind_of = dict(zip(pool.id.tolist(), kind.tolist(), strict=True))

    def find_near_duplicates(ids: np.ndarray) -> np.ndarray:
        _, first = np.unique([kind_of[name] for name in ids.tolist()], return_index=True)
        return np.delete(ids, first)

    generator = np.random.default_rng(seed)
    rules = SelectionSettings(0.0, mode, per_arm, general)
    taken = select(
        pool, budget, rules, arm_mean_K=MEANS, generator=generator, find_near_duplicates=find_near_duplicates
    )
    assert pool.n_tokens[taken].sum() <= budget
    assert len(set(kind[taken].tolist())) == len(taken)
    if general == 1:
        others = ~np.isin(kind, kind[taken])
        assert not (others & (pool.n_tokens <= budget - pool.n_tokens[taken].sum())).any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(0, 300), seeds)
def test_the_random_control_keeps_the_same_limits(n_tokens: list[int], budget: int, seed: int) -> None:
    n_tokens_N = np.array(n_tokens, dtype=np.int64)
    taken = random_control(n_tokens_N, budget, np.random.default_rng(seed))
    assert n_tokens_N[taken].sum() <= budget
    assert len(set(taken.tolist())) == len(taken)


@pytest.mark.parametrize("per_arm", [None, 0.4])
@settings(max_examples=60, deadline=None)
@given(pool=pools, budget=st.integers(0, 300), mode=st.sampled_from(["instance", "predicted"]), seed=seeds)
def test_the_order_of_candidates_cannot_be_seen(
    per_arm: float | None, pool: Candidates, budget: int, mode: Mode, seed: int
) -> None:
    rows = np.random.default_rng(seed).permutation(len(pool.id))
    turned = Candidates(*(getattr(pool, field.name)[rows] for field in dataclasses.fields(pool)))
    first, second = (select(part, budget, SelectionSettings(0.0, mode, per_arm)) for part in (pool, turned))
    assert pool.id[first].tolist() == turned.id[second].tolist()
    assert pool.id[rank(pool, 0.0, mode)].tolist() == turned.id[rank(turned, 0.0, mode)].tolist()
