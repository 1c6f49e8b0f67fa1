"""Gains whose truth is known: how often the interval of `gain_over_documents` holds it."""

import numpy as np

from quad_tasks.core.evaluation.statistics import gain_over_documents

TRUE_GAIN = 0.1
DOCUMENT_DEVIATION, NOISE = 0.3, 0.1


def share_covered(
    n_repeats: int, n_documents: int, seed_deviation: float, trials: int, degrees: float | None = None
) -> float:
    """Return the share of trials whose interval holds the true gain.

    Documents and seeds each have an effect of their own on the gain, and their pair one of its own; documents are of
    lognormal lengths.

    Args:
        n_repeats: seeds that were trained.
        n_documents: measured documents.
        seed_deviation: standard deviation of the gain between seeds; between documents it is `DOCUMENT_DEVIATION`.
        trials: intervals to take.
        degrees: documents' effects follow Student's t of so many degrees of freedom, > 2; None: a normal distribution.
    """
    generator, covered = np.random.default_rng(0), 0
    for _ in range(trials):
        target_N = np.round(generator.lognormal(4, 0.8, n_documents)) + 1
        gain_SN = TRUE_GAIN + seed_deviation * generator.normal(size=(n_repeats, 1))
        if degrees is None:
            document_N = generator.normal(size=n_documents)
        else:
            document_N = generator.standard_t(degrees, size=n_documents) * np.sqrt((degrees - 2) / degrees)
        gain_SN = gain_SN + DOCUMENT_DEVIATION * document_N
        gain_SN = gain_SN + NOISE * generator.normal(size=(n_repeats, n_documents))
        found = gain_over_documents(gain_SN * target_N, np.zeros((n_repeats, n_documents)), target_N)
        covered += found is not None and found.low <= TRUE_GAIN <= found.high
    return covered / trials
