"""What the report page is built from: sections of plain blocks, and how numbers are written.

Owns the look-up of a report's numbers, their wording, and the blocks the template knows how to show. Refuses to guess:
a number the report lacks is `Absent`, and the page says so. All text here is plain; the template escapes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from markupsafe import Markup

Report = Mapping[str, Any]

MINUTE_S = 60
HOUR_S = 3600
KIBI = 1024


class Absent(LookupError):
    """A number that the report does not hold; the message is its dotted path."""


@dataclass(frozen=True)
class Paragraph:
    """Running text; `lead` marks the page's one sentence."""

    kind: ClassVar[str] = "paragraph"
    text: str
    lead: bool = False


@dataclass(frozen=True)
class Figure:
    """One or several panels under one caption.

    Attributes:
        name: stable name, unique on the page.
        panels: inline SVG drawings.
        caption: what is drawn, its units, and how to read it.
    """

    kind: ClassVar[str] = "figure"
    name: str
    panels: tuple[Markup, ...]
    caption: str


@dataclass(frozen=True)
class Cell:
    """One table cell: what is shown, and the number it sorts by, where it is one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A sortable table.

    Attributes:
        name: stable name, unique on the page.
        caption: what the rows are, with units.
        columns: headings; the first column heads its row.
        rows: cells, one per column.
        total: a last row that is not sorted, or empty.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...] = ()

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column sorts, and is set, as numbers: some cell of it is one."""
        return tuple(any(row[column].value is not None for row in self.rows) for column in range(len(self.columns)))


@dataclass(frozen=True)
class Example:
    """One document as a reader should see it: facts in a line, then its text with whitespace kept."""

    id: str
    facts: str
    text: str
    characters_left_out: int


@dataclass(frozen=True)
class Examples:
    """Documents of one kind under a heading of their own."""

    kind: ClassVar[str] = "examples"
    name: str
    title: str
    items: tuple[Example, ...]


@dataclass(frozen=True)
class Card:
    """One arm: what it is called, its telling terms, facts in a line, and texts from it."""

    name: str
    title: str
    terms: tuple[str, ...]
    facts: str
    texts: tuple[Example, ...]


@dataclass(frozen=True)
class Cards:
    """Arms side by side."""

    kind: ClassVar[str] = "cards"
    items: tuple[Card, ...]


@dataclass(frozen=True)
class Stats:
    """The few numbers that matter most: what it is, the number, and what to know of it."""

    kind: ClassVar[str] = "stats"
    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class FindingCard:
    """One failure signature: how severe, what was measured, what to do."""

    signature: str
    severity: str
    evidence: tuple[tuple[str, str], ...]
    remedy: str


@dataclass(frozen=True)
class Findings:
    """All findings of a run."""

    kind: ClassVar[str] = "findings"
    items: tuple[FindingCard, ...]


@dataclass(frozen=True)
class Tree:
    """Nested facts, shown as a definition tree: mappings, sequences and scalars."""

    kind: ClassVar[str] = "tree"
    facts: Mapping[str, Any]


Block = Paragraph | Figure | Table | Examples | Cards | Stats | Findings | Tree
Builder = Callable[[Report], Block | None]


@dataclass(frozen=True)
class Section:
    """A linkable part of the page.

    Attributes:
        name: anchor.
        title: heading.
        blocks: what could be built.
        absent: dotted paths of the numbers that were missing for the rest.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    absent: tuple[str, ...]


def need(report: Any, *path: str | int) -> Any:
    """Look up one value of the report.

    Args:
        report: the report, or a part of it.
        path: keys (of mappings) and positions (of sequences; negative from the end), outermost first.

    Returns:
        The value, never None.

    Raises:
        Absent: a key is missing, a position is out of range, or the value is None.
    """
    value = report
    for depth, key in enumerate(path):
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise Absent(".".join(map(str, path[: depth + 1]))) from error
    if value is None:
        raise Absent(".".join(map(str, path)))
    return value


def build_section(name: str, title: str, builders: Sequence[Builder], report: Report) -> Section:
    """Build what the report allows of one section, and collect what it lacks."""
    blocks: list[Block] = []
    absent: list[str] = []
    for build in builders:
        try:
            block = build(report)
        except Absent as missing:
            absent.append(str(missing))
        else:
            blocks += [block] if block else []
    return Section(name, title, tuple(blocks), tuple(dict.fromkeys(absent)))


def text_cell(text: object) -> Cell:
    """Write a label."""
    return Cell(str(text))


def count_cell(value: float | None) -> Cell:
    """Write a whole number; a dash where there is none."""
    return Cell("–") if value is None else Cell(count(value), float(value))


def number_cell(value: float | None, digits: int = 3, sign: bool = False) -> Cell:
    """Write a number to fixed decimals; a dash where there is none."""
    return Cell("–") if value is None else Cell(fixed(value, digits, sign), float(value))


def significant_cell(value: float | None) -> Cell:
    """Write a number of unknown magnitude to three significant digits; a dash where there is none."""
    return Cell("–") if value is None else Cell(significant(value), float(value))


def percent_cell(share: float | None) -> Cell:
    """Write a share in [0, 1] as per cent; a dash where there is none."""
    return Cell("–") if share is None else Cell(percent(share), float(share))


def count(value: float) -> str:
    """Write a whole number with thousands separated: ``12,345``."""
    return f"{value:,.0f}"


def fixed(value: float, digits: int = 3, sign: bool = False) -> str:
    """Write a number to fixed decimals with a true minus: ``−0.012``; ``sign`` also writes the plus."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """Write a number to three significant digits: ``0.0120``, ``1.20e−05``."""
    return f"{value:#.3g}".removesuffix(".").replace("-", "−")


def percent(share: float) -> str:
    """Write a share in [0, 1] as per cent with one decimal: ``16.0 %``."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Write a time span in the unit a reader would use: ``0.42 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if seconds < MINUTE_S:
        return f"{seconds:.3g} s"
    if seconds < HOUR_S:
        return f"{int(seconds // MINUTE_S)} min {int(seconds % MINUTE_S):02d} s"
    return f"{int(seconds // HOUR_S)} h {int(seconds % HOUR_S // MINUTE_S):02d} min"


def size(size_bytes: float) -> str:
    """Write a number of bytes in binary units: ``1.50 GiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < KIBI:
            return f"{value:.3g} {unit}"
        value /= KIBI
    return f"{value:.3g} TiB"


def scalar(value: object) -> str:
    """Write any scalar of the report: numbers readable, None as ``none``, everything else as it is."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case int():
            return count(value) if abs(value) >= 10_000 else str(value)
        case float() if isfinite(value):
            return f"{value:.6g}"
        case _:
            return str(value)
