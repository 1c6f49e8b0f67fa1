"""Every key of the workspace, one function each: where a pool, a model, factors and a run keep what they keep.

Arguments named like a thing (`clustering`, `checkpoint`, `version`) are its key; `pool`, `run`, `shard` are names.
"""


def manifest_key(folder: str) -> str:
    """Return the key of the manifest that commits a folder."""
    return f"{folder}/manifest.json"


# ------------------------------------------------------------------ the pool


def pool_folder(pool: str) -> str:
    """Return the folder of a pool."""
    return f"pools/{pool}"


def documents_key(pool: str, shard: str) -> str:
    """Return the key of a shard's documents."""
    return f"pools/{pool}/documents/{shard}.parquet"


def hashes_key(pool: str, shard: str) -> str:
    """Return the key of the hashes of a shard's texts and ids."""
    return f"pools/{pool}/hashes/{shard}.npy"


def dealt_hashes_folder(pool: str) -> str:
    """Return the folder of hashes dealt out by partition: deleted once duplicates are found, or by a later search."""
    return f"pools/{pool}/dealt_hashes"


def dealt_hashes_key(pool: str, digest: str, bundle: int) -> str:
    """Return the key of what a bundle of shards has of every partition; `digest`: of all shards and cuts."""
    return f"{dealt_hashes_folder(pool)}/{digest[:12]}-{bundle:05d}.bin"


def set_aside_key(pool: str, shard: str) -> str:
    """Return the key of what a shard set aside."""
    return f"pools/{pool}/set_aside/{shard}.parquet"


def shard_manifest_key(pool: str, shard: str) -> str:
    """Return the key of the manifest that commits a shard."""
    return f"pools/{pool}/shards/{shard}.json"


def embedder_folder(pool: str, digest: str) -> str:
    """Return the folder of an embedder."""
    return f"pools/{pool}/embedders/{digest[:12]}"


def embedder_arrays_key(embedder: str) -> str:
    """Return the key of a fitted embedder's arrays."""
    return f"{embedder}/embedder.safetensors"


def embeddings_key(pool: str, embedder: str, shard: str) -> str:
    """Return the key of a shard's embeddings under one embedder."""
    return f"pools/{pool}/embeddings/{embedder.rsplit('/', 1)[-1]}/{shard}.npy"


def token_features_folder(pool: str, digest: str) -> str:
    """Return the folder of the token features that one checkpoint gives."""
    return f"pools/{pool}/token_features/{digest[:12]}"


def token_embeddings_key(features: str) -> str:
    """Return the key of the projected input embeddings that token features are made from."""
    return f"{features}/embeddings.npy"


def shard_token_features_key(features: str, shard: str) -> str:
    """Return the key of a shard's token features."""
    return f"{features}/shards/{shard}.npy"


def clusterings_folder(pool: str) -> str:
    """Return the folder of a pool's clusterings."""
    return f"pools/{pool}/clusterings"


def clustering_folder(pool: str, digest: str) -> str:
    """Return the folder of a clustering."""
    return f"{clusterings_folder(pool)}/{digest[:12]}"


def centroids_key(clustering: str) -> str:
    """Return the key of a clustering's centroids."""
    return f"{clustering}/centroids.npy"


def arm_spread_key(clustering: str) -> str:
    """Return the key of the arms' radii and sizes when their centroids were trained."""
    return f"{clustering}/spread.safetensors"


def dealt_distances_folder(clustering: str) -> str:
    """Return the folder of distances dealt out by arms: deleted once drift is measured, or by a later measurement."""
    return f"{clustering}/dealt"


def dealt_distances_key(clustering: str, digest: str, bundle: int) -> str:
    """Return the key of what a bundle of shards has of every range of arms; `digest`: of all shards and cuts."""
    return f"{dealt_distances_folder(clustering)}/{digest[:12]}-{bundle:05d}.bin"


def assignments_key(clustering: str, shard: str) -> str:
    """Return the key of a shard's assignments under one clustering."""
    return f"{clustering}/assignments/{shard}.parquet"


def tables_folder(pool: str, digest: str) -> str:
    """Return the folder of the tables of one layout in arm order."""
    return f"pools/{pool}/tables/{digest[:12]}"


