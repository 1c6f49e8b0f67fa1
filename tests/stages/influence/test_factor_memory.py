"""Covariances that cannot be held are refused by name and size; those cut are described."""

import pytest

from quad_tasks.config.schema import ConfigError
from quad_tasks.core.blocks import Block
from quad_tasks.manifests.influence import DiagonalParts
from quad_tasks.stages.influence import factor_memory
from quad_tasks.stages.influence.factor_memory import (
    check_memory,
    chunk_documents,
    covariance_bytes,
    describe_cut,
    group_blocks,
)

DOWN = Block("down", ("down",), False, "down", None, (100, 1000))


def test_a_cut_covariance_is_described_with_its_sizes():
    assert describe_cut([DOWN], None) == describe_cut([DOWN], 1000) == {}
    expected = DiagonalParts(width=1000, parts=2, whole_bytes=4_000_000, size_bytes=2_000_000)
    assert describe_cut([DOWN], 500) == {"A of down": expected}


def test_covariances_beyond_memory_are_refused_with_the_widest_and_its_size():
    with pytest.raises(ConfigError, match=r"the widest, of A of down, is 1,000 wide \(4,000,000 bytes\)"):
        check_memory([DOWN], None, 50_000_000)
    check_memory([DOWN], 500, 50_000_000)


def test_corrected_eigenvalues_count_where_they_are_larger_than_the_decomposition():
    """Twenty blocks of [100, 100] read one input: 21 covariances, twenty sums of eigenvalues and as many means."""
    blocks = [Block(str(n), (str(n),), False, "in", None, (100, 100)) for n in range(20)]
    held, eigenvalues = 4 * 21 * 100**2, 20 * 4 * 100**2
    check_memory(blocks, None, held + 2 * eigenvalues)
    with pytest.raises(ConfigError, match=f"found {held + 2 * eigenvalues:,} bytes"):
        check_memory(blocks, None, held + 2 * eigenvalues - 1)


def test_blocks_are_grouped_in_order_by_the_bytes_of_their_covariances(monkeypatch):
    gate, up = (Block(name, (name,), False, "gate", None, (50, 10)) for name in ("gate", "up"))
    blocks = [
        gate,
        up,
        Block("down", ("down",), False, "down", None, (10, 50)),
        Block("next", ("next",), False, "next", None, (10, 10)),
    ]
    sizes = [4 * (10**2 + 2 * 50**2), 4 * (50**2 + 10**2), 4 * (10**2 + 10**2)]  # those of one input together
    assert covariance_bytes(blocks, None) == sum(sizes)
    monkeypatch.setattr(factor_memory, "GROUP_BYTES", sizes[1] + sizes[2])
    assert group_blocks(blocks, None) == [(gate, up), tuple(blocks[2:])]
    monkeypatch.setattr(factor_memory, "GROUP_BYTES", sum(sizes))
    assert group_blocks(blocks, None) == [tuple(blocks)]


@pytest.mark.parametrize(
    ("sample", "size_bytes", "expected"),
    [(768, 10**6, 64), (40, 10**6, 64), (768, 1_160_000_000, 110), (768, 2**40, 384)],
)
def test_large_sums_are_kept_in_fewer_chunks(sample, size_bytes, expected):
    assert chunk_documents(sample, size_bytes) == expected
