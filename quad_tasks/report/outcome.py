"""Compute what a run brought: what selected tokens gained over random ones, and what they cost other domains.

Signs: a gain is the reference loss after random tokens less that after as many selected ones, nats per token, > 0
where the selection is better. A loss increase is bits per byte after selected tokens less those after random ones,
< 0 where the selection is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quad_tasks.core.evaluation import statistics
from quad_tasks.report.model import Gain, Report, Stage


@dataclass(frozen=True)
class Comparison:
    """One stage's proof: as many selected and random tokens, from the same checkpoint.

    Attributes:
        stage: the stage's number.
        before: reference loss at the checkpoint both started from, nats per token.
        random: reference loss after random tokens, mean over seeds.
        selected: reference loss after selected tokens, mean over seeds.
        interval: 95 % confidence interval of the gain over measured documents and seeds; None where there is none.
        seeds: number of seeds.
        documents: measured documents that the interval is over; None: over seeds alone.
    """

    stage: int
    before: float
    random: float
    selected: float
    interval: tuple[float, float] | None
    seeds: int
    documents: int | None = None

    @property
    def interval_over(self) -> str:
        """Name what the interval is over: the measured documents, and the seeds where there are several."""
        seeds = [f"{self.seeds} seeds"] if self.seeds > 1 else []
        documents = [f"{self.documents:,} measured documents"] if self.documents else []
        return " and ".join([*documents, *seeds])

    @property
    def without_interval(self) -> str:
        """Say why there is no interval, where there is none."""
        return f"one {'measured document' if self.documents == 1 else 'seed'}, so without an interval"

    @property
    def gain(self) -> float:
        """Reference loss saved against random tokens."""
        return self.random - self.selected


@dataclass(frozen=True)
class Domain:
    """Bits per byte of one held-out domain: before the stage, after random tokens, after selected ones."""

    name: str
    is_reference: bool
    before: float
    random: float
    selected: float

    @property
    def loss_increase(self) -> float:
        """Bits per byte that selected tokens cost more than random ones."""
        return self.selected - self.random


@dataclass(frozen=True)
class Outcome:
    """What a run brought.

    Attributes:
        stages: every stage's comparison; empty where one was not measured, or had no control.
        domains: the last stage's held-out domains, the reference's first, then by loss increase, largest first.
        scored_share: share of the pool's tokens that were scored.
        cost_share: model FLOPs of choosing, as a share of scoring the whole pool exactly.
    """

    stages: tuple[Comparison, ...]
    domains: tuple[Domain, ...]
    scored_share: float | None
    cost_share: float | None

    @property
    def last(self) -> Comparison | None:
        """The last stage's comparison."""
        return self.stages[-1] if self.stages else None

    @property
    def others(self) -> tuple[Domain, ...]:
        """The domains that are not the reference's, largest loss increase first."""
        return tuple(domain for domain in self.domains if not domain.is_reference)

    @property
    def mean_loss_increase(self) -> float | None:
        """Mean loss increase of the other domains, bits per byte."""
        return float(np.mean([domain.loss_increase for domain in self.others])) if self.others else None


def measure_outcome(report: Report) -> Outcome:
    """Compute a run's outcome from its report."""
    compared = [_compare(stage, position) for position, stage in enumerate(report.stages)]
    complete = tuple(comparison for comparison in compared if comparison is not None)
    scored, pool = report.scored.tokens, report.pool.tokens
    return Outcome(
        stages=complete if len(complete) == len(compared) else (),
        domains=_domains(report.stages[-1], report.reference.domain) if report.stages else (),
        scored_share=scored / pool if scored and pool else None,
        cost_share=report.cost.share,
    )


def gain_interval(random: Sequence[float], selected: Sequence[float]) -> tuple[float, float] | None:
    """Compute Student's 95 % interval of the mean gain over seeds, paired by seed.

    Args:
        random: reference loss per seed after random tokens.
        selected: the same after selected tokens, same seeds in the same order.

    Returns:
        (low, high), or None where the seeds do not pair or are fewer than two.
    """
    if len(random) != len(selected) or len(random) < 2:
        return None
    found = statistics.interval(np.subtract(random, selected))
    return found.low, found.high


def _interval(gain: Gain | None) -> tuple[float, float] | None:
    return None if gain is None or gain.low is None or gain.high is None else (gain.low, gain.high)


def _compare(stage: Stage, position: int) -> Comparison | None:
    if stage.random is None:
        return None
    before, random, selected = (losses.reference_loss for losses in (stage.before, stage.random, stage.selected))
    if before is None or random is None or selected is None:
        return None
    by_seed = stage.random.reference_loss_by_seed, stage.selected.reference_loss_by_seed
    documents = stage.gain.documents if stage.gain else None
    over_seeds = None if documents == 1 else gain_interval(*by_seed)  # seeds say nothing of other documents
    return Comparison(
        stage=position if stage.stage is None else stage.stage,
        before=before,
        random=random,
        selected=selected,
        interval=_interval(stage.gain) or over_seeds,
        seeds=len(stage.seeds or by_seed[0]),
        documents=documents,
    )


def _domains(stage: Stage, reference: str | None) -> tuple[Domain, ...]:
    before, selected = stage.before.domains, stage.selected.domains
    random = stage.random.domains if stage.random else {}
    domains = [
        Domain(name, name == reference, before[name], random[name], selected[name])
        for name in before
        if name in random and name in selected
    ]
    return tuple(sorted(domains, key=lambda domain: (not domain.is_reference, -domain.loss_increase)))
