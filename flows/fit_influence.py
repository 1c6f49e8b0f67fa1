"""Flow: EK-FAC factors at a checkpoint, then the reference direction."""

from prefect import flow

from flows.cluster import dask_cluster
from flows.refresh_pool import refresh_pool
from quad_tasks.config import RunConfig
from quad_tasks.fit_factors import fit_direction, fit_factors
from quad_tasks.reference import prepare_reference
from quad_tasks.run import pinned_pool, pinned_reference, starting_checkpoint
from quad_tasks.timing import timed

Key = str | None


@flow(name="fit-influence", flow_run_name="{config.run}")
def fit_influence(config: RunConfig, version: Key = None, checkpoint: Key = None, reference: Key = None) -> str:
    """Return the key of the reference direction at `checkpoint`.

    Args:
        config: the run's configuration.
        version: manifest key of the pool version the factors are fitted on; None: the run's, or the pool as it is now.
        checkpoint: key of the checkpoint; None: the one the pool version was tokenized for.
        reference: key of the reference tables; None: the run's, or those of the reference files as they are now.
    """
    with dask_cluster(config.compute):
        version = version or pinned_pool(config) or refresh_pool(config)
        checkpoint = checkpoint or starting_checkpoint(config, version)
        reference = reference or pinned_reference(config) or prepare_reference(config)
        with timed(config.workspace, config.run, "fit"):
            factors = fit_factors(config, version, checkpoint)
            return fit_direction(config, factors, checkpoint, reference)
