"""The first section of the report page: what came out.

Owns the headline's arithmetic. Signs: the gain over random is the reference loss after random tokens minus that after
as many selected ones, nats per token, > 0 where the selection is better. What a domain paid is its bits per byte
after selected tokens minus after random ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from quad_tasks import report_figures as figures
from quad_tasks.report_blocks import (
    Absent,
    Figure,
    Paragraph,
    Report,
    Table,
    count,
    count_cell,
    fixed,
    need,
    number_cell,
    percent,
    percent_cell,
    significant_cell,
    text_cell,
)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Domain:
    """Bits per byte of one held-out domain: before the stage, after random tokens, after selected ones."""

    name: str
    before: float
    random: float
    selected: float

    @property
    def paid(self) -> float:
        """Bits per byte that selected tokens cost more than random ones; < 0: they helped this domain too."""
        return self.selected - self.random


@dataclass(frozen=True)
class Comparison:
    """One stage's proof: the same tokens, selected and random, from the same checkpoint.

    Attributes:
        stage: the stage's number.
        before: reference loss at the checkpoint both started from, nats per token.
        random: reference loss after random tokens, mean over seeds.
        selected: reference loss after selected tokens, mean over seeds.
        interval: confidence interval of the gain over random; None with fewer than two seeds.
        seeds: number of seeds.
    """

    stage: int
    before: float
    random: float
    selected: float
    interval: tuple[float, float] | None
    seeds: int

    @property
    def gain(self) -> float:
        """Reference loss saved against random tokens, nats per token; > 0: the selection is better."""
        return self.random - self.selected


def compare_stages(report: Report) -> list[Comparison]:
    """Read every stage's comparison with its random control.

    Raises:
        Absent: there is no stage, or one lacks a loss.
    """
    comparisons = []
    for position in range(len(need(report, "stages"))):
        before, random, selected = (
            need(report, "stages", position, arm, "reference_loss") for arm in ("before", "random", "selected")
        )
        stage = report["stages"][position]
        by_seed = [stage[arm].get("reference_loss_by_seed") or () for arm in ("random", "selected")]
        seeds = len(stage.get("seeds") or by_seed[0])
        number, interval = stage.get("stage", position), gain_interval(*by_seed)
        comparisons.append(Comparison(number, before, random, selected, interval, seeds))
    if not comparisons:
        raise Absent("stages.0")
    return comparisons


def gain_interval(random: Sequence[float], selected: Sequence[float]) -> tuple[float, float] | None:
    """Give Student's interval of the mean gain over seeds, paired by seed.

    Args:
        random: reference loss per seed after random tokens.
        selected: the same after selected tokens, same seeds in the same order.

    Returns:
        (low, high) at `CONFIDENCE`, or None where the seeds do not pair or are fewer than two.
    """
    if len(random) != len(selected) or len(random) < 2:
        return None
    gains = np.subtract(random, selected)
    half = stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2) * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean() - half), float(gains.mean() + half)


def reference_domain(report: Report) -> str | None:
    """Name the held-out domain whose loss is the reference loss, where the configuration names one."""
    heldout = (report.get("config") or {}).get("heldout") or {}
    name: str | None = heldout.get("reference_domain")
    return name


def read_domains(report: Report) -> list[Domain]:
    """Read the last stage's held-out domains, the reference's first, then by what they paid, dearest first.

    Raises:
        Absent: the last stage lacks them.
    """
    before, random, selected = (need(report, "stages", -1, arm, "domains") for arm in ("before", "random", "selected"))
    names = [name for name in before if None not in (before[name], random.get(name), selected.get(name))]
    if not names:
        raise Absent("stages.-1.before.domains")
    domains = [Domain(name, before[name], random[name], selected[name]) for name in names]
    return sorted(domains, key=lambda domain: (domain.name != reference_domain(report), -domain.paid))


def headline(report: Report) -> Paragraph:
    """State gain, cost and price in one sentence."""
    if not any(stage.get("random") for stage in need(report, "stages")):
        return _without_control(report)
    comparisons = compare_stages(report)
    last = comparisons[-1]
    subject = f"In the last of {len(comparisons)} stages the" if len(comparisons) > 1 else "The"
    seeds = f", {last.seeds} seeds" if last.seeds > 1 else ""
    interval = (
        last.interval and f"{100 * CONFIDENCE:.0f} % interval {fixed(last.interval[0])} to {fixed(last.interval[1])}"
    )
    spread = f" ({interval or 'no interval: it needs two seeds'}{seeds})"
    verdict = (
        "lowered the reference loss by" if last.gain > 0 else "did not beat random: the reference loss is higher by"
    )
    comparison = " more than random tokens did" if last.gain > 0 else " than after random tokens"
    gain = f"{verdict} {fixed(abs(last.gain))} nats per token{comparison}{spread}"
    return Paragraph(f"{subject} selection {gain}{_cost(report)}{_price(report)}.", lead=True)


def headline_detail(report: Report) -> Paragraph:
    """State the losses behind the headline."""
    comparisons = compare_stages(report)
    last = comparisons[-1]
    where = f" in the last of {len(comparisons)} stages" if len(comparisons) > 1 else ""
    tokens = (report.get("selected") or {}).get("tokens")
    amount = f" {count(tokens)}" if tokens is not None and len(comparisons) == 1 else ""
    return Paragraph(
        f"Held-out reference loss{where}, nats per token: {fixed(last.before)} before training, {fixed(last.selected)} "
        f"after{amount} selected tokens, {fixed(last.random)} after as many tokens drawn at random from the same pool, "
        "both from the same checkpoint under the same schedule."
    )


def draw_domains(report: Report) -> Figure:
    """Draw what each held-out domain gained or paid."""
    domains, reference = read_domains(report), reference_domain(report)
    drawing = figures.dot_pairs(
        "domains",
        "Change in bits per byte of every held-out domain, after random and after selected tokens; the table below "
        "holds the numbers.",
        [f"{domain.name} (reference)" if domain.name == reference else domain.name for domain in domains],
        [(domain.random - domain.before, domain.selected - domain.before) for domain in domains],
        ("random tokens", "selected tokens"),
        "change in bits per byte (left of 0: better)",
    )
    return Figure(
        "domains",
        (drawing,),
        "Bits per byte on held-out text by domain, relative to the model before training, after equal numbers of "
        "random and of selected tokens (mean over seeds). The reference's own domain stands first; the others are "
        "ordered by what the selection cost them against random.",
    )


def list_domains(report: Report) -> Table:
    """List the held-out domains in numbers."""
    rows = tuple(
        (
            text_cell(domain.name),
            *(number_cell(value, 4) for value in (domain.before, domain.random, domain.selected)),
            number_cell(domain.selected - domain.before, 4, sign=True),
            number_cell(domain.paid, 4, sign=True),
        )
        for domain in read_domains(report)
    )
    columns = ("domain", "before", "random", "selected", "selected − before", "selected − random")
    return Table("domain-table", "Held-out domains, bits per byte; lower is better.", columns, rows)


def list_stages(report: Report) -> Table | None:
    """List every stage's comparison, where there are several."""
    comparisons = compare_stages(report)
    if len(comparisons) == 1:
        return None
    rows = tuple(
        (
            count_cell(stage.stage),
            *(number_cell(value, 4) for value in (stage.before, stage.random, stage.selected)),
            number_cell(stage.gain, 4, sign=True),
        )
        for stage in comparisons
    )
    columns = ("stage", "before", "random", "selected", "gain over random")
    return Table("stage-table", "Reference loss by stage, nats per token; lower is better.", columns, rows)


