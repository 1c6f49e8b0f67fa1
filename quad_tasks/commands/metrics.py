"""How far the runs of a workspace are, as gauges that Prometheus reads.

Everything is read from the ledger when it is asked for, so that the endpoint may stand anywhere, start at any time and
end without any run noticing. A run that cannot be read hides no other. Documents, tokens and shares are those of
`runtime.status`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from quad_tasks.runtime.run import list_runs, load_run
from quad_tasks.runtime.status import run_status
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.keys import run_record_key
from quad_tasks.storage.store import open_store

Status = Mapping[str, Any]

OF_RUNS: Mapping[str, tuple[str, Callable[[Status], float | None]]] = {
    "quad_budget_tokens": ("Tokens that all stages may select.", lambda run: run["budget_tokens"]),
    "quad_driven": ("Whether a process drives the run.", lambda run: run["driven_by"] is not None),
    "quad_last_event_timestamp_seconds": (
        "When something was last recorded of the run, in seconds since 1970.",
        lambda run: datetime.fromisoformat(run["last_event"]).timestamp() if run["last_event"] else None,
    ),
    "quad_published": ("Whether the selection is published.", lambda run: run["published"]),
    "quad_reported": ("Whether the run is finished, its report written.", lambda run: run["reported"]),
}
"""Gauges of a run, by name: what it says, and how it is read from a status."""
OF_STAGES: Mapping[str, str] = {
    "rounds": "Rounds committed.",
    "scored_documents": "Documents scored.",
    "scored_tokens": "Tokens of the documents scored.",
    "accepted_documents": "Documents scored above the threshold.",
    "accepted_tokens": "Tokens of the documents scored above the threshold.",
    "cost_share": "Model FLOPs of the run so far over those of scoring the whole pool exactly.",
    "gain_left": "What scoring everything would still add, as a share of full scoring's gain over random.",
    "selected": "Whether the stage's documents are selected.",
    "trained": "Whether the stage is trained.",
}
"""Gauges of a stage, `quad_<name>`: what a status holds under the name."""
READABLE = "quad_run_readable"


class RunGauges(Collector):
    """The gauges of runs, read anew at every scrape; what a finished run says is kept, it changes no more."""

    def __init__(self, workspace: str, runs: Sequence[str] = ()) -> None:
        """Take gauges of the named runs of a workspace, of all that it holds where none is named."""
        self.workspace, self.runs = workspace, tuple(runs)
        self._finished: dict[str, Status] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Read the runs; a gauge that is not known of a run is left out."""
        found = {run: self._read(run) for run in self._names()}
        readable = GaugeMetricFamily(READABLE, "Whether the run's records can be read.", labels=["run"])
        for run, status in found.items():
            readable.add_metric([run], status is not None)
        yield readable
        statuses = [status for status in found.values() if status is not None]
        yield from _of_runs(statuses)
        yield from _of_stages(statuses)

    def _names(self) -> list[str]:
        if self.runs:
            return list(self.runs)
        store = open_store(self.workspace)
        return [run for run in list_runs(self.workspace) if store.exists(run_record_key(run))]

    def _read(self, run: str) -> Status | None:
        if run in self._finished:
            return self._finished[run]
        try:
            config = load_run(self.workspace, run)
            status = run_status(open_store(self.workspace), config)
        except (StorageError, ValueError):
            return None
        status["budget_tokens"] = config.selection.budget_tokens
        if status["reported"] and status["driven_by"] is None:
            self._finished[run] = status
        return status


def _of_runs(statuses: Sequence[Status]) -> Iterator[GaugeMetricFamily]:
    for name, (meaning, read) in OF_RUNS.items():
        family = GaugeMetricFamily(name, meaning, labels=["run"])
        for status in statuses:
            if (value := read(status)) is not None:
                family.add_metric([status["run"]], value)
        yield family


def _of_stages(statuses: Sequence[Status]) -> Iterator[GaugeMetricFamily]:
    for name, meaning in OF_STAGES.items():
        family = GaugeMetricFamily(f"quad_{name}", meaning, labels=["run", "stage"])
        for status in statuses:
            for stage in status["stages"]:
                if stage[name] is not None:
                    family.add_metric([status["run"], str(stage["stage"])], stage[name])
        yield family


def render_gauges(workspace: str, runs: Sequence[str] = ()) -> str:
    """Write the gauges once, in Prometheus's text format.

    Args:
        workspace: path or URI.
        runs: their names; none: all.
    """
    return generate_latest(_registry(workspace, runs)).decode()


def serve_gauges(workspace: str, runs: Sequence[str], host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serve the gauges under `/metrics` in a thread of this process.

    Args:
        workspace: path or URI.
        runs: their names; none: all.
        host: address to listen on.
        port: to listen on; 0: any that is free.
    """
    return start_http_server(port, host, _registry(workspace, runs))


def _registry(workspace: str, runs: Sequence[str]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunGauges(workspace, runs))
    return registry
