"""Choose and order what the page's tables, figures and cards show: sources, arms, findings, facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from quad_tasks.report.model import Amount, Arm, Finding, Report

LABELLED_SHARE = 0.005
"""Of the selection's tokens, that an arm must hold to be numbered on the map."""
SEVERITIES = ("severe", "warning", "info")

Row = TypeVar("Row")


@dataclass(frozen=True)
class SourceShare:
    """A source's tokens in the pool and in the selection, and their shares of each."""

    name: str
    pool_tokens: int
    pool_share: float
    tokens: int
    share: float

    @property
    def ratio(self) -> float | None:
        """Share of the selection over share of the pool: above 1, the source is over-represented."""
        return self.share / self.pool_share if self.pool_share else None

    @property
    def largest(self) -> float:
        """The larger of its two shares."""
        return max(self.pool_share, self.share)


def source_shares(report: Report) -> tuple[SourceShare, ...]:
    """Compare the selection with the pool by source, most of the pool's tokens first.

    Returns:
        A row a source; none where the report lacks the pool's sources or the selection's.
    """
    pool, selected = report.pool.sources, report.selected.by_source
    if pool is None or selected is None:
        return ()
    pool_total, total = (max(sum(one.tokens or 0 for one in side.values()), 1) for side in (pool, selected))
    rows = []
    for name in sorted({*pool, *selected}):
        pool_tokens, tokens = (side.get(name, Amount()).tokens or 0 for side in (pool, selected))
        rows.append(SourceShare(name, pool_tokens, pool_tokens / pool_total, tokens, tokens / total))
    return tuple(sorted(rows, key=lambda row: -row.pool_tokens))


def ends(rows: Sequence[Row], most: int) -> tuple[Row, ...]:
    """Keep the first and the last rows, half of `most` each, where there are more."""
    return tuple(rows) if len(rows) <= most else (*rows[: most // 2], *rows[-(most // 2) :])


def arms_by_reward(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Order arms by mean reward, highest first, those never drawn last."""
    return tuple(sorted(arms, key=lambda arm: -_or_least(arm.mean_reward)))


def median_influence(arm: Arm) -> float | None:
    """Return the median influence of an arm's random draws, along the direction that ranked the last stage."""
    return arm.quantiles[len(arm.quantiles) // 2] if arm.quantiles else None


def arms_by_median(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Order the arms of which random draws were scored by their median influence, highest first."""
    return tuple(sorted((arm for arm in arms if arm.quantiles), key=lambda arm: -_or_least(median_influence(arm))))


def arms_with_texts(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Order the arms that have texts to show: the most selected first, then by median influence."""
    shown = (arm for arm in arms if arm.texts)
    return tuple(sorted(shown, key=lambda arm: (-(arm.selected_tokens or 0), -_or_least(median_influence(arm)))))


def labelled_arms(arms: Sequence[Arm]) -> tuple[int, ...]:
    """Name the arms that a map should label: the most selected ones."""
    selected = {arm.arm: arm.selected_tokens for arm in arms if arm.selected_tokens and arm.arm is not None}
    least = LABELLED_SHARE * sum(selected.values())
    return tuple(arm for arm in sorted(selected, key=lambda arm: -selected[arm]) if selected[arm] >= least)


def most_severe_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Order findings by severity, unknown ones last."""
    order = {severity: place for place, severity in enumerate(SEVERITIES)}
    return tuple(sorted(findings, key=lambda finding: order.get(finding.severity, len(order))))


def known(facts: Mapping[str, object]) -> dict[str, object]:
    """Keep the facts that are known: no None, nothing empty."""
    return {name: fact for name, fact in facts.items() if fact not in (None, "", {}, [], ())}


def _or_least(value: float | None) -> float:
    return -inf if value is None else value
