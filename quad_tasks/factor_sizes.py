"""How large a model's covariances are: refused where they cannot be held, described where they are kept in parts."""

import os
from collections.abc import Sequence

from quad_tasks.config import ConfigError
from quad_tasks.core.blocks import Block
from quad_tasks.core.covariance import diagonal_parts

FACTOR_BYTES = 4
"""A number of a covariance, kept in float32."""
DECOMPOSED_BYTES = 48
"""A number of the covariance that is being decomposed: six float64 copies, its eigenvectors and LAPACK's work among
them."""
INPUTS, OUTPUTS = "A of ", "S of "


def describe_cut(blocks: Sequence[Block], max_width: int | None) -> dict[str, dict[str, int]]:
    """Describe every covariance kept as diagonal parts: its `width`, its `parts`, its bytes whole and as kept."""
    cut = {}
    for key, width in _widths(blocks).items():
        sizes = [rows.stop - rows.start for rows in diagonal_parts(key, width, max_width).values()]
        if len(sizes) > 1:
            kept = sum(FACTOR_BYTES * size**2 for size in sizes)
            whole = FACTOR_BYTES * width**2
            cut[key] = {"width": width, "parts": len(sizes), "whole_bytes": whole, "size_bytes": kept}
    return cut


def check_memory(blocks: Sequence[Block], max_width: int | None, memory_bytes: int) -> None:
    """Refuse factors that cannot be held, all of them, while the widest is decomposed.

    Raises:
        ConfigError: they need more than the memory; the message names the widest and its size.
    """
    sizes = {
        part: rows.stop - rows.start
        for key, width in _widths(blocks).items()
        for part, rows in diagonal_parts(key, width, max_width).items()
    }
    widest = max(sizes, key=lambda part: sizes[part])
    held = sum(FACTOR_BYTES * size**2 for size in sizes.values())
    needed = held + DECOMPOSED_BYTES * sizes[widest] ** 2
    if needed > memory_bytes:
        raise ConfigError(
            f"factors.max_factor_width: expected covariances that fit {memory_bytes:,} bytes of memory, found "
            f"{needed:,} bytes; the widest, of {widest}, is {sizes[widest]:,} wide "
            f"({FACTOR_BYTES * sizes[widest] ** 2:,} bytes): set a width below it"
        )


def _widths(blocks: Sequence[Block]) -> dict[str, int]:
    """Return the width of every covariance, by its key; an input's and an output's differ."""
    inputs = {f"{INPUTS}{block.source}": block.shape[1] for block in blocks}
    return inputs | {f"{OUTPUTS}{block.name}": block.shape[0] for block in blocks}


def machine_memory_bytes() -> int:
    """Return the machine's physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
