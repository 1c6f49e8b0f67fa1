"""Flow: bring the pool up to date with its inputs: ingest, embed and assign what is new; a new pool version."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.cluster import assign_shards, embedder_of, fit_centroids, lay_out_arms
from quad_tasks.config import RunConfig
from quad_tasks.embed import embed_shards, fit_embedder
from quad_tasks.ingest import ingest_shards, scan_inputs
from quad_tasks.model import prepare_model
from quad_tasks.refresh import kept_model, last_version, measure_drift, recipe, refreshing
from quad_tasks.timing import timed


@flow(name="refresh-pool", flow_run_name="{config.pool.name}")
def refresh_pool(config: RunConfig) -> str:
    """Return the manifest key of the pool version that holds the inputs as they are now.

    The last version's fresh model, embedder and centroids are kept until documents drifted too far from them.
    """
    where = (config.workspace, config.run)
    with dask_cluster(config.compute), refreshing(config):
        with timed(*where, "model"):
            shards = scan_inputs(config)
            model = kept_model(config) or prepare_model(config, shards)
        with timed(*where, "ingest"):
            names = ingest_shards(config, shards, model)
        last = last_version(config, model)
        if last is not None and last[1]["shards"] == names:
            return last[0]
        clustering = _cluster(config, names, model, last[1]["clustering"] if last else None)
        drift = measure_drift(config, names, clustering)
        if drift["drift"] > config.clustering.recluster_drift:
            clustering = _cluster(config, names, model, None)
            drift = measure_drift(config, names, clustering)
        with timed(*where, "cluster"):
            return lay_out_arms(config, names, clustering, model, {"recipe": recipe(config, model), "drift": drift})


def _cluster(config: RunConfig, names: list[str], model: str, kept: str | None) -> str:
    """Embed and assign all documents, by the clustering `kept` or by one fitted to them; return the clustering."""
    where = (config.workspace, config.run)
    with timed(*where, "embed"):
        embedder = fit_embedder(config, names, model) if kept is None else embedder_of(config, kept)
        embed_shards(config, names, embedder)
    with timed(*where, "cluster"):
        clustering = fit_centroids(config, names, embedder) if kept is None else kept
        assign_shards(config, names, clustering)
    return clustering
