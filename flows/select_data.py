"""Flow: the whole run. Refresh the pool, then fit, pull and train, stage by stage; publish; report."""

from typing import Literal

from prefect import flow

from flows.cluster import dask_cluster
from flows.fit_influence import fit_influence
from flows.refresh_pool import refresh_pool
from flows.run_bandit import run_bandit
from flows.train_model import train_model
from quad_tasks.config import RunConfig
from quad_tasks.current import current_stage
from quad_tasks.findings import refuse_unwanted
from quad_tasks.publish import publish_selection
from quad_tasks.records import Stage
from quad_tasks.reference import prepare_reference
from quad_tasks.report import read_findings, write_report
from quad_tasks.run import (
    check_driver,
    driving,
    open_run,
    pin_pool,
    pin_reference,
    pinned_pool,
    pinned_reference,
    starting_checkpoint,
)
from quad_tasks.timing import timed


@flow(name="select-data", flow_run_name="{config.run}")
def select_data(config: RunConfig, until: Literal["fit", "bandit", "train"] | None = None) -> str:
    """Run the whole selection, going on where an earlier attempt stopped.

    Args:
        config: the run's configuration.
        until: end after this step of the current stage, the first that is not trained; None: run to the report.

    Returns:
        The key of what the last step made: the report, or the direction, the choice or the checkpoint.
    """
    open_run(config)
    with driving(config), dask_cluster(config.compute):
        reference = pinned_reference(config) or pin_reference(config, prepare_reference(config))
        version = pinned_pool(config) or pin_pool(config, refresh_pool(config))
        checkpoint = starting_checkpoint(config, version)
        ends_in = current_stage(config) if until else None
        direction = ""
        for number in range(config.training.stages):
            if number == 0 or config.training.refit != "never":
                direction = fit_influence(config, version, checkpoint, reference)
            if until == "fit" and number == ends_in:
                return direction
            stage = Stage(config.run, number, version, checkpoint, direction)
            chosen = run_bandit(config, stage)
            if until == "bandit" and number == ends_in:
                return chosen
            check_driver(config.workspace, config.run)
            checkpoint = train_model(config, stage, reference)
            if until == "train" and number == ends_in:
                return checkpoint
        check_driver(config.workspace, config.run)
        with timed(config.workspace, config.run, "publish"):
            publish_selection(config, version)
        report = write_report(config, version, reference)
    refuse_unwanted(config, read_findings(config))
    return report
