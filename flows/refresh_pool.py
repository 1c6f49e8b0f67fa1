"""Flow: bring the pool up to date with its inputs: ingest, embed and assign what is new; a new pool version."""

from flows.dask_cluster import dask_cluster
from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Shard
from quad_tasks.runtime.contamination import HeldOutText
from quad_tasks.runtime.events import timed
from quad_tasks.runtime.prefect_runs import flow
from quad_tasks.runtime.prefect_ui import show_asset, show_refresh
from quad_tasks.stages.influence.prepare_reference import prepare_reference
from quad_tasks.stages.pool.cluster import assign_shards, fit_centroids, read_clustering
from quad_tasks.stages.pool.describe_tokens import describe_tokens, read_token_embeddings
from quad_tasks.stages.pool.embed import embed_shards, fit_embedder, is_current
from quad_tasks.stages.pool.ingest import ingest_shards, scan_inputs
from quad_tasks.stages.pool.lay_out_arms import lay_out_arms
from quad_tasks.stages.pool.measure_drift import measure_drift
from quad_tasks.stages.pool.prepare_model import FRESH, prepare_model
from quad_tasks.stages.pool.refresh import hold_pool_lease, known_first, last_version, recipe_of
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store, open_store


@flow(name="refresh-pool", flow_run_name="{config.pool.name}")
def refresh_pool(config: RunConfig, reference: str | None = None) -> str:
    """Return the manifest key of the pool version that holds the inputs as they are now.

    The last version's fresh model, embedder and centroids are kept until documents drifted too far from them.

    Args:
        config: names the pool and its model.
        reference: key of the reference tables, whose measured text a fresh model is not trained on; None: those of the
            reference files as they are now.
    """
    store, pool, seed = open_store(config.workspace), config.pool, config.seed
    with dask_cluster(config.compute), hold_pool_lease(store, pool.name):
        with timed(store, config.run, "model"):
            shards, held_out = scan_inputs(pool.inputs), _held_out(store, config, reference)
            fresh = config.model.source == FRESH
            last = last_version(store, pool.name, _recipe(store, config, FRESH, held_out)) if fresh else None
            model = last[1].model if last else _prepare_model(store, config, shards, held_out)
        with timed(store, config.run, "ingest"):
            names = ingest_shards(store, pool, shards, model, config.selection.budget_tokens)
        recipe = _recipe(store, config, model, held_out)
        with timed(store, config.run, "embed"):
            features = read_token_embeddings(store, pool.name, model)
        last = last_version(store, pool.name, recipe)
        if last is not None and not is_current(store, last[1].embedder, config.embedding):
            last = None
        if last is not None:
            names = known_first(last[1].shards, names)
        if last is not None and list(last[1].shards) == names and last[1].token_features == features:
            show_refresh(*last, before=last[1])
            return last[0]
        clustering = _cluster(store, config, names, model, last[1].clustering if last else None)
        with timed(store, config.run, "cluster"):
            drift = measure_drift(store, pool.name, names, clustering)
        if drift.drift > config.clustering.recluster_drift:
            clustering = _cluster(store, config, names, model, None)
            with timed(store, config.run, "cluster"):
                drift = measure_drift(store, pool.name, names, clustering)
        with timed(store, config.run, "embed"):
            describe_tokens(store, pool.name, names, features)
        with timed(store, config.run, "cluster"):
            same = last and (last[1].clustering, last[1].token_features) == (clustering, features)
            base = last[1] if last and same else None
            version = lay_out_arms(store, pool.name, seed, names, clustering, features, model, recipe, drift, base)
        made = read_version(store, version)
        show_asset(store, "pool version", version, [], **made.model_dump(include={"documents", "tokens", "arms"}))
        show_refresh(version, made, last[1] if last else None)
        return version


def _held_out(store: Store, config: RunConfig, reference: str | None) -> HeldOutText | None:
    """Return what a fresh model is not trained on; None without such a model, or where held-out text is not sought."""
    words = config.heldout.overlap_words
    if config.model.source != FRESH or words is None:
        return None
    return HeldOutText(reference or prepare_reference(store, config.reference, config.heldout, config.seed), words)


def _prepare_model(store: Store, config: RunConfig, shards: list[Shard], held_out: HeldOutText | None) -> str:
    attention, fields, device = config.factors.attention, config.pool.fields, config.compute.device
    every_s = config.training.checkpoint_every_s
    return prepare_model(store, config.model, attention, fields, config.seed, device, shards, held_out, every_s)


def _recipe(store: Store, config: RunConfig, model: str, held_out: HeldOutText | None) -> str:
    known = held_out.identity(store) if held_out else ()
    fields, embedding, clustering = config.pool.fields, config.embedding, config.clustering
    return recipe_of(config.model, fields, embedding, clustering, config.seed, model, known)


def _cluster(store: Store, config: RunConfig, names: list[str], model: str, kept: str | None) -> str:
    """Embed and assign all documents, by the clustering `kept` or by one fitted to them; return the clustering."""
    pool, seed = config.pool.name, config.seed
    with timed(store, config.run, "embed"):
        if kept is None:
            embedder = fit_embedder(store, pool, config.embedding, seed, names, model)
        else:
            embedder = read_clustering(store, kept).embedder
        embed_shards(store, pool, names, embedder, config.model.dtype, config.compute.device)
    with timed(store, config.run, "cluster"):
        clustering = kept or fit_centroids(store, pool, config.clustering, seed, names, embedder)
        assign_shards(store, pool, seed, names, clustering)
    return clustering
