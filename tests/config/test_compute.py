"""Where a run computes: sizes as people write them, and never a part of what a run is."""

import pytest
from pydantic import ValidationError

from quad_tasks.config.compute import ComputeConfig


@pytest.mark.parametrize(("given", "expected"), [("10GB", 10**10), ("2GiB", 2**31), (5, 5), (None, None)])
def test_a_memory_limit_is_bytes_or_a_size_with_its_unit(given, expected):
    assert ComputeConfig(memory_limit=given).memory_limit == expected


@pytest.mark.parametrize("given", ["plenty", "10 apples", 0, "0GB"])
def test_a_memory_limit_that_is_no_size_is_refused(given):
    with pytest.raises(ValidationError, match="memory_limit"):
        ComputeConfig(memory_limit=given)
