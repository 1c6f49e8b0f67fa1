"""Flow: the whole run. Refresh the pool, then fit, pull and train, stage by stage; publish; report."""

from typing import Literal

from flows.dask_cluster import dask_cluster
from flows.fit_influence import fit_influence
from flows.refresh_pool import refresh_pool
from flows.run_bandit import run_bandit
from flows.train_model import train_model
from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.report.collect import read_findings, write_report
from quad_tasks.runtime.events import recorded_run, timed
from quad_tasks.runtime.findings import refuse_unwanted
from quad_tasks.runtime.prefect_runs import flow
from quad_tasks.runtime.run import (
    check_run_lease,
    hold_run_lease,
    open_run,
    pin_pool,
    pin_reference,
    pinned_pool,
    pinned_reference,
    starting_checkpoint,
)
from quad_tasks.runtime.status import current_stage
from quad_tasks.stages.influence.find_overlap import find_overlap
from quad_tasks.stages.influence.prepare_reference import prepare_reference
from quad_tasks.stages.influence.settle_batch import settle_batch
from quad_tasks.stages.selection.publish import publish_selection, published
from quad_tasks.storage.store import Store, open_store


@flow(name="select-data", flow_run_name="{config.run}")
def select_data(config: RunConfig, until: Literal["fit", "bandit", "train"] | None = None) -> str:
    """Run the whole selection, going on where an earlier attempt stopped; no document with held-out text is used.

    Args:
        config: the run's configuration.
        until: end after this step of the current stage, the first that is not trained; None: run to the report.

    Returns:
        The key of what the last step made: the report, or the direction, the choice or the checkpoint.
    """
    store, run = open_store(config.workspace), config.run
    open_run(store, config)
    with hold_run_lease(store, run), recorded_run(store, run), dask_cluster(config.compute):
        reference = pinned_reference(store, run) or _prepare_reference(store, config)
        version = pinned_pool(store, run) or pin_pool(store, run, refresh_pool(config, reference))
        with timed(store, run, "overlap"):
            found = find_overlap(store, run, version, reference, config.heldout.overlap_words)
        refuse_unwanted(run, found, config.diagnosis.stop_on)
        checkpoint = starting_checkpoint(store, version)
        settled = settle_batch(store, config, checkpoint)
        ends_in = current_stage(store, run, config.training) if until else None
        direction = ""
        for number in range(config.training.stages):
            if number == 0 or config.training.refit != "never":
                direction = fit_influence(settled, version, checkpoint, reference)
            if until == "fit" and number == ends_in:
                return direction
            stage = Stage(run, number, version, checkpoint, direction)
            chosen = run_bandit(settled, stage)
            if until == "bandit" and number == ends_in:
                return chosen
            check_run_lease(store, run)
            checkpoint = train_model(settled, stage, reference)
            if until == "train" and number == ends_in:
                return checkpoint
        check_run_lease(store, run)
        with timed(store, run, "publish"):
            publish_selection(store, published(config), version)
        report = write_report(store, config, version, reference)
    refuse_unwanted(run, read_findings(store, run), config.diagnosis.stop_on)
    return report


def _prepare_reference(store: Store, config: RunConfig) -> str:
    reference = prepare_reference(store, config.reference, config.heldout, config.seed)
    return pin_reference(store, config.run, reference)
