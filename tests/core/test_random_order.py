"""The shuffled order against known digests and the distribution it claims."""

import numpy as np
from scipy.stats import kstest

from quad_tasks.core.random_order import order_key


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
