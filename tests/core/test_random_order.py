"""The shuffled order against known digests and the distribution it claims."""

import numpy as np
import pytest
from scipy.stats import kstest

from quad_tasks.core.random_order import order_key, systematic_places, uniform_hash


def test_keys_stay_what_they_were() -> None:
    """By `printf '7:doc-1' | b2sum -l 64`, bytes read in reverse: pools laid out before keep their order."""
    assert order_key(7, "doc-1") == int.from_bytes(bytes.fromhex("32be672fd4db0427"), "little")
    assert order_key(0, "") == int.from_bytes(bytes.fromhex("402db780d8e197f7"), "little")


def test_keys_depend_on_seed_and_id_alone_and_differ_between_them() -> None:
    keys = {order_key(seed, f"d{i}") for seed in range(20) for i in range(500)}
    assert len(keys) == 20 * 500
    assert order_key(3, "d4") == order_key(3, "d4")


def test_keys_are_uniform() -> None:
    share = np.array([order_key(0, f"document {i}") for i in range(4000)]) / 2.0**64
    assert kstest(share, "uniform").pvalue > 0.01


def test_two_seeds_give_unrelated_orders() -> None:
    first, second = (np.argsort([order_key(seed, f"d{i}") for i in range(3000)]) for seed in (0, 1))
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.06


def split_mix(state: int) -> int:
    """SplitMix64's next number, in whole numbers of Python."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_hashes_are_what_the_generator_draws_at_each_place() -> None:
    """Seed 1234567 draws 6457827717110365317, 3203168211198807973, ... by the reference implementation."""
    assert [split_mix(1234567 + i * 0x9E3779B97F4A7C15) for i in range(2)] == [6457827717110365317, 3203168211198807973]
    for seed in (0, 1234567, 2**64 - 1):
        expected = [(split_mix((seed + n * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for n in (0, 1, 2, 10**12, -3)]
        assert uniform_hash(seed, np.array([0, 1, 2, 10**12, -3])).tolist() == expected


def test_hashes_are_uniform_and_of_two_seeds_unrelated() -> None:
    first, second = (uniform_hash(seed, np.arange(20_000)) for seed in (1, 2))
    assert kstest(first, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03


def test_places_say_how_much_of_an_arm_comes_before_whatever_the_order_of_rows() -> None:
    position, tokens, arm = np.arange(60), np.arange(1, 61), np.repeat([3, 8], [20, 40])
    places = systematic_places(position, tokens, arm, 7)
    for own in (arm == 3, arm == 8):
        order = np.argsort(places[own])
        before = np.cumsum(tokens[own][order]) - tokens[own][order]
        offset = (places[own][order] * tokens[own].sum() - before) / tokens[own][order]
        assert offset == pytest.approx(np.full(len(order), offset[0]))
        assert 0 <= offset[0] < 1
    rows = np.random.default_rng(0).permutation(60)
    assert systematic_places(position[rows], tokens[rows], arm[rows], 7).tolist() == places[rows].tolist()
    assert systematic_places(position[arm == 8], tokens[arm == 8], arm[arm == 8], 7).tolist() == places[20:].tolist()


def test_an_arm_too_small_for_one_document_gets_its_turn_as_often_as_it_should() -> None:
    position, tokens, arm = np.arange(100), np.ones(100, dtype=np.int64), np.array([0] * 99 + [1])
    turns = [
        99 in np.argsort(systematic_places(position, tokens, arm, seed), kind="stable")[:20] for seed in range(2000)
    ]
    assert np.mean(turns) == pytest.approx(0.2, abs=0.03)
