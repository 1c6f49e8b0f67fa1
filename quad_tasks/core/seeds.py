"""Every random stream of a run, by name: one number each, so that no two draws ever share their randomness.

A stream is drawn from the run's seed, its own number and what it is drawn for (stage, round, seed of a training). Each
stream takes a fixed number of indices: NumPy drops trailing zeros of a seed, so [s, n] and [s, n, 0] are one stream.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Names of the random streams, with the indices each is drawn for; a number is never given twice."""

    EMBEDDER_SAMPLE = 1  # shard
    CENTROID_SAMPLE = 2  # shard
    FACTOR_SAMPLE = 3
    ROUND = 4  # stage, round
    BANDWIDTH = 5
    RANDOM_CONTROL = 6  # stage, training seed
    FRESH_MODEL_TRAINING = 7
    FRESH_MODEL_SAMPLE = 8
    TRAINING = 9  # stage, training seed
    REPORT_MAP = 10
    REPORT_DIVERSITY = 11
    GENERAL_SHARE = 12  # stage
    SELECTION_REGRESSION = 13  # stage
    ROUND_REGRESSION = 15  # stage, round the regression was fitted before
    CALIBRATION = 16  # stage
    EIGENVALUE_SAMPLE = 17
    GATE_TRAINING = 18  # stage
    SELECTION_DIVERSITY = 19  # stage
    FISHER_LABELS = 20  # position of the document
    REMAINING = 21  # stage, round that was just scored
    ADAPTATION = 22


def make_generator(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """Make the generator of a stream.

    Args:
        seed: the run's seed.
        stream: what is drawn.
        indices: what it is drawn for, as `Stream` says beside the name.
    """
    return np.random.default_rng([seed, stream, *indices])


def draw_seed(generator: np.random.Generator) -> int:
    """Draw the seed of an order by hash (`random_order.uniform_hash`), 63 bits."""
    return int(generator.integers(2**63))


def label_seed(seed: int, position: int) -> int:
    """Return the seed of the labels sampled for the document at `position`, hashed from both; 63 bits.

    torch's CPU generator keeps the lower 32 bits of a seed. Hashed, those of two documents or of two runs' seeds agree
    once in four billion pairs; a plain product of seed and 2^31 gave every even seed the same labels.
    """
    words = np.random.SeedSequence([seed, Stream.FISHER_LABELS, position]).generate_state(2, np.uint32)
    return int(words[0] & 0x7FFFFFFF) << 32 | int(words[1])
