"""One style for every drawing: colours, sizes, fonts, and how a drawing becomes SVG.

The report, Prefect's UI, experiments and the README's figure take theirs from here. Labels come from users' data: they
are cut to one printable line and never read as mathematics. Owns no numbers and no wording.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Palette:
    """Colours by what they are for.

    Attributes:
        ink: text, thresholds.
        muted: axes and what else stays behind.
        grid: the grid.
        selected: the selection, and whatever is drawn alone.
        baseline: what it is compared with.
    """

    ink: str
    muted: str
    grid: str
    selected: str
    baseline: str


PAGE = Palette("#000001", "#000002", "#000003", "#000004", "#000005")
"""Stand-ins that the report's page replaces by its CSS variables: no drawing uses these near-blacks otherwise."""
PAGE_VARIABLES = dict(zip(astuple(PAGE), ("ink", "muted", "grid", "selected", "baseline"), strict=True))
IMAGE = Palette("#828282", "#828282", "#82828255", "#2e8bc0", "#c8643c")
"""For what cannot follow a page's colours: middle tones that read on white and on black."""
PAPER = Palette("#1c1d1f", "#66696f", "#e3e2dd", "#0a6ea8", "#b4572a")
"""For a white ground."""
LOW, MIDDLE, HIGH = IMAGE.baseline, "#9b9b9b", IMAGE.selected
"""A scale of middle tones around zero."""

GREY, SKY, BLACK, PURPLE, ORANGE, GREEN, RED, BLUE = (
    "#999999",
    "#56B4E9",
    "#000000",
    "#CC79A7",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#0072B2",
)
"""Many methods in one drawing: the colours of Okabe and Ito (2008), told apart by the colour-blind."""

TEXT_PT, TITLE_PT = 9.5, 10
PANEL_IN, SCREEN_IN, PAGE_IN = 4.8, 7.5, 7.2
"""Widths at which the text reads: a panel of the report from 375 to 1,440 pixels, an image alone, a page on paper."""
ROW_IN = 0.27
LABEL_PT, TICK_PT = 9, 8
"""On paper, where several panels share a page's width."""
LABEL_CHARACTERS = 28
LINE_SPACING = 1.3
"""Of a text's size, that its line takes beside others."""
POINTS_PER_INCH = 72
RASTER_DPI, PNG_DPI = 220, 150
SALT = "quad"
"""Makes the ids in an SVG the same every time."""


def rc(palette: Palette, **changes: Any) -> dict[Any, Any]:
    """Return matplotlib's settings for a palette; `changes` have underscores for the dots."""
    settings = {
        "axes.axisbelow": True,
        "axes.edgecolor": palette.muted,
        "axes.grid": True,
        "axes.labelcolor": palette.ink,
        "axes.labelsize": TEXT_PT,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": TITLE_PT,
        "axes.unicode_minus": True,
        "font.size": TEXT_PT,
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "legend.fontsize": TEXT_PT,
        "legend.frameon": False,
        "legend.labelcolor": palette.ink,
        "svg.fonttype": "none",
        "svg.hashsalt": SALT,
        "text.color": palette.ink,
        "text.parse_math": False,
        "xtick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.color": palette.muted,
        "ytick.labelcolor": palette.ink,
    }
    return settings | {name.replace("_", "."): value for name, value in changes.items()}


def draw_svg(
    width_in: float, height_in: float, paint: Callable[[Axes], None], palette: Palette, salt: str = SALT
) -> bytes:
    """Draw one panel and return it as an SVG document whose text stays text.

    Args:
        width_in: width, inches.
        height_in: height, inches.
        paint: draws on the axes.
        palette: its colours.
        salt: of the ids, so that two drawings in one page share none.
    """
    buffer = io.BytesIO()
    with style.context(rc(palette, svg_hashsalt=salt), after_reset=True), warnings.catch_warnings():
        # The browser, not matplotlib, finds the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, dpi=RASTER_DPI, metadata={"Date": None})
    return buffer.getvalue()


def one_line(label: str) -> str:
    """Cut a label to one printable line of at most `LABEL_CHARACTERS` characters."""
    printable = "".join(character if character.isprintable() else " " for character in label)
    squeezed = " ".join(printable.split())
    return squeezed if len(squeezed) <= LABEL_CHARACTERS else f"{squeezed[: LABEL_CHARACTERS - 1]}…"


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Give a chart of one row a label, from the top down, its labels and an uncluttered axis of values."""
    axes.set_yticks(range(len(labels)), [one_line(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def label_rows_that_fit(axes: Axes, labels: Sequence[str], height_in: float) -> None:
    """Label every row, or, where their texts would overlap, as many at equal distances as `height_in` has room for."""
    room = max(1, int(height_in * POINTS_PER_INCH / (LINE_SPACING * TEXT_PT)))
    step = max(1, -(-len(labels) // room))
    axes.set_yticks(range(0, len(labels), step), [one_line(label) for label in labels[::step]])
    axes.tick_params(axis="y", length=0)
