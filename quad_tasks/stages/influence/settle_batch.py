"""Stage: find how many tokens a batch has where `model.batch_tokens` is `auto`, once for a run.

The number is recorded: a run that is resumed on another device keeps to it, as its factors and scores depend on it by
rounding alone, but stand under keys that hold it.
"""

import torch

from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import AUTO, CONDITIONAL_LOSS, UNMEASURED_BATCH_TOKENS
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.lm.batch_memory import measure_batch_tokens
from quad_tasks.manifests.run import PinnedBatch
from quad_tasks.runtime.check_environment import scheduler_address
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.processes.memory import SMALLER_MODEL
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.run import check_run_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.influence.factor_memory import FACTOR_BYTES, covariance_bytes
from quad_tasks.storage.keys import batch_key
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.store import Store

SCORED_COPIES = 3
"""Of a direction that scoring holds at most: itself, and a copy of the weights to either side of it."""


@stage_task("settle batch")
def settle_batch(store: Store, config: RunConfig, checkpoint: str) -> RunConfig:
    """Return the run's configuration with the tokens of a batch as a number: the configured, recorded or measured one.

    Args:
        store: the workspace.
        config: the run's.
        checkpoint: key of the checkpoint whose batches are measured.
    """
    if config.model.batch_tokens != AUTO:
        return config
    key = batch_key(config.run)
    if not store.exists(key):
        item = (store, checkpoint, config, sharing_workers(config.compute))
        labels = ("measure a batch", "models")
        [found] = map_tasks(measure_batch, [item], *labels, on_gpu=True, smaller=SMALLER_MODEL)
        check_run_lease(store, config.run)
        write_manifest(store, key, found)
        notice(f"model.batch_tokens: auto is {found.batch_tokens:,} on {found.device}")
    return config.with_batch_tokens(read_manifest(PinnedBatch, store, key).batch_tokens)


def sharing_workers(compute: ComputeConfig) -> int:
    """Return how many workers share a GPU: all local ones do; those of another cluster are taken to have one each."""
    return 1 if scheduler_address(compute) else compute.workers


def measure_batch(store: Store, checkpoint: str, config: RunConfig, sharing: int) -> PinnedBatch:
    """Measure on a worker how many tokens a batch may have; on a CPU it is `UNMEASURED_BATCH_TOKENS`."""
    use, factors = config.model_use(), config.factors
    model, _ = load_checkpoint(store, checkpoint, use.dtype, use.device)
    if model.device.type != "cuda":
        return PinnedBatch(batch_tokens=UNMEASURED_BATCH_TOKENS, device=str(model.device))
    blocks = find_blocks(model, factors.attention)
    direction = FACTOR_BYTES * sum(block.shape[0] * block.shape[1] for block in blocks)
    covariances = covariance_bytes(blocks, factors.max_factor_width)
    kept = kept_bytes(config, sum(p.numel() for p in model.parameters()), covariances, direction)
    tokens = measure_batch_tokens(model, blocks, kept, use.window_tokens, sharing)
    return PinnedBatch(batch_tokens=tokens, device=torch.cuda.get_device_name(model.device))


def kept_bytes(config: RunConfig, parameters: int, covariance_bytes: int, direction_bytes: int) -> int:
    """Estimate what the larger of fit and scoring holds beside the model and a batch.

    A fit holds all covariances, or an eigenbasis as large, and eigenvalues; scoring `SCORED_COPIES` of each direction.
    The conditional loss has neither: it holds the checkpoint and each set's copy of it in float32.

    Args:
        config: the run's.
        parameters: of the model.
        covariance_bytes: of all its covariances.
        direction_bytes: of one direction.
    """
    sets = len(config.reference.named_sets())
    if config.bandit.scorer == CONDITIONAL_LOSS:
        return FACTOR_BYTES * parameters * (1 + sets)
    return max(covariance_bytes + direction_bytes, SCORED_COPIES * sets * direction_bytes)
