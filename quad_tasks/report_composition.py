"""The report page on where documents went: counts that must add up, and the selection set against the pool."""

import numpy as np

from quad_tasks import report_figures as figures
from quad_tasks.report_blocks import (
    Cell,
    Figure,
    Paragraph,
    Report,
    Table,
    count,
    count_cell,
    need,
    number_cell,
    percent_cell,
    text_cell,
)

SOURCES_DRAWN = 14
SOURCES_LISTED = 200


def balance(report: Report) -> Paragraph:
    """Say whether every document that came in is accounted for."""
    kept = need(report, "pool", "documents")
    set_aside = sum(_by_reason(report, "pool", "set_aside").values())
    parts = [
        need(report, "unpulled"),
        sum(_by_reason(report, "rejected").values()),
        need(report, "selected", "documents"),
    ]
    names = ("set aside", "in the pool unpulled", "scored and rejected", "selected")
    terms = " + ".join(f"{count(n)} {name}" for n, name in zip([set_aside, *parts], names, strict=True))
    difference = kept - sum(parts)
    verdict = (
        "" if difference == 0 else f" These do not add up: {count(abs(difference))} documents are unaccounted for."
    )
    return Paragraph(f"{count(kept + set_aside)} documents in = {terms}.{verdict}")


def list_counts(report: Report) -> Table:
    """List where every document went, with reasons."""
    kept, set_aside = need(report, "pool", "documents"), _by_reason(report, "pool", "set_aside")
    documents_in = kept + sum(set_aside.values())
    rows = [("set aside", reason, n, None) for reason, n in sorted(set_aside.items())]
    rows += [("unpulled", "in the pool, never drawn", need(report, "unpulled"), None)]
    rows += [("rejected", reason, n, None) for reason, n in sorted(_by_reason(report, "rejected").items())]
    rows += [("selected", "in the selection", need(report, "selected", "documents"), report["selected"].get("tokens"))]
    cells = tuple(
        (text_cell(state), text_cell(reason), count_cell(n), percent_cell(n / max(documents_in, 1)), count_cell(tokens))
        for state, reason, n, tokens in rows
    )
    total = (Cell("documents in"), Cell(""), count_cell(documents_in), percent_cell(1.0), Cell(""))
    columns = ("outcome", "reason", "documents", "share", "tokens")
    return Table("count-table", "Documents by outcome and reason.", columns, cells, total)


def draw_composition(report: Report) -> Figure:
    """Draw the selection against the pool, by source and, where arms are listed, by arm."""
    rows = _source_shares(report)
    largest = sorted(rows, key=lambda row: -max(row[2], row[4]))[:SOURCES_DRAWN]
    panels = [
        figures.dot_pairs(
            "sources",
            "Share of tokens by source, in the pool and in the selection; the table below holds the numbers.",
            [name for name, *_ in largest],
            [(100 * pool_share, 100 * share) for _, _, pool_share, _, share in largest],
            ("pool", "selection"),
            "share of tokens (%)",
        )
    ]
    arms = [arm for arm in report.get("arms") or () if arm.get("tokens") and arm.get("selected_tokens") is not None]
    pool_K, selected_K = (
        np.array([arm[key] for arm in arms], dtype=np.float64) for key in ("tokens", "selected_tokens")
    )
    by_arm = ""
    if len(arms) and selected_K.sum() > 0:
        panels.append(
            figures.concentration(
                "concentration",
                "Cumulative share of selected tokens against pool tokens over arms.",
                pool_K,
                selected_K,
            )
        )
        by_arm = (
            f" (b) The {count(len(arms))} arms in order of how over-represented they are: the further the line lies "
            "above the diagonal, the more the selection concentrates on few arms."
        )
    beyond = f" The {SOURCES_DRAWN} largest of {len(rows)} sources." if len(rows) > SOURCES_DRAWN else ""
    return Figure(
        "composition", tuple(panels), f"(a) Share of tokens by source, pool against selection.{beyond}{by_arm}"
    )


def list_sources(report: Report) -> Table:
    """List tokens by source, pool against selection."""
    shares = sorted(_source_shares(report), key=lambda row: -row[1])
    rows = tuple(
        (
            text_cell(name),
            count_cell(pool_tokens),
            percent_cell(pool_share),
            count_cell(tokens),
            percent_cell(share),
            number_cell(share / pool_share if pool_share else None, 2),
        )
        for name, pool_tokens, pool_share, tokens, share in shares[:SOURCES_LISTED]
    )
    beyond = f"; the {SOURCES_LISTED} largest of {len(shares)}" if len(shares) > SOURCES_LISTED else ""
    return Table(
        "source-table",
        f"Tokens by source{beyond}. Ratio: share of the selection / share of the pool.",
        ("source", "pool tokens", "share of pool", "selected tokens", "share of selection", "ratio"),
        rows,
    )


def _by_reason(report: Report, *path: str) -> dict[str, int]:
    return {reason: n for reason, n in need(report, *path).items() if n is not None}


def _source_shares(report: Report) -> list[tuple[str, int, float, int, float]]:
    pool, selected = need(report, "pool", "sources"), need(report, "selected", "by_source")
    names = sorted({*pool, *selected})
    tokens = [tuple((side.get(name) or {}).get("tokens") or 0 for side in (pool, selected)) for name in names]
    pool_total, selected_total = (max(sum(column), 1) for column in zip(*tokens, strict=True)) if names else (1, 1)
    return [
        (name, pool_tokens, pool_tokens / pool_total, selected_tokens, selected_tokens / selected_total)
        for name, (pool_tokens, selected_tokens) in zip(names, tokens, strict=True)
    ]
