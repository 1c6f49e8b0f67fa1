"""Flow: EK-FAC factors at a checkpoint, then the reference direction."""

from flows.dask_cluster import dask_cluster
from flows.refresh_pool import refresh_pool
from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.runtime.events import timed
from quad_tasks.runtime.prefect_runs import flow
from quad_tasks.runtime.run import pinned_pool, pinned_reference, starting_checkpoint
from quad_tasks.stages.influence.adapt_copies import Adaptation, adapt_copies
from quad_tasks.stages.influence.find_overlap import search_positions
from quad_tasks.stages.influence.fit_direction import fit_direction
from quad_tasks.stages.influence.fit_factors import fit_factors
from quad_tasks.stages.influence.prepare_reference import prepare_reference
from quad_tasks.stages.influence.settle_batch import settle_batch
from quad_tasks.stages.selection.train import peak_rate
from quad_tasks.storage.store import open_store

Key = str | None


@flow(name="fit-influence", flow_run_name="{config.run}")
def fit_influence(config: RunConfig, version: Key = None, checkpoint: Key = None, reference: Key = None) -> str:
    """Return the key of the reference direction at `checkpoint`, or of what `conditional_loss` scores by in its place.

    Args:
        config: the run's configuration.
        version: manifest key of the pool version the factors are fitted on; None: the run's, or the pool as it is now.
        checkpoint: key of the checkpoint; None: the one the pool version was tokenized for.
        reference: key of the reference tables; None: the run's, or those of the reference files as they are now.
    """
    store, run = open_store(config.workspace), config.run
    with dask_cluster(config.compute):
        if reference is None:
            reference = pinned_reference(store, run)
        if reference is None:
            reference = prepare_reference(store, config.reference, config.heldout, config.seed)
        version = version or pinned_pool(store, run) or refresh_pool(config, reference)
        checkpoint = checkpoint or starting_checkpoint(store, version)
        use = settle_batch(store, config, checkpoint).model_use()
        held_out = search_positions(store, run, version, reference, config.heldout.overlap_words)
        with timed(store, run, "fit"):
            if config.bandit.scorer == CONDITIONAL_LOSS:
                passes, rate = config.bandit.adaptation_passes, peak_rate(config)
                how = Adaptation(passes, rate, config.training.batch_tokens, use, config.seed)
                return adapt_copies(store, checkpoint, reference, how)
            limit = config.compute.memory_limit
            factors = fit_factors(store, version, checkpoint, config.factors, use, config.seed, held_out, limit)
            return fit_direction(store, factors, checkpoint, reference, config.factors, use)
