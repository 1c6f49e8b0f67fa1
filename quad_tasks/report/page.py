"""Render the report as one self-contained HTML page.

Layout and wording are the templates', numbers the report's: no network, no script needed to read it, light and dark,
for screen and print. Refuses nothing: whatever the report lacks, its section says so. Every value is escaped; the
page's own policy forbids loading anything.
"""

from collections.abc import Callable
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from quad_tasks.report import drawings, numbers, rows
from quad_tasks.report.model import Report
from quad_tasks.report.outcome import measure_outcome

NUMBERS = (numbers.count, numbers.fixed, numbers.significant, numbers.percent, numbers.duration, numbers.size)
ROWS = (
    rows.ends,
    rows.arms_by_reward,
    rows.arms_by_median,
    rows.median_influence,
    rows.arms_with_texts,
    rows.most_severe_first,
    rows.known,
)


def render_page(report: Report) -> str:
    """Render the report of one run.

    Args:
        report: the run's report; any field may have its default.

    Returns:
        A complete HTML document.
    """
    page = _environment().get_template("page.html.j2")
    return page.render(report=report, outcome=measure_outcome(report), shares=rows.source_shares(report))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("quad_tasks.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja's own `count` is another name of its `length`.
    environment.filters.update({write.__name__: _on_one_line(write) for write in NUMBERS})
    environment.filters.update({function.__name__: function for function in (numbers.scalar, *ROWS)})
    environment.globals["draw"] = drawings
    return environment


def _on_one_line(write: Callable[..., str]) -> Callable[..., str]:
    """Keep a number and its unit on one line of the page."""
    return lambda *arguments, **options: write(*arguments, **options).replace(" ", "\u00a0")
