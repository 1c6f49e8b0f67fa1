"""Covariances that cannot be held are refused by name and size; those cut are described."""

import pytest

from quad_tasks.config import ConfigError
from quad_tasks.core.blocks import Block
from quad_tasks.factor_sizes import check_memory, describe_cut

DOWN = Block("down", ("down",), False, "down", None, (100, 1000))


def test_a_cut_covariance_is_described_with_its_sizes():
    assert describe_cut([DOWN], None) == describe_cut([DOWN], 1000) == {}
    expected = {"width": 1000, "parts": 2, "whole_bytes": 4_000_000, "size_bytes": 2_000_000}
    assert describe_cut([DOWN], 500) == {"A of down": expected}


def test_covariances_beyond_memory_are_refused_with_the_widest_and_its_size():
    with pytest.raises(ConfigError, match=r"the widest, of A of down, is 1,000 wide \(4,000,000 bytes\)"):
        check_memory([DOWN], None, 50_000_000)
    check_memory([DOWN], 500, 50_000_000)
