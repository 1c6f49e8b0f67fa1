"""Flow: one of the shipped experiments, by name."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import ComputeConfig, ConfigError
from quad_tasks.experiments.bandit import run_bandit_experiment

EXPERIMENTS = {"bandit": run_bandit_experiment}


@flow(name="run-experiment", flow_run_name="{name}")
def run_experiment(name: str, workspace: str = "workspace", quick: bool = False) -> str:
    """Run an experiment on a local Dask cluster; return the key of its `result.json`.

    Args:
        name: which one.
        workspace: path or URI the result is kept under.
        quick: fewer repetitions.

    Raises:
        ConfigError: there is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment: expected one of {', '.join(EXPERIMENTS)}, found {name!r}")
    with dask_cluster(ComputeConfig()):
        return EXPERIMENTS[name](workspace, quick)
