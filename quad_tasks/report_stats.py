"""The report's few large figures: gain, price, cost, selection, time, each with what to know of it.

Signs are those of differences: below 0 is better than after random tokens.
"""

import numpy as np

from quad_tasks.report_blocks import Absent, Report, Stats, count, duration, fixed, percent, size
from quad_tasks.report_outcome import CONFIDENCE, compare_stages, read_domains, reference_domain


def show_figures(report: Report) -> Stats:
    """Show gain, cost and price as figures; what the report lacks is left out.

    Raises:
        Absent: the report has none of them.
    """
    builders = (_gain_figure, _price_figure, _scored_figure, _selected_figure, _time_figure)
    shown = tuple(figure for build in builders if (figure := build(report)) is not None)
    if not shown:
        raise Absent("stages.-1.selected")
    return Stats(shown)


def _gain_figure(report: Report) -> tuple[str, str, str] | None:
    try:
        last = compare_stages(report)[-1]
    except Absent:
        return None
    note = "one seed, so without an interval"
    if last.interval:
        low, high = (fixed(-gain, 3, sign=True) for gain in reversed(last.interval))
        note = f"{100 * CONFIDENCE:.0f} % interval {low} to {high}, {last.seeds} seeds"
    return ("reference loss against random, nats per token", fixed(-last.gain, 3, sign=True), note)


def _price_figure(report: Report) -> tuple[str, str, str] | None:
    try:
        others = [domain.paid for domain in read_domains(report) if domain.name != reference_domain(report)]
    except Absent:
        return None
    if not others:
        return None
    worse = sum(paid > 0 for paid in others)
    note = f"{worse} of {len(others)} other domains are worse off than after random tokens"
    return ("other domains against random, bits per byte", fixed(float(np.mean(others)), 3, sign=True), note)


def _scored_figure(report: Report) -> tuple[str, str, str] | None:
    scored, pool = ((report.get(key) or {}).get("tokens") for key in ("scored", "pool"))
    if not scored or not pool:
        return None
    return ("of the pool's tokens were scored", percent(scored / pool), f"{count(scored)} of {count(pool)}")


def _selected_figure(report: Report) -> tuple[str, str, str] | None:
    selected = report.get("selected") or {}
    tokens, documents, budget = (selected.get(key) for key in ("tokens", "documents", "budget_tokens"))
    if tokens is None or documents is None:
        return None
    note = f"in {count(documents)} documents" + (f"; budget {count(budget)}" if budget else "")
    return ("tokens selected", count(tokens), note)


def _time_figure(report: Report) -> tuple[str, str, str] | None:
    times = [seconds for seconds in (report.get("time_s") or {}).values() if seconds is not None]
    memory = report.get("peak_memory_bytes")
    if not times:
        return None
    return ("of wall-clock time", duration(sum(times)), f"{size(memory)} of memory at most" if memory else "")
