"""Define what an experiment is, and write its result: a typed measurement, its tables and its drawings.

Owns the one shape that all experiments share. In go workspace, configuration (none: the demo's corpus) and whether the
quick size is wanted; out comes the key of `result.json`, with drawings beside it. Refuses to overwrite: a result is
stored under its content's digest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, Generic, TypeVar

from matplotlib.figure import Figure
from pydantic import TypeAdapter

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.lab.evaluation import Claim
from quad_tasks.experiments.lab.plots import encode
from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.store import open_store

Rows = list[dict[str, str]]
Tables = dict[str, Rows]
R = TypeVar("R")

SUFFIXES = ("svg", "png")


@dataclass(frozen=True)
class Experiment(Generic[R]):
    """One experiment.

    Attributes:
        about: what it shows, in a line.
        result: a frozen dataclass: the content of `result.json`.
        measure: workspace, configuration and whether quick, to the result.
        lay_out: the result, to tables by title.
        draw: the result, to figures by name.
        find_failures: the result, to the checks that fail, where the experiment is a check; None: it is none.
    """

    about: str
    result: type[R]
    measure: Callable[[str, RunConfig | None, bool], R]
    lay_out: Callable[[R], Tables]
    draw: Callable[[R], Mapping[str, Figure]]
    find_failures: Callable[[R], list[str]] | None = None

    def tables(self, body: Mapping[str, Any]) -> Tables:
        """Lay out tables from the content of `result.json`."""
        return self.lay_out(TypeAdapter(self.result).validate_python(body))

    def failed(self, body: Mapping[str, Any]) -> list[str]:
        """Name the checks that fail by the content of `result.json`."""
        return self.find_failures(TypeAdapter(self.result).validate_python(body)) if self.find_failures else []


@stage_task("write result")
def write_result(
    workspace: str, name: str, experiment: Experiment[Any], quick: bool, measured: Any, took_s: float
) -> str:
    """Write an experiment's result and drawings; return the key of `result.json`.

    Args:
        workspace: path or URI it is stored under.
        name: the experiment's.
        experiment: draws the result.
        quick: whether the size was the quick one.
        measured: the result, an instance of `experiment.result`.
        took_s: seconds that measuring took.
    """
    header = {"experiment": name, "quad_version": package_version("quad-data"), "quick": quick}
    body = {**header, **result_body(measured)}
    store = open_store(workspace)
    prefix = f"experiments/{name}/{digest(body)[:16]}"
    for title, figure in experiment.draw(measured).items():
        for suffix in SUFFIXES:
            store.put(f"{prefix}/{title}.{suffix}", encode(figure, suffix))
    key = f"{prefix}/result.json"
    write_manifest(store, key, ExperimentRecord(**body, took_s=took_s))
    return key


def result_body(measured: Any) -> dict[str, Any]:
    """Return a result as JSON values."""
    body: dict[str, Any] = TypeAdapter(type(measured)).dump_python(measured, mode="json")
    return body


def claims_table(claims: Sequence[Claim]) -> Tables:
    """Lay out claims: what was measured, its interval, the limit, and whether it holds."""
    rows = [
        {
            "claim": claim.claim,
            "measured": f"{claim.measured:.3f}",
            "95 % interval": f"{claim.low:.3f} to {claim.high:.3f}",
            "limit": claim.limit,
            "": _verdict(claim),
        }
        for claim in claims
    ]
    return {"What it shows": rows} if rows else {}


def _verdict(claim: Claim) -> str:
    if claim.certain:
        return "holds"
    return "holds, not its whole interval" if claim.holds else "does not hold"


def within(found: Interval, digits: int = 3) -> str:
    """Write a mean with half the width of its interval."""
    return f"{found.mean:.{digits}f} ± {(found.high - found.low) / 2:.{digits}f}"
