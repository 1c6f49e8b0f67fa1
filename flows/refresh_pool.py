"""Flow: bring the pool up to date with its inputs: ingest, embed and cluster what is new; a new pool version."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.cluster import assign_shards, fit_centroids, lay_out_arms
from quad_tasks.config import RunConfig
from quad_tasks.embed import embed_shards, fit_embedder
from quad_tasks.ingest import ingest_shards, scan_inputs
from quad_tasks.model import prepare_model
from quad_tasks.timing import timed


@flow(name="refresh-pool")
def refresh_pool(config: RunConfig) -> str:
    """Return the manifest key of the pool version that holds the inputs as they are now."""
    where = (config.workspace, config.run)
    with dask_cluster(config.compute):
        with timed(*where, "model"):
            shards = scan_inputs(config)
            model = prepare_model(config, shards)
        with timed(*where, "ingest"):
            names = ingest_shards(config, shards, model)
        with timed(*where, "embed"):
            embedder = fit_embedder(config, names, model)
            embed_shards(config, names, embedder)
        with timed(*where, "cluster"):
            tables = fit_centroids(config, names, embedder)
            assign_shards(config, names, embedder, tables)
            return lay_out_arms(config, names, embedder, tables, model)
