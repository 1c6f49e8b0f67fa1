"""Stage: score a round's documents along the direction, at the checkpoint it was fitted at, chunks over Dask."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from quad_tasks.core.group_sums import group_sums
from quad_tasks.core.influence import NotFinite, Prepared, check_finite, prepare_directions, score_prepared
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.conditional_loss import conditional_losses
from quad_tasks.core.lm.model import pick_device
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.scorers import Direction
from quad_tasks.records import ModelUse, Stage
from quad_tasks.runtime.checkpoints import load_checkpoint, load_checkpoint_tokenizer, read_checkpoint
from quad_tasks.runtime.processes.memory import SMALLER_BATCH
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.bandit.ledger import SET_COLUMN
from quad_tasks.stages.bandit.plan_round import Plan
from quad_tasks.stages.influence.fit_direction import load_directions, read_direction
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

SMALLER_SCORING = f"set another bandit.scorer or fewer reference.sets, {SMALLER_BATCH}"
"""What to change where a device's memory is too small for scoring a window."""
Documents = Sequence[Sequence[int]]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@stage_task("score round")
def score_round(store: Store, stage: Stage, plan: Plan, use: ModelUse) -> list[pa.Table]:
    """Score a round's documents against the direction; one table a chunk, what is scored again last."""
    chunks = [*plan.chunks, plan.rescored] if plan.rescored else plan.chunks
    scorer = {name: value for name, value in plan.scorer.items() if name != "numbers"}
    items = [(store, stage, chunk, use, scorer) for chunk in chunks]
    return map_tasks(score_chunk, items, "score", "pulls", on_gpu=True, smaller=SMALLER_SCORING)


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
    documents = encode(load_checkpoint_tokenizer(store, direction.checkpoint), rows["text"].to_pylist())
    try:
        by_set, n_targets = _score(store, direction, documents, use, scorer)
    except NotFinite as error:
        place = describe_document(store, stage.version, positions[error.row])
        raise FloatingPointError(f"{place}: expected a finite influence, got NaN or infinity") from None
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


def _score(
    store: Store, direction: "LoadedDirections", documents: Documents, use: ModelUse, scorer: Mapping[str, Any]
) -> tuple[dict[str, Float64], Int64]:
    """Score documents, in smaller batches where the device's memory is too small; results and errors as below.

    What a batch may hold is remembered with the direction, so that the next documents begin there. The model, and what
    the scorer prepares, come first: a device without room for them has none for a smaller batch either.
    """
    score: Callable[[Documents, ModelUse], tuple[dict[str, Float64], Int64]]
    if direction.copies:
        score = functools.partial(_by_copies, direction)
    else:
        model, _ = load_checkpoint(store, direction.checkpoint, use.dtype, use.device)
        score = functools.partial(_along_directions, model, direction.prepare(model, scorer))
    least = min(use.window_tokens, max(map(len, documents), default=1))
    while True:
        fitting = replace(use, batch_tokens=direction.fitting.get(use.batch_tokens, use.batch_tokens))
        try:
            return score(documents, fitting)
        except torch.OutOfMemoryError:
            if fitting.batch_tokens <= least:
                raise
        # Outside the handler, which holds what the batch took
        torch.cuda.empty_cache()
        fewer = max(least, fitting.batch_tokens // 2)
        direction.fitting[use.batch_tokens] = fewer
        notice(f"scoring: a batch of {fitting.batch_tokens} tokens is too large for the device, {fewer} from here on")


def _along_directions(
    model: PreTrainedModel, prepared: Prepared, documents: Documents, use: ModelUse
) -> tuple[dict[str, Float64], Int64]:
    """Score documents along each set's direction; return influence per target by set, and targets, [N].

    Raises:
        NotFinite: a score is not; its row is the document's.
    """
    batches, owner = make_batches(documents, use.window_tokens, use.batch_tokens)
    try:
        along = score_prepared(model, batches, prepared)
    except NotFinite as error:
        raise NotFinite(int(owner[error.row])) from None
    n, owner_W = len(documents), owner.numpy()
    n_targets = group_sums(next(iter(along.values())).n_tokens, owner_W, n).astype(np.int64)
    return {name: group_sums(scores.influence, owner_W, n) / n_targets for name, scores in along.items()}, n_targets


def _by_copies(direction: "LoadedDirections", documents: Documents, use: ModelUse) -> tuple[dict[str, Float64], Int64]:
    """Score documents by the conditional loss under each set's copy; results and errors as `_along_directions`."""
    model, *copies = direction.copies
    losses_NK, targets_N = conditional_losses(model, copies, documents, use.window_tokens, use.batch_tokens)
    check_finite(losses_NK)
    per_target_NK = losses_NK / targets_N[:, None]
    return dict(zip(direction.shares, per_target_NK.T, strict=True)), targets_N


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
        fitting: tokens of a batch that the device's memory holds, where they are fewer than were asked for.
        copies: in place of directions the checkpoint itself and its copy adapted to each set, for the conditional loss.
    """

    checkpoint: str
    by_set: dict[str, Direction]
    shares: dict[str, float]
    copies: tuple[PreTrainedModel, ...] = ()
    fitting: dict[int, int] = field(default_factory=dict)
    _prepared: dict[tuple[Any, ...], Prepared] = field(default_factory=dict)

    def prepare(self, model: PreTrainedModel, scorer: Mapping[str, Any]) -> Prepared:
        """Return the directions as a scorer of this checkpoint takes them, made when they are first asked for."""
        key = tuple(sorted(scorer.items()))
        if key not in self._prepared:
            self._prepared.clear()
            self._prepared[key] = prepare_directions(model, self.by_set, **scorer)
        return self._prepared[key]


@functools.lru_cache(maxsize=1)
def load_on_device(store: Store, key: str, device: str) -> LoadedDirections:
    """Load a direction once a process.

    Copies are read in float32: what they differ by is less than bfloat16 tells apart.
    """
    made = read_direction(store, key)
    load_on_device.cache_clear()  # what is kept of the stage before goes first
    if made.adapted:
        keys = (made.checkpoint, *made.adapted.values())
        shares = {name: made.sets[name].share for name in made.adapted}
        copies = tuple(read_checkpoint(store, key, "float32", device)[0] for key in keys)
        return LoadedDirections(made.checkpoint, {}, shares, copies)
    directions, shares = load_directions(store, key)
    here: dict[str, Direction] = {
        name: {block: tensor.to(pick_device(device), torch.float32) for block, tensor in direction.items()}
        for name, direction in directions.items()
    }
    return LoadedDirections(made.checkpoint, here, shares)


def release_scoring() -> None:
    """Let go of models and directions that this process kept for scoring, on its device too: trainings share it."""
    load_checkpoint.cache_clear()
    load_on_device.cache_clear()
    torch.cuda.empty_cache()
