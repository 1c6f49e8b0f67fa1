"""Stage: score a round's documents along the direction, at the checkpoint it was fitted at, chunks over Dask."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from quad_tasks.core.influence import NotFinite, score_directions
from quad_tasks.core.lm.model import encode, make_batches, pick_device
from quad_tasks.core.scorers import Direction
from quad_tasks.records import ModelUse, Stage
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.bandit.ledger import SET_COLUMN
from quad_tasks.stages.bandit.plan_round import Plan
from quad_tasks.stages.influence.fit_direction import load_directions, read_direction
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store


@stage_task("score round")
def score_round(store: Store, stage: Stage, plan: Plan, use: ModelUse) -> list[pa.Table]:
    """Score a round's documents against the direction; one table a chunk, what is scored again last."""
    chunks = [*plan.chunks, plan.rescored] if plan.rescored else plan.chunks
    scorer = {name: value for name, value in plan.scorer.items() if name != "numbers"}
    items = [(store, stage, chunk, use, scorer) for chunk in chunks]
    return map_tasks(score_chunk, items, "score", "pulls", on_gpu=True)


def score_chunk(
    store: Store, stage: Stage, positions: tuple[int, ...], use: ModelUse, scorer: Mapping[str, Any]
) -> pa.Table:
    """Score the documents at `positions`, windows of a document summed.

    With several reference sets, `influence` is the mean by weight of `influence_<set>`, each along its own direction.

    Raises:
        FloatingPointError: a score is not finite; the message names the document and its file.
    """
    columns = ["id", "source", "arm", "text"]
    rows = read_positions(store, stage.version, np.array(positions), columns)
    direction = load_on_device(store, stage.direction, use.device)
    model, tokenizer = load_checkpoint(store, direction.checkpoint, use.dtype, use.device)
    documents = encode(tokenizer, rows["text"].to_pylist())
    batches, owner = make_batches(documents, use.window_tokens, use.batch_tokens)
    try:
        along = score_directions(model, batches, direction.by_set, **scorer)
    except NotFinite as error:
        place = describe_document(store, stage.version, positions[int(owner[error.row])])
        raise FloatingPointError(f"{place}: expected a finite influence, got NaN or infinity") from None
    by_document = functools.partial(np.bincount, owner.numpy(), minlength=len(positions))
    n_targets = by_document(weights=next(iter(along.values())).n_tokens)
    by_set = {name: by_document(weights=scores.influence) / n_targets for name, scores in along.items()}
    table = pa.table(
        {
            "position": np.array(positions, dtype=np.int64),
            "id": rows["id"],
            "source": rows["source"],
            "arm": rows["arm"],
            "n_tokens": np.array([len(ids) for ids in documents]),
            "n_targets": n_targets.astype(np.int64),
            "influence": sum(direction.shares[name] * influence for name, influence in by_set.items()),
        }
    )
    for name, influence in by_set.items() if len(by_set) > 1 else ():
        table = table.append_column(f"{SET_COLUMN}{name}", pa.array(influence))
    return table


def describe_document(store: Store, version: str, position: int) -> str:
    """Name the document at a position of the pool by its id and its file."""
    row = read_positions(store, version, np.array([position]), ["id", "shard"]).to_pylist()[0]
    shard = read_shard(store, read_version(store, version).pool, row["shard"])
    return f"document {row['id']!r} of {shard.input.uri}"


@dataclass(frozen=True)
class LoadedDirections:
    """A direction as scoring needs it, in this process.

    Attributes:
        checkpoint: key of the checkpoint it was fitted at: influence along it is measured there.
        by_set: each reference set's direction, [O, I] float32 by block, on the device.
        shares: each set's share of the weight.
    """

    checkpoint: str
    by_set: dict[str, Direction]
    shares: dict[str, float]


@functools.lru_cache(maxsize=2)
def load_on_device(store: Store, key: str, device: str) -> LoadedDirections:
    """Load a direction once a process."""
    directions, shares = load_directions(store, key)
    here: dict[str, Direction] = {
        name: {block: tensor.to(pick_device(device), torch.float32) for block, tensor in direction.items()}
        for name, direction in directions.items()
    }
    return LoadedDirections(read_direction(store, key).checkpoint, here, shares)
