"""Flow: train on a stage's selection and on its random control, and measure both."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import RunConfig
from quad_tasks.records import Stage
from quad_tasks.timing import timed
from quad_tasks.train import train_stage


@flow(name="train-model", flow_run_name="{config.run} stage {stage.number}")
def train_model(config: RunConfig, stage: Stage, reference: str) -> str:
    """Return the key of the checkpoint the next stage goes on from."""
    with dask_cluster(config.compute), timed(config.workspace, config.run, "train"):
        return train_stage(config, stage, reference)
