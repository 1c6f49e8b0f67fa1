"""How large a model's covariances are: refused where they cannot be held, described where they are kept in parts."""

import os
from collections.abc import Sequence

from quad_tasks.config.schema import ConfigError
from quad_tasks.core.blocks import Block, shared_inputs
from quad_tasks.core.covariance import diagonal_parts
from quad_tasks.manifests.influence import DiagonalParts
from quad_tasks.runtime.processes.memory import SMALLER_BATCH, SMALLER_MODEL

FACTOR_BYTES = 4
"""A number of a covariance, kept in float32."""
DECOMPOSED_BYTES = 48
"""A number of the covariance that is being decomposed: six float64 copies, its eigenvectors and LAPACK's work among
them."""
GROUP_BYTES = 256 * 2**20
"""Of covariances that are merged and decomposed as one piece of work."""
KEPT_BYTES = 8 * 2**30
"""Of chunks' sums that a fit keeps on disk at most, but for the sums of two chunks."""
CHUNK_DOCUMENTS = 64
"""Documents whose sums are kept as one chunk where the model's covariances are small."""
SMALLER_FIT = f"set factors.max_factor_width, {SMALLER_BATCH}"
SMALLER_FACTORS = f"set factors.max_factor_width, {SMALLER_MODEL}"
"""What to change where a device's memory is too small for a fit: where batches are read, and where none is."""
INPUTS, OUTPUTS = "A of ", "S of "


def describe_cut(blocks: Sequence[Block], max_width: int | None) -> dict[str, DiagonalParts]:
    """Describe every covariance kept as diagonal parts: its `width`, its `parts`, its bytes whole and as kept."""
    cut = {}
    for key, width in _widths(blocks).items():
        sizes = [rows.stop - rows.start for rows in diagonal_parts(key, width, max_width).values()]
        if len(sizes) > 1:
            kept = sum(FACTOR_BYTES * size**2 for size in sizes)
            whole = FACTOR_BYTES * width**2
            cut[key] = DiagonalParts(width=width, parts=len(sizes), whole_bytes=whole, size_bytes=kept)
    return cut


def check_memory(blocks: Sequence[Block], max_width: int | None, memory_bytes: int) -> None:
    """Refuse factors that cannot be held.

    That is all covariances, beside the decomposition of the widest or two sets of eigenvalues: their sums and means.

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
    eigenvalues = sum(FACTOR_BYTES * block.shape[0] * block.shape[1] for block in blocks)
    needed = held + max(DECOMPOSED_BYTES * sizes[widest] ** 2, 2 * eigenvalues)
    if needed > memory_bytes:
        raise ConfigError(
            f"factors.max_factor_width: expected covariances that fit {memory_bytes:,} bytes of memory, found "
            f"{needed:,} bytes; the widest, of {widest}, is {sizes[widest]:,} wide "
            f"({FACTOR_BYTES * sizes[widest] ** 2:,} bytes): set a width below it"
        )


def group_blocks(blocks: Sequence[Block], max_width: int | None) -> list[tuple[Block, ...]]:
    """Cut a model's blocks, in order, into groups of at most about `GROUP_BYTES` of covariances.

    Blocks that read one input stay together; a group of them may be larger.
    """
    groups: list[tuple[Block, ...]] = []
    size = GROUP_BYTES
    for together in shared_inputs(blocks):
        more = covariance_bytes(together, max_width)
        if size + more > GROUP_BYTES:
            groups.append(together)
            size = more
        else:
            groups[-1] += together
            size += more
    return groups


def covariance_bytes(blocks: Sequence[Block], max_width: int | None) -> int:
    """Return the bytes of the blocks' covariances as they are kept."""
    return sum(
        FACTOR_BYTES * (rows.stop - rows.start) ** 2
        for key, width in _widths(blocks).items()
        for rows in diagonal_parts(key, width, max_width).values()
    )


def chunk_documents(sample_documents: int, size_bytes: int) -> int:
    """Return the documents of a chunk: `CHUNK_DOCUMENTS`, or more where that many chunks would keep too many bytes.

    It follows from the sample and the model alone, so that sums are added in one order on any machine.

    Args:
        sample_documents: of all chunks.
        size_bytes: of one chunk's sums.
    """
    most = max(2, KEPT_BYTES // size_bytes)
    return max(CHUNK_DOCUMENTS, -(-sample_documents // most))


def _widths(blocks: Sequence[Block]) -> dict[str, int]:
    """Return the width of every covariance, by its key; an input's and an output's differ."""
    inputs = {f"{INPUTS}{block.source}": block.shape[1] for block in blocks}
    return inputs | {f"{OUTPUTS}{block.name}": block.shape[0] for block in blocks}


def machine_memory_bytes() -> int:
    """Return the machine's physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
