"""Flow: train on a stage's selection and on its random control, and measure both."""

from flows.dask_cluster import dask_cluster
from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.runtime.events import timed
from quad_tasks.runtime.prefect_runs import flow
from quad_tasks.stages.selection.select_documents import stage_selection
from quad_tasks.stages.selection.train import train_stage, training_run
from quad_tasks.storage.store import open_store


@flow(name="train-model", flow_run_name="{config.run} stage {stage.number}")
def train_model(config: RunConfig, stage: Stage, reference: str) -> str:
    """Return the key of the checkpoint the next stage goes on from."""
    store = open_store(config.workspace)
    with dask_cluster(config.compute), timed(store, config.run, "train"):
        return train_stage(store, stage, reference, training_run(config), stage_selection(config, stage.number))