def list_frontier(report: Report) -> Table | None:
    """List what each general share gave in the last stage, where others were trained than selection and control."""
    points = need(report, "stages", -1).get("frontier") or []
    if len(points) < 3:
        return None
    rows = tuple(
        (
            percent_cell(need(point, "general_share")),
            number_cell(need(point, "reference_loss"), 4),
            number_cell(points[-1]["reference_loss"] - point["reference_loss"], 4, sign=True),
            number_cell(point.get("other_domains"), 4),
        )
        for point in points
    )
    columns = ("general share", "reference loss", "gain over the last", "other domains")
    return Table(
        "frontier-table",
        "What the reference gains and the other domains pay, by the share of the budget drawn from the rest of the "
        "pool: reference loss in nats per token, mean of the other domains in bits per byte, one seed.",
        columns,
        rows,
    )


def list_references(report: Report) -> Table | None:
    """List the reference sets beside what training did to each, where there are several."""
    sets = (report.get("reference") or {}).get("sets") or []
    if len(sets) < 2:
        return None
    last = need(report, "stages", -1)
    losses = [(last.get(kind) or {}).get("references") or {} for kind in ("before", "random", "selected")]
    rows = tuple(
        (
            text_cell(one.get("name", "unnamed")),
            count_cell(one.get("documents")),
            number_cell(one.get("weight"), 2),
            *(number_cell(loss.get(one.get("name")), 4) for loss in losses),
            *(significant_cell(one.get(key)) for key in ("mean_influence", "mean_influence_selected")),
        )
        for one in sets
    )
    columns = ("reference set", "documents", "weight", "before", "random", "selected", "influence", "of the selected")
    return Table(
        "reference-table",
        "The reference sets: held-out loss of each in nats per token, and the mean influence along it of all scored "
        "documents and of the selected ones among them.",
        columns,
        rows,
    )


def _without_control(report: Report) -> Paragraph:
    before, after = (
        need(report, "stages", position, arm, "reference_loss") for position, arm in ((0, "before"), (-1, "selected"))
    )
    return Paragraph(
        f"Training on the selection took the reference loss from {fixed(before)} to {fixed(after)} nats per token"
        f"{_cost(report)}; no random control was trained, so how much of it the selection earned is not known.",
        lead=True,
    )


def _cost(report: Report) -> str:
    scored, pool = ((report.get(key) or {}).get("tokens") for key in ("scored", "pool"))
    return f", at the cost of scoring {percent(scored / pool)} of the pool's tokens" if scored and pool else ""


def _price(report: Report) -> str:
    try:
        others = [domain for domain in read_domains(report) if domain.name != reference_domain(report)]
    except Absent:
        return ""
    if not others:
        return ""
    mean, dearest = float(np.mean([domain.paid for domain in others])), max(others, key=lambda domain: domain.paid)
    verb = "paid" if mean > 0 else "gained"
    most = f" (most: {dearest.name}, {fixed(dearest.paid, 3, sign=True)})" if dearest.paid > 0 else ""
    domains = f"{len(others)} other held-out domains" if len(others) > 1 else "one other held-out domain"
    average = " on average" if len(others) > 1 else ""
    return f"; the {domains} {verb} {fixed(abs(mean))} bits per byte{average} against random{most}"
