"""Flow: the experiment "end-to-end": the whole run on a sample of 10,000 documents."""

from flows.select_data import select_data
from quad_tasks.config.schema import RunConfig
from quad_tasks.experiments.end_to_end import Result, describe, draw, lay_out, prepare
from quad_tasks.experiments.experiment import Experiment


def measure_end_to_end(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Run the selection on a sample; return the report's numbers and the claims."""
    settings = prepare(workspace, config, quick)
    return describe(settings, select_data(settings))


END_TO_END = Experiment("a whole run on 10,000 documents, step by step", Result, measure_end_to_end, lay_out, draw)