def arm_index_key(tables: str) -> str:
    """Return the key of a layout's arm index."""
    return f"{tables}/arms.parquet"


def part_key(tables: str, group: int, part: int) -> str:
    """Return the key of one part of a layout: the parts that one task writes are a group."""
    return f"{tables}/arms/part-{group:05d}-{part:02d}.parquet"


def layer_sums_key(tables: str) -> str:
    """Return the key of the sums by arm of what a layout wrote."""
    return f"{tables}/sums.safetensors"


def merged_block_key(tables: str, block: int) -> str:
    """Return the key of a block of the rows of merged layers."""
    return f"{tables}/merged/block-{block:05d}.npy"


def shuffle_folder(tables: str) -> str:
    """Return the folder of what a layout passes on the way to its parts."""
    return f"{tables}/shuffle"


def sorted_bundle_key(tables: str, bundle: int) -> str:
    """Return the key of a bundle of shards in arm order."""
    return f"{shuffle_folder(tables)}/bundles/{bundle:05d}.bin"


def bundle_record_key(tables: str, bundle: int) -> str:
    """Return the key of the record that a bundle is finished."""
    return f"{shuffle_folder(tables)}/bundles/{bundle:05d}.safetensors"


def group_record_key(tables: str, group: int) -> str:
    """Return the key of the record that a group of parts is finished."""
    return f"{shuffle_folder(tables)}/groups/{group:05d}.safetensors"


def layout_ranges_key(tables: str) -> str:
    """Return the key of where each range of groups begins."""
    return f"{shuffle_folder(tables)}/ranges.npy"


def version_key(pool: str, number: int) -> str:
    """Return the key of a pool version's manifest, which names the version."""
    return f"pools/{pool}/v{number:04d}/manifest.json"


def version_number_key(pool: str, number: int) -> str:
    """Return the key of the record that a version's number was given."""
    return f"pools/{pool}/numbers/{number:04d}.json"


def states_folder(version: str, digest: str) -> str:
    """Return the folder of a pool version's hidden states and losses."""
    return f"{version.rsplit('/', 1)[0]}/states-{digest[:12]}"


def states_block_key(states: str, block: int) -> str:
    """Return the key of one block of hidden states and losses."""
    return f"{states}/block-{block:06d}.npy"


# ------------------------------------------------------------------ models, references, influence


def model_folder(digest: str) -> str:
    """Return the folder of a starting checkpoint."""
    return f"models/{digest[:12]}"


def optimizer_key(checkpoint: str) -> str:
    """Return the key of a checkpoint's optimizer state."""
    return f"{checkpoint}/optimizer.safetensors"


def reference_folder(digest: str) -> str:
    """Return the folder of reference and held-out tables."""
    return f"references/{digest[:12]}"


def reference_table_key(reference: str, part: str) -> str:
    """Return the key of one of them: `reference`, `measured` or `heldout`."""
    return f"{reference}/{part}.parquet"


def factors_folder(digest: str) -> str:
    """Return the folder of factors, or of a direction."""
    return f"factors/{digest[:12]}"


def adapted_key(folder: str, number: int) -> str:
    """Return the key of a copy of the checkpoint adapted to a reference set, by the set's number."""
    return f"{folder}/adapted-{number:02d}"


def factors_key(factors: str) -> str:
    """Return the key of the factors' tensors."""
    return f"{factors}/factors.safetensors"


def direction_key(direction: str) -> str:
    """Return the key of a direction's tensors."""
    return f"{direction}/direction.safetensors"


def chunk_key(folder: str, kind: str, number: int) -> str:
    """Return the key of a part of a fit that is kept until it ends.

    Sums of a chunk: `covariance` (by chunk and group of blocks), `eigenvalue` (by chunk), `gradient` (by first
    document); `basis`: eigenvectors of a group of blocks.
    """
    width = 7 if kind == "gradient" else 5
    return f"{folder}/chunks/{kind}-{number:0{width}d}.safetensors"


# ------------------------------------------------------------------ a run


def run_folder(run: str) -> str:
    """Return the folder of a run."""
    return f"runs/{run}"


def run_record_key(run: str) -> str:
    """Return the key of a run's configuration."""
    return f"runs/{run}/config.json"


