"""The report as one self-contained HTML page: `report.json` in, a page out.

Owns the order of the page and its rendering: no network, no script needed to read it, light and dark, for screen and
print. Refuses nothing: whatever the report lacks, its section says so. Every value is escaped; the page's own policy
forbids loading anything.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quad_tasks import report_arms as arms
from quad_tasks import report_composition as composition
from quad_tasks import report_course as course
from quad_tasks import report_outcome as outcome
from quad_tasks import report_stats as stats
from quad_tasks.report_blocks import Builder, build_section, scalar

SECTIONS: tuple[tuple[str, str, tuple[Builder, ...]], ...] = (
    (
        "result",
        "Result",
        (
            outcome.headline,
            stats.show_figures,
            outcome.draw_domains,
            outcome.headline_detail,
            outcome.list_stages,
            outcome.list_references,
            outcome.list_domains,
            outcome.list_frontier,
        ),
    ),
    ("counts", "Where every document went", (composition.balance, composition.list_counts)),
    ("composition", "Selection against pool", (composition.draw_composition, composition.list_sources)),
    (
        "bandit",
        "Bandit over rounds",
        (course.describe_pilot, course.draw_rounds, arms.draw_pulls, course.describe_prediction),
    ),
    ("influence", "Distribution of influence", (course.draw_influence, arms.draw_arm_influence)),
    ("map", "Map of the pool", (course.draw_map,)),
    ("arms", "Arms", (arms.show_cards, arms.list_arms)),
    ("examples", "Example texts", (course.show_best, course.show_borderline, course.show_worst)),
    ("diversity", "Diversity", (course.list_diversity,)),
    ("findings", "Findings and remedies", (course.list_findings,)),
    ("cost", "Time and memory", (course.draw_time, course.state_memory)),
    ("provenance", "Provenance", (course.list_provenance, course.list_config)),
)


def render_page(report: Mapping[str, Any]) -> str:
    """Render the report of one run.

    Args:
        report: the content of ``report.json``; any key may be absent.

    Returns:
        A complete HTML document.
    """
    sections = [build_section(name, title, builders, report) for name, title, builders in SECTIONS]
    run, created = (str(report.get(key) or "") for key in ("run", "created"))
    return _environment().get_template("report.html.j2").render(run=run, created=created, sections=sections)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("quad_tasks", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["scalar"] = scalar
    return environment
