"""Compute intervals, paired comparisons and bootstraps of repeated measurements: one function of each, all from scipy.

Every interval is two-sided at 95 per cent: Student's over repeats (seeds), or the bootstrap's percentiles where the
statistic has no known distribution. Refuses to judge: which limit a measurement must keep is the caller's affair.

Shape suffixes: S repeats, R rounds, N measured documents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, sem, ttest_rel
from scipy.stats import t as student

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CONFIDENCE = 0.95
CANCELLATION = 10 * float(np.finfo(np.float64).eps)
"""Relative spread below which scipy's t test warns that differences are rounding errors."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or another estimate, with both ends of its 95 per cent interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison(Interval):
    """A paired difference with its interval.

    Attributes:
        p: two-sided p value of the paired t test that the difference is zero.
    """

    p: float


@dataclass(frozen=True, slots=True)
class Band:
    """Means and 95 per cent intervals by round: three lists of equal length."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def interval(values_S: Sequence[float] | Float64) -> Interval:
    """Compute the mean and Student's 95 per cent interval of repeats.

    Args:
        values_S: [S] one value a repeat, S >= 2.
    """
    mean, low, high = _student_interval(np.asarray(values_S, np.float64))
    return Interval(float(mean), float(low), float(high))


def band(values_SR: Sequence[Sequence[float]] | Float64) -> Band:
    """Compute the mean and Student's 95 per cent interval of repeats, round by round.

    Args:
        values_SR: [S, R] one row a repeat, S >= 2.
    """
    return Band(*(tuple(line_R.tolist()) for line_R in _student_interval(np.asarray(values_SR, np.float64))))


def _student_interval(values_S: Float64) -> tuple[Float64, Float64, Float64]:
    """Compute mean, low and high over the first axis; equal repeats have an interval of no width."""
    mean, error = values_S.mean(axis=0), sem(values_S, axis=0)
    low, high = student.interval(CONFIDENCE, len(values_S) - 1)
    return mean, mean + low * error, mean + high * error


def gain_over_documents(before_SN: Float64, after_SN: Float64, target_N: Float64 | Int64) -> Interval | None:
    """Compute the mean loss saved per target, with an interval over measured documents and repeats together.

    Both vary: other documents of the same kind, and other seeds of the same training, would give another gain. The half
    widths of Student's intervals over documents and over repeats (two-way random effects without replication) are added
    in squares. With one repeat the interval is over documents alone.

    Args:
        before_SN: [S, N] summed nats of each repeat and document under the baseline.
        after_SN: [S, N] the same under the method, repeats paired.
        target_N: [N] targets of each document, or what it weighs; one of 0 tells nothing and is left out.

    Returns:
        The interval; None of fewer than two documents, which do not tell how another one would differ.
    """
    measured_N = target_N > 0
    saved_SN, target_N = (before_SN - after_SN)[:, measured_N], target_N[measured_N]
    n_repeats, n_documents = saved_SN.shape
    if n_documents < 2:
        return None
    mean = float(saved_SN.sum() / (n_repeats * target_N.sum()))
    # what each document adds to the ratio of sums, linearised about the mean: its own mean is 0
    residual_SN = (saved_SN - mean * target_N) / target_N.mean()
    repeat_S, document_N = residual_SN.mean(axis=1, keepdims=True), residual_SN.mean(axis=0)
    # Student's half width over documents, of as many as would weigh the same; it holds single measurements' noise too.
    # What leaving a document out shows (jackknife) is more than its residual: a long one pulls the mean to it
    level, share_N = (1 + CONFIDENCE) / 2, target_N / target_N.sum()
    left_out_N = document_N * (1 - 1 / n_documents) / (1 - share_N)
    half = float(student.ppf(level, max(1.0, 1 / np.sum(share_N**2) - 1)) * sem(left_out_N))
    if n_repeats > 1:
        # what repeats vary beyond that noise: the variance of their means, less the interaction's part of it
        interaction_SN = residual_SN - repeat_S * target_N / target_N.mean() - document_N
        noise = float((interaction_SN**2).sum()) / ((n_repeats - 1) * (n_documents - 1))
        excess = max(0.0, float(repeat_S.var(ddof=1)) / n_repeats - noise / (n_repeats * n_documents))
        # the two sources are independent, so that their half widths add in squares
        half = math.hypot(half, float(student.ppf(level, n_repeats - 1)) * math.sqrt(excess))
    return Interval(mean, mean - half, mean + half)


def compare(first_S: Sequence[float], second_S: Sequence[float]) -> Comparison:
    """Compare two methods' losses by pairs: the mean of first less second, < 0 where the first is lower.

    Args:
        first_S: [S] losses of the first method, S >= 2.
        second_S: [S] losses of the second, of the same repeats in the same order.
    """
    difference_S = np.subtract(first_S, second_S, dtype=np.float64)
    found = interval(difference_S)
    if np.ptp(difference_S) <= CANCELLATION * abs(found.mean):  # no spread, on which no t test can be made
        p = float(found.mean == 0)
    else:
        p = float(ttest_rel(first_S, second_S).pvalue)
    return Comparison(found.mean, found.low, found.high, p)


def gain_share(baseline_S: Sequence[float], selected_S: Sequence[float], best_S: Sequence[float]) -> Interval:
    """Compute what a selection gains over a baseline as a share of what the best one gains, repeat by repeat.

    Args:
        baseline_S: [S] losses by repeat, e.g. after random documents.
        selected_S: [S] losses after the selection.
        best_S: [S] losses after the best selection.
    """
    gain_S, best_gain_S = np.subtract(baseline_S, selected_S), np.subtract(baseline_S, best_S)
    return interval(gain_S / best_gain_S)


def bootstrap_interval(
    statistic: Callable[[Int64], float], n_units: int, n_resamples: int, generator: np.random.Generator
) -> Interval:
    """Compute a statistic of some units with the percentile interval of its bootstrap.

    Args:
        statistic: of row numbers, [n_units] int64, drawn with replacement.
        n_units: what is resampled: rows 0 to n_units - 1, at least two.
        n_resamples: how often.
        generator: draws the resamples.
    """
    rows = np.arange(n_units)
    resampled = bootstrap(
        (rows,),
        lambda drawn: statistic(drawn.astype(np.int64)),
        n_resamples=n_resamples,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator,
    )
    low, high = resampled.confidence_interval
    return Interval(float(statistic(rows)), float(low), float(high))
