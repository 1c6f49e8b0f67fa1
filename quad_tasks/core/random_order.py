"""Shuffle documents by a hash of seed and id, so that the order does not depend on files, workers or counts.

An arm's documents stand in this order, so that its first ones are a random sample of it. What is drawn from a pool
version goes by a hash of seed and position, which any part of the pool can compute of its own.

Shape suffixes: N documents, K arms, M rows.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from quad_tasks.core.group_sums import group_sums

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))
LAST_SHIFT, DOUBLE_BITS = np.uint64(31), 53


def order_key(seed: int, document_id: str) -> int:
    """Compute a document's sort key in the shuffled order: uniform in [0, 2^64), fixed by seed and id."""
    body = f"{seed}:{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


def drawn_at_random(
    position_N: Int64,
    arm_N: npt.NDArray[np.integer],
    first_K: Int64,
    cursor_K: Int64,
) -> npt.NDArray[np.bool_]:
    """Find the scored documents that are a random sample of their arms: those that pulls have covered.

    An arm's documents stand in a random order and a pull takes the next ones, so the arm's cursor alone decides. It
    does not matter who scored a document first: one drawn for its prediction joins the sample once a pull covers it,
    and without it the sample would lack the very documents that were predicted to be good.

    Args:
        position_N: [N] positions of scored documents in the pool version.
        arm_N: [N] their arms.
        first_K: [K] position of each arm's first document.
        cursor_K: [K] documents of each arm that pulls have covered.

    Returns:
        [N] whether a document was drawn at random.
    """
    at_random_N: npt.NDArray[np.bool_] = position_N - first_K[arm_N] < cursor_K[arm_N]
    return at_random_N


def uniform_hash(seed: int, number_N: Int64) -> Float64:
    """Hash numbers to [0, 1), each as the SplitMix64 generator of a seed draws at that place (Steele et al. 2014).

    Args:
        seed: in [0, 2^64).
        number_N: [N] positions, or other integers; negative ones are as good.

    Returns:
        [N] float64, uniform; equal numbers have equal ones.
    """
    mixed_N = (number_N.astype(np.uint64) + np.uint64(1)) * GOLDEN + np.uint64(seed)
    for shift, factor in MIXERS:
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * factor
    mixed_N ^= mixed_N >> LAST_SHIFT
    hashed_N: Float64 = (mixed_N >> np.uint64(64 - DOUBLE_BITS)).astype(np.float64) * 2.0**-DOUBLE_BITS
    return hashed_N


def systematic_places(position_M: Int64, n_tokens_M: Int64, arm_M: npt.NDArray[np.integer], seed: int) -> Float64:
    """Place documents so that, from the lowest place on, arms come in proportion to their tokens (systematic sampling).

    Inside an arm the order is random. A document's place is the share of its arm's tokens that precede it, plus a
    random offset within the document itself, one offset per arm: so small arms come up as often as they should.

    Args:
        position_M: [M] positions: whole arms, but for what may not be drawn.
        n_tokens_M: [M] tokens, > 0.
        arm_M: [M] arms.
        seed: of the orders and the offsets.

    Returns:
        [M] places in [0, 1).
    """
    # Rows by arm, at random inside each (A arms present): [M]
    order = np.lexsort((position_M, uniform_hash(seed, position_M), arm_M))
    arm_A, first_A, arm_of_M = np.unique(arm_M[order], return_index=True, return_inverse=True)
    # Tokens before each row inside its arm, and each arm's total: [M], [A]
    tokens_M = n_tokens_M[order]
    before_M = np.cumsum(tokens_M) - tokens_M
    total_A = group_sums(tokens_M, arm_of_M, len(arm_A))
    # Place of each row in its arm, with the arm's random offset: negative numbers are no document's position
    offset_A = uniform_hash(seed, -1 - arm_A.astype(np.int64))
    place_M = np.empty(len(order))
    place_M[order] = (before_M - before_M[first_A][arm_of_M] + offset_A[arm_of_M] * tokens_M) / total_A[arm_of_M]
    return place_M
