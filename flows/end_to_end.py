"""Flow: the experiment "end-to-end": the whole run on a sample of 10,000 documents."""

from typing import Any

from flows.select_data import select_data
from quad_tasks.config import RunConfig
from quad_tasks.experiments.end_to_end import describe, draw, prepare, tables
from quad_tasks.experiments.experiment import Experiment


def measure_end_to_end(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Run the selection on a sample; return the report's numbers and what they show."""
    settings = prepare(workspace, config, quick)
    return describe(settings, select_data(settings))


END_TO_END = Experiment("a whole run on 10,000 documents, step by step", measure_end_to_end, tables, draw)
