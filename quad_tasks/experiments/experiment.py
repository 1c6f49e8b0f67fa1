"""What every experiment is: a measurement, its tables and its drawings, kept in the workspace with all it found.

Owns the one shape they share: workspace, configuration (none: the demo's corpus) and whether quick go in; the key of
`result.json`, with drawings beside it, comes out. Refuses to overwrite: a result stands under its content's digest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from matplotlib.figure import Figure

from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.experiments.drawing import encode
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.store import open_store

Body = dict[str, Any]
Rows = list[dict[str, str]]
Measure = Callable[[str, RunConfig | None, bool], Body]

SUFFIXES = ("svg", "png")


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        about: what it shows, in a line.
        measure: workspace, configuration and whether quick, to a body of JSON values with `shows`, its claims.
        tables: the body, to tables by title.
        draw: the body, to figures by name.
    """

    about: str
    measure: Measure
    tables: Callable[[Mapping[str, Any]], dict[str, Rows]]
    draw: Callable[[Mapping[str, Any]], Mapping[str, Figure]]


@step("write result")
def write_result(workspace: str, name: str, experiment: Experiment, quick: bool, measured: Body, time_s: float) -> str:
    """Write an experiment's result and drawings; return the key of `result.json`."""
    body = {"experiment": name, "quad_version": package_version("quad-data"), "quick": quick, **measured}
    store = open_store(workspace)
    prefix = f"experiments/{name}/{digest(body)[:16]}"
    for title, figure in experiment.draw(body).items():
        for suffix in SUFFIXES:
            store.put(f"{prefix}/{title}.{suffix}", encode(figure, suffix))
    key = f"{prefix}/result.json"
    write_manifest(store, key, {**body, "volatile": {"time_s": time_s}})
    return key


def shows_table(shows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """Lay out claims (`outcome.claim`): what was measured, its interval, the limit, and whether it holds."""
    rows = [
        {
            "claim": show["claim"],
            "measured": f"{show['measured']:.3f}",
            "95 % interval": f"{show['low']:.3f} to {show['high']:.3f}",
            "limit": show["limit"],
            "": _verdict(show),
        }
        for show in shows
    ]
    return {"What it shows": rows} if rows else {}


def _verdict(show: Mapping[str, Any]) -> str:
    if show["certain"]:
        return "holds"
    return "holds, not its whole interval" if show["holds"] else "does not hold"


def within(found: Mapping[str, float], digits: int = 3) -> str:
    """Write a mean with half the width of its interval."""
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"