def pinned_pool_key(run: str) -> str:
    """Return the key of the record of the pool version a run keeps to."""
    return f"runs/{run}/pool.json"


def pinned_reference_key(run: str) -> str:
    """Return the key of the record of the reference tables a run keeps to."""
    return f"runs/{run}/reference.json"


def batch_key(run: str) -> str:
    """Return the key of the record of how many tokens a batch of the run has."""
    return f"runs/{run}/batch.json"


def overlap_manifest_key(run: str) -> str:
    """Return the key of the manifest that commits the pool documents which hold held-out text."""
    return f"runs/{run}/overlap.json"


def overlap_table_key(run: str) -> str:
    """Return the key of the table of these documents."""
    return f"runs/{run}/overlap.parquet"


def times_folder(run: str) -> str:
    """Return the folder of the times a run's steps took."""
    return f"runs/{run}/times"


def events_folder(run: str) -> str:
    """Return the folder of a run's events, an object each."""
    return f"runs/{run}/events"


def event_log_key(run: str) -> str:
    """Return the key of a run's events in one file, as they were when its last driver ended."""
    return f"runs/{run}/events.jsonl"


def stage_folder(run: str, stage: int) -> str:
    """Return the folder of a stage."""
    return f"runs/{run}/stage-{stage:02d}"


def round_folder(run: str, stage: int, round: int) -> str:
    """Return the folder of a round."""
    return f"{stage_folder(run, stage)}/round-{round:05d}"


def predictions_folder(run: str, stage: int) -> str:
    """Return the folder of a stage's predictions of the pool, which its rounds use and its end deletes."""
    return f"{stage_folder(run, stage)}/predictions"


def prediction_folder(run: str, stage: int, round: int) -> str:
    """Return the folder of the pool's predictions by what was scored before a round."""
    return f"{predictions_folder(run, stage)}/{round:05d}"


def rankings_folder(run: str, stage: int, name: str) -> str:
    """Return the folder of the rankings of the pool that a choice is made from, deleted once it is made."""
    return f"{stage_folder(run, stage)}/rankings/{name}"


def choice_key(run: str, stage: int, name: str) -> str:
    """Name a choice of documents of a stage: `selected`, `random-<seed>`, `general-<share>`, `gate-<which>`."""
    return f"{stage_folder(run, stage)}/{name}"


def choice_manifest_key(choice: str) -> str:
    """Return the key of the manifest that commits a choice."""
    return f"{choice}.json"


def choice_table_key(choice: str) -> str:
    """Return the key of a choice's documents."""
    return f"{choice}.parquet"


def gate_key(run: str, stage: int) -> str:
    """Return the key of the verdict on a stage's refitted direction."""
    return f"{stage_folder(run, stage)}/gate.json"


def trained_key(run: str, stage: int, name: str) -> str:
    """Return the key of what a stage trained (`selected-<seed>`, ...) or only measured (`before`)."""
    return f"{stage_folder(run, stage)}/trained/{name}"


def losses_key(trained: str) -> str:
    """Return the key of what a trained model was measured at."""
    return f"{trained}/losses.json"


def steps_key(trained: str) -> str:
    """Return the key of a training's last step checkpoint, which goes when the training is measured."""
    return f"{trained}/steps.safetensors"


def trainer_log_key(trained: str) -> str:
    """Return the key of what the user's trainer printed."""
    return f"{trained}/trainer.log"


def selection_folder(run: str) -> str:
    """Return the folder of a run's published selection."""
    return f"runs/{run}/selection"


def mixture_key(selection: str) -> str:
    """Return the key of a published selection's mixture."""
    return f"{selection}/mixture.json"


def selection_part_key(selection: str, name: str) -> str:
    """Return the key of a part of a published selection."""
    return f"{selection}/{name}"


def report_folder(run: str) -> str:
    """Return the folder of a run's report."""
    return f"runs/{run}/report"


def report_key(run: str) -> str:
    """Return the key of a report's numbers."""
    return f"{report_folder(run)}/report.json"


def report_page_key(run: str) -> str:
    """Return the key of a report's page."""
    return f"{report_folder(run)}/index.html"
