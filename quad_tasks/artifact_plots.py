"""Plots for Prefect's UI: small SVG drawings, written out by hand, as images inside Markdown.

An image in Markdown can follow neither the page's colours nor its fonts: middle tones that read on white and on black,
and the browser's own sans-serif. Hand-written, because a round is drawn in a millisecond, and matplotlib takes 50.
Owns no numbers and no wording.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

POSITIVE, NEGATIVE, LINE, TEXT, GRID = "#2e8bc0", "#c8643c", "#2e8bc0", "#828282", "#82828255"
WIDTH, ROW, LABEL, VALUE, MARGIN = 720, 20, 150, 90, 6
HEIGHT, LEFT, BOTTOM = 180, 70, 34
CHARACTERS = 22


def bars(title: str, values: Mapping[str, float], mark: tuple[str, float] | None = None) -> str:
    """Draw one horizontal bar a value, left of zero for negative ones, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the bars.
        values: label -> value, top first.
        mark: name and value of a dashed line across all bars.
    """
    low = min(0.0, *values.values(), mark[1] if mark else 0.0)
    high = max(0.0, *values.values(), mark[1] if mark else 0.0)
    scale = (WIDTH - LABEL - VALUE) / ((high - low) or 1.0)

    def x(value: float) -> float:
        return LABEL + (value - low) * scale

    top, parts = ROW + MARGIN, [_text(0, 14, title)]
    for i, (label, value) in enumerate(values.items()):
        y = top + i * ROW
        left, width = min(x(0), x(value)), abs(x(value) - x(0))
        colour = POSITIVE if value >= 0 else NEGATIVE
        parts.append(_text(LABEL - MARGIN, y + 14, label[:CHARACTERS], "end"))
        parts.append(f'<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>')
        parts.append(_text(max(x(0), x(value)) + MARGIN, y + 14, f"{value:.4g}"))
    bottom = top + len(values) * ROW
    parts.append(_line(x(0), top, x(0), bottom, TEXT))
    if mark:
        parts.append(_line(x(mark[1]), top, x(mark[1]), bottom, TEXT, dashed=True))
        parts.append(_text(x(mark[1]), bottom + 14, f"{mark[0]} = {mark[1]:.4g}", "middle"))
    return _image(title, bottom + ROW, parts)


def course(title: str, values: Sequence[float], xlabel: str, mark: tuple[str, float] | None = None) -> str:
    """Draw values in order as a line over their number from 0, and return it as a Markdown image.

    Args:
        title: says what is drawn, above the line.
        values: at least one.
        xlabel: what is counted.
        mark: name and value of a dashed line, e.g. a budget.
    """
    low = min(0.0, *values, mark[1] if mark else 0.0)
    high = max(0.0, *values, mark[1] if mark else 0.0)
    top, bottom = ROW + MARGIN, HEIGHT - BOTTOM

    def x(number: int) -> float:
        return LEFT + number * (WIDTH - LEFT - VALUE) / max(1, len(values) - 1)

    def y(value: float) -> float:
        return bottom - (value - low) * (bottom - top) / ((high - low) or 1.0)

    parts = [_text(0, 14, title)]
    for value in (low, high):
        parts.append(_line(LEFT, y(value), WIDTH - VALUE, y(value), GRID))
        parts.append(_text(LEFT - MARGIN, y(value) + 4, f"{value:.4g}", "end"))
    if mark:
        parts.append(_line(LEFT, y(mark[1]), WIDTH - VALUE, y(mark[1]), TEXT, dashed=True))
        parts.append(_text(WIDTH - VALUE + MARGIN, y(mark[1]) + 4, mark[0]))
    points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in enumerate(values))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    parts.append(f'<circle cx="{x(len(values) - 1):.1f}" cy="{y(values[-1]):.1f}" r="3" fill="{LINE}"/>')
    parts += [_text(LEFT, HEIGHT - 14, "0"), _text(x(len(values) - 1), HEIGHT - 14, str(len(values) - 1), "end")]
    parts.append(_text((LEFT + WIDTH - VALUE) / 2, HEIGHT - 14, xlabel, "middle"))
    return _image(title, HEIGHT, parts)


def _image(title: str, height: float, parts: Sequence[str]) -> str:
    style = f'font-family="sans-serif" font-size="13" fill="{TEXT}"'
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>'
    name = "".join(c for c in title if c not in "[]()\\\n")
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
