"""Shuffle documents by a hash of seed and id, so that the order does not depend on files, workers or counts.

An arm's documents stand in this order, so that its first ones are a random sample of it.

Shape suffixes: N documents, K arms.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


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
