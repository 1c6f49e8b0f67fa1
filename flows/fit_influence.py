"""Flow: EK-FAC factors at a checkpoint, then the reference direction."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import RunConfig
from quad_tasks.fit_factors import fit_direction, fit_factors
from quad_tasks.timing import timed


@flow(name="fit-influence")
def fit_influence(config: RunConfig, version: str, checkpoint: str, reference: str) -> str:
    """Return the key of the reference direction at `checkpoint`.

    Args:
        config: the run's configuration.
        version: manifest key of the pool version the factors are fitted on.
        checkpoint: key of the checkpoint.
        reference: key of the reference tables.
    """
    with dask_cluster(config.compute), timed(config.workspace, config.run, "fit"):
        factors = fit_factors(config, version, checkpoint)
        return fit_direction(config, factors, checkpoint, reference)
