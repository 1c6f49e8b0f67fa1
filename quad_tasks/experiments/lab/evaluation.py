"""Judge what experiments measured: claims with their limits, the datamodelling score, and tables over repeats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from quad_tasks.core.evaluation.statistics import Float64, Interval, bootstrap_interval, compare

Int64 = npt.NDArray[np.int64]
Measured = Sequence[float] | Sequence[float | None]
"""By repeat; None where nothing was there to measure."""

RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim beside what was measured.

    Attributes:
        claim: what is measured.
        measured: its value.
        low: low end of its 95 per cent interval.
        high: high end.
        limit: as `>= 0.85`.
        holds: whether the measured value keeps to the limit.
        certain: whether the whole interval does.
    """

    claim: str
    measured: float
    low: float
    high: float
    limit: str
    holds: bool
    certain: bool


def claim_least(text: str, found: Interval, least: float) -> Claim:
    """Claim that what was found is at least this."""
    return Claim(
        text, found.mean, found.low, found.high, f">= {least:g}", found.mean >= least, certain=found.low >= least
    )


def claim_most(text: str, found: Interval, most: float) -> Claim:
    """Claim that what was found is at most this."""
    return Claim(
        text, found.mean, found.low, found.high, f"<= {most:g}", found.mean <= most, certain=found.high <= most
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """A method's outcome by repeat, as tables and comparisons of methods read it.

    Attributes:
        reference_loss: nats per token after training.
        other_domains_bpb: mean bits per byte of the other domains, None where there are none.
        scored_share: of the pool's documents.
        time_s: of choosing.
        cost_share: of scoring the whole pool exactly, in model FLOPs, mean over repeats; None: it was not counted.
    """

    reference_loss: list[float]
    other_domains_bpb: list[float | None]
    scored_share: float
    time_s: float
    cost_share: float | None = None


def datamodelling_score(influence_N: Float64, subsets: Sequence[Int64], losses: Sequence[float]) -> Interval:
    """Correlate subsets' summed influence with how low the loss is after training on them (LDS).

    Source: Park et al. 2023, arXiv 2303.14186. The interval resamples subsets 1,000 times.

    Args:
        influence_N: [N] influence summed over each document's targets; > 0: training on it lowers the loss.
        subsets: rows trained on.
        losses: reference loss after each subset.

    Returns:
        Spearman's correlation, 1 where more influence always leaves less loss.
    """
    predicted, gained = _summed(influence_N, subsets), -np.array(losses)
    return _bootstrap(lambda rows: _rank_correlation(predicted[rows], gained[rows]), len(losses))


def datamodelling_difference(
    first_N: Float64, second_N: Float64, subsets: Sequence[Int64], losses: Sequence[float]
) -> Interval:
    """Compute how much higher the first influence's datamodelling score is, over the same resamples of the subsets."""
    first, second, gained = _summed(first_N, subsets), _summed(second_N, subsets), -np.array(losses)
    return _bootstrap(
        lambda rows: _rank_correlation(first[rows], gained[rows]) - _rank_correlation(second[rows], gained[rows]),
        len(losses),
    )


def _summed(influence_N: Float64, subsets: Sequence[Int64]) -> Float64:
    return np.array([influence_N[subset].sum() for subset in subsets])


def _rank_correlation(predicted: Float64, gained: Float64) -> float:
    return float(spearmanr(predicted, gained).statistic)


def _bootstrap(statistic: Callable[[Int64], float], n_subsets: int) -> Interval:
    """Resample subsets, the same resamples for every statistic."""
    return bootstrap_interval(statistic, n_subsets, RESAMPLES, np.random.default_rng(0))


def table(methods: Mapping[str, Outcome]) -> str:
    """Lay methods out as a Markdown table, lowest reference loss first: costs, means, and differences from random's."""
    rows = [
        "| method | cost | scored | reference loss | less random's | other domains, bits per byte | less random's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    random = methods["random"]
    for name, method in sorted(methods.items(), key=lambda item: np.mean(item[1].reference_loss)):
        own = name == "random"
        loss = mean_and_difference(method.reference_loss, None if own else random.reference_loss)
        others = mean_and_difference(method.other_domains_bpb, None if own else random.other_domains_bpb)
        cells = " | ".join((*loss, *others))
        cost = "" if method.cost_share is None else f"{method.cost_share:.1%}"
        rows.append(f"| {name.replace('_', ' ')} | {cost} | {method.scored_share:.1%} | {cells} |")
    return "\n".join(rows) + "\n"


def mean_and_difference(values_S: Measured, random_S: Measured | None) -> tuple[str, str]:
    """Write a method's mean, and its difference from random's with a 95 per cent interval.

    Repeats differ more than methods do, so that only differences within repeats tell methods apart.

    Args:
        values_S: of the method, by repeat.
        random_S: of random selections; None: the method is random itself.

    Returns:
        Both empty where there was nothing to measure; the difference empty for random itself.
    """
    values, random = measured_only(values_S), measured_only(random_S or ())
    if values is None or random is None:
        return "", ""
    mean = f"{np.mean(values):.3f}"
    if random_S is None:
        return mean, ""
    found = compare(values, random)
    return mean, f"{found.mean:+.3f} ± {found.high - found.mean:.3f}"


def measured_only(values_S: Measured) -> list[float] | None:
    """Return repeats' values, or None where one of them had nothing to measure."""
    values = [value for value in values_S if value is not None]
    return values if len(values) == len(values_S) else None
