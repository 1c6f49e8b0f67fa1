"""Estimate what is left to gain: how much more influence a selection would hold if every document were scored.

A regression's error on documents drawn at random and held out of its fit says how far unscored documents may lie from
their prediction. Influence of all unscored documents is drawn many times, prediction plus the error of a held-out
document predicted alike; each time the selection as it is and the best selection are compared. The held-out documents
are resampled for every draw, so that the interval holds the uncertainty of few as well. What the fit gets wrong it gets
wrong of many documents alike: for the interval every draw also moves the predictions together, by as much as fits that
lack a part of the held-out documents differ (the grouped jackknife).

    left = (V_full - V_now) / (V_full - V_random)

V is the mean influence per token of a selection of the budget's tokens: of the best by what is measured and predicted,
of the best by true influence, of all. Near-duplicates and a general share are left out of all three alike.

Shape suffixes: M scored documents, U unscored ones that stand for all, N both, S those that refits predict, H held-out
ones, F refits, B draws.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

DRAWS = 200
ALIKE = 24
"""Held-out documents whose predictions are nearest that may lend their error."""
LEAST_HELD_OUT = 16
MOST_DOCUMENTS = 20_000
"""Unscored documents that are drawn for; of more, a sample stands for all."""
SHUFFLED_DOCUMENTS = 2**20
"""Most documents that are shuffled for the sample; of more, numbers are drawn until that many differ."""
REFITTED_DOCUMENTS = 2_000
"""Of these, the best predicted: what refits predict of them is compared, since the others are selected by none."""
LEAST_ERROR = 1e-3
"""Of the mean one: smaller errors count as this, so that one near 0 does not decide."""
PRIOR_POWER, PRIOR_WEIGHT = -0.5, 20.0
"""Errors of means of n tokens go with n to this power. The weight is the variance of a normal error's logarithm, 1.2,
over that of powers, 0.06: with 100 errors the slope that they show counts two or three times as much."""
POWER_RANGE = (-1.0, 0.0)
"""Errors are not taken to grow with length."""
CONFIDENCE = 0.95
WIDENED = 1.25
"""Factor of the interval's half-widths: quantiles over resamples of few errors with heavy tails lie too near."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """What scoring everything would add.

    Attributes:
        left: share of full scoring's gain over random that the selection lacks, in [0, 1].
        low: lower end of its 95 % interval.
        high: upper end.
        gain: influence per token of the selection above the pool's mean.
        full_gain: the same of the best selection.
        held_out: documents whose error is known.
    """

    left: float
    low: float
    high: float
    gain: float
    full_gain: float
    held_out: int


class OutOfFold(NamedTuple):
    """Documents drawn at random, [H] each: predicted influence by a fit without them, measured influence, tokens."""

    predicted_H: Float64
    measured_H: Float64
    n_tokens_H: Int64


class Scored(NamedTuple):
    """Scored documents that may be selected, [M] each: measured influence per token, tokens > 0."""

    measured_M: Float64
    n_tokens_M: Int64


class Unscored(NamedTuple):
    """Unscored documents that stand for all, and what refits predict of the best predicted ones.

    Attributes:
        predicted_U: [U] what the regression predicts.
        n_tokens_U: [U] tokens, > 0.
        all_tokens: of all unscored documents that may be selected.
        refitted_S: [S] rows of those that refits predict, ascending.
        refits_FS: [F, S] predicted influence by fits without a part of the held-out documents each; F may be 0.
    """

    predicted_U: Float64
    n_tokens_U: Int64
    all_tokens: int
    refitted_S: Int64
    refits_FS: Float64


def sample_unscored(n_unscored: int, generator: np.random.Generator) -> Int64:
    """Draw which of this many unscored documents stand for all: their numbers, ascending, [U]."""
    if n_unscored <= SHUFFLED_DOCUMENTS:
        drawn: Int64 = np.sort(generator.permutation(n_unscored)[:MOST_DOCUMENTS])
        return drawn
    return np.sort(generator.choice(n_unscored, MOST_DOCUMENTS, replace=False))


def choose_refitted(predicted_U: Float64) -> Int64:
    """Choose the unscored documents that refits are to predict, the best predicted ones: rows, ascending, [S]."""
    return np.sort(np.argsort(-predicted_U, kind="stable")[:REFITTED_DOCUMENTS])


def estimate_remaining(
    scored: Scored,
    unscored: Unscored,
    budget_tokens: int,
    held_out: OutOfFold,
    generator: np.random.Generator,
) -> Remaining | None:
    """Estimate what scoring everything would add to a selection.

    Args:
        scored: documents that are scored and may be selected.
        unscored: documents that are drawn for, and what refits predict of them.
        budget_tokens: tokens of the selection.
        held_out: documents drawn at random, predicted by fits without them.
        generator: draws errors and refits.

    Returns:
        The estimate; None where fewer than `LEAST_HELD_OUT` errors are known, or the budget takes nothing
        or everything.
    """
    n_scored, all_tokens = len(scored.measured_M), int(scored.n_tokens_M.sum()) + unscored.all_tokens
    if len(held_out.measured_H) < LEAST_HELD_OUT or not 0 < budget_tokens < all_tokens:
        return None
    # Documents drawn for: all that are scored, and a sample of the others that weighs as much as they do: [N]
    weight_N = np.concatenate([scored.n_tokens_M, unscored.n_tokens_U]).astype(np.float64)
    weight_N[n_scored:] *= unscored.all_tokens / max(1.0, weight_N[n_scored:].sum())
    known_N = np.concatenate([scored.measured_M, unscored.predicted_U])
    # What every draw adds to what is known of the sample: [B, U]
    added_BU = _draw_errors(unscored.predicted_U, unscored.n_tokens_U, held_out, generator)
    # The estimate, from errors of single documents; how far it may be off, from those of the fit as well: [B]
    found = _compare(known_N, added_BU, weight_N, budget_tokens)
    added_BU[:, unscored.refitted_S] += _draw_refits(unscored, generator)
    shared_B = _compare(known_N, added_BU, weight_N, budget_tokens).left_B
    left = float(found.left_B.mean())
    ends = np.quantile(shared_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - shared_B.mean()
    low, high = np.clip(left + WIDENED * ends, 0.0, 1.0)
    return Remaining(
        left=left,
        low=float(low),
        high=float(high),
        gain=float((found.now_B - found.random_B).mean()),
        full_gain=float((found.full_B - found.random_B).mean()),
        held_out=len(held_out.measured_H),
    )


class _Compared(NamedTuple):
    """By draw, [B]: what is left, and mean influence of the selection as it is, of the best one and of all."""

    left_B: Float64
    now_B: Float64
    full_B: Float64
    random_B: Float64


def _compare(known_N: Float64, added_BU: Float64, weight_N: Float64, budget_tokens: int) -> _Compared:
    """Compare the selection by what is known with the best one of every draw, a draw at a time.

    A draw is what is known, and what it adds to the last U documents. The scored ones may be millions: one row of all
    documents is held, not one a draw.
    """
    chosen_N, all_tokens = _filled(known_N, weight_N, budget_tokens), weight_N.sum()
    random_B, now_B, full_B = (np.empty(len(added_BU)) for _ in range(3))
    drawn_N = known_N.copy()
    first_sampled = len(known_N) - added_BU.shape[1]
    for draw, added_U in enumerate(added_BU):
        drawn_N[first_sampled:] = known_N[first_sampled:] + added_U
        random_B[draw] = drawn_N @ weight_N / all_tokens
        now_B[draw] = drawn_N @ chosen_N / budget_tokens
        full_B[draw] = (drawn_N * _filled(drawn_N, weight_N, budget_tokens)).sum() / budget_tokens
    left_B = (full_B - now_B) / np.maximum(full_B - random_B, np.finfo(np.float64).tiny)
    return _Compared(np.clip(left_B, 0.0, 1.0), now_B, full_B, random_B)


def _draw_errors(
    predicted_U: Float64, n_tokens_U: Int64, held_out: OutOfFold, generator: np.random.Generator
) -> Float64:
    """Draw an error for every unscored document from held-out documents predicted alike, resampled each time, [B, U].

    Influence per token varies less the longer a document is: an error is scaled to the document's length.
    """
    n_held, n_alike = len(held_out.predicted_H), min(ALIKE, len(held_out.predicted_H))
    error_H = held_out.measured_H - held_out.predicted_H
    log_U, log_H = np.log(n_tokens_U), np.log(held_out.n_tokens_H)
    errors_BU = np.empty((DRAWS, len(predicted_U)))
    for draw in range(DRAWS):
        resampled_H = generator.integers(n_held, size=n_held)
        order_H = resampled_H[np.argsort(held_out.predicted_H[resampled_H], kind="stable")]
        place_U = np.searchsorted(held_out.predicted_H[order_H], predicted_U)
        first_U = np.clip(place_U - n_alike // 2, 0, n_held - n_alike)
        lent_U = order_H[first_U + generator.integers(n_alike, size=len(predicted_U))]
        power = _length_power(error_H[resampled_H], log_H[resampled_H])
        errors_BU[draw] = error_H[lent_U] * np.exp(power * (log_U - log_H[lent_U]))
    return errors_BU


def _draw_refits(unscored: Unscored, generator: np.random.Generator) -> Float64:
    """Draw how far the fit is off for all documents together, one refit's deviation a draw, [B, S].

    The grouped jackknife's variance of a fit is (F - 1) times the mean squared deviation of F refits.
    """
    n_refits = len(unscored.refits_FS)
    if n_refits < 2:
        return np.zeros((DRAWS, len(unscored.refitted_S)))
    deviation_FS = unscored.refits_FS - unscored.refits_FS.mean(axis=0)
    drawn_BS: Float64 = np.sqrt(n_refits - 1) * deviation_FS[generator.integers(n_refits, size=DRAWS)]
    return drawn_BS


def _length_power(error_H: Float64, log_tokens_H: Float64) -> float:
    """Estimate the power of a document's tokens that the size of its error goes with, drawn to that of a mean."""
    size_H, x_H = np.abs(error_H), log_tokens_H - log_tokens_H.mean()
    y_H = np.log(np.maximum(size_H, LEAST_ERROR * size_H.mean() + np.finfo(np.float64).tiny))
    slope = (float(x_H @ y_H) + PRIOR_WEIGHT * PRIOR_POWER) / (float(x_H @ x_H) + PRIOR_WEIGHT)
    return float(np.clip(slope, *POWER_RANGE))


def _filled(influence_N: Float64, weight_N: Float64, budget_tokens: int) -> Float64:
    """Fill the budget with the best documents; return the tokens taken of each, [N]."""
    order_N = np.argsort(-influence_N, kind="stable")
    ordered_N = weight_N[order_N]
    before_N = np.cumsum(ordered_N) - ordered_N
    taken_N = np.empty_like(weight_N)
    taken_N[order_N] = np.clip(budget_tokens - before_N, 0.0, ordered_N)
    return taken_N
