"""What scoring costs and what a stage may still spend, in model FLOPs beside those of scoring the whole pool exactly.

Everything that is read of the pool with a model counts: the pilot, rounds, documents scored again, a scorer's
calibration, hidden states, and an embedding by the model. What full scoring needs as well does not: factors and
direction. Costs follow from token counts and the model's shape (`core.lm.flops`): they are known before they are spent.

Shape suffixes: N documents, L distinct lengths, T lengths from 0 tokens on.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.flops import ModelSize, PassFlops
from quad_tasks.core.scorers import Scorer
from quad_tasks.manifests.run import Calibration, RoundCost
from quad_tasks.plugins import load_plugin
from quad_tasks.runtime.checkpoints import load_architecture
from quad_tasks.runtime.run import starting_checkpoint
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.stages.bandit.ledger import LedgerState
from quad_tasks.stages.pool.count_amounts import count_lengths
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

READ_DOCUMENTS = 128
"""Documents, anywhere in the pool, whose lengths one task reads."""
DEFAULT_COST_SHARE = 0.1
"""Share of the FLOPs of scoring the whole pool exactly; with a regression for the rest, more gained a pilot little."""


@dataclass(frozen=True)
class Reading:
    """How a run reads documents with its model, as far as cost follows from it.

    Attributes:
        attention: which blocks a direction covers.
        window_tokens: longest window.
        directions: scored along at once, one a reference set.
        states: whether hidden states of the whole pool are read.
        embedded_tokens: of every document at most, that the model reads to embed it; None: it does not.
    """

    attention: Attention
    window_tokens: int
    directions: int
    states: bool
    embedded_tokens: int | None


@dataclass(frozen=True)
class CostCap:
    """What all stages may spend, as a share of scoring the whole pool exactly.

    Attributes:
        share: of it, > 0.
        beside_reading: whether what is read before anything is scored comes on top of the share.
    """

    share: float
    beside_reading: bool


class Room(NamedTuple):
    """What may still be spent: documents to score, and FLOPs."""

    documents: int
    flops: float


def read_settings(config: RunConfig) -> Reading:
    """Read how a run reads documents from its configuration."""
    embedding = config.embedding
    return Reading(
        attention=config.factors.attention,
        window_tokens=config.model.window_tokens,
        directions=len(config.reference.named_sets()),
        states=config.bandit.features == "hidden_states",
        embedded_tokens=embedding.max_tokens if embedding.method == "model" else None,
    )


def cost_cap(config: RunConfig) -> CostCap | None:
    """Return the cap of a run's configuration; None: only `bandit.max_scored_share`, or nothing, limits scoring."""
    bandit = config.bandit
    if bandit.max_cost_share is not None:
        return CostCap(bandit.max_cost_share, beside_reading=False)
    if bandit.max_scored_share is not None or config.selection.mode == "instance":
        return None
    return CostCap(DEFAULT_COST_SHARE, beside_reading=True)


@functools.lru_cache(maxsize=2)
def read_size(store: Store, version: str, attention: Attention) -> ModelSize:
    """Read the shape of a pool version's model; every stage's model has it."""
    model = load_architecture(store, starting_checkpoint(store, version))
    return flops.model_size(model, find_blocks(model, attention))


def scorer_flops(size: ModelSize, scorer: Mapping[str, Any], directions: int) -> PassFlops:
    """Count how a window is read by a scorer.

    Args:
        size: of the model.
        scorer: keyword arguments of `core.influence.score_documents`, and of `low_rank` the `numbers` that its
            directions hold as factors.
        directions: scored along.
    """
    if scorer["scorer"] == CONDITIONAL_LOSS:
        return flops.conditional_loss_flops(size, directions)
    named: Scorer = load_plugin("scorers", scorer["scorer"])
    return named.flops(size, directions, scorer)


def scoring_costs(store: Store, version: str, reading: Reading, scorer: Mapping[str, Any], positions: Int64) -> Float64:
    """Count what scoring the documents of a pool version at `positions` takes, [N]."""
    return length_costs(store, version, reading, scorer, read_lengths(store, version, positions))


def read_lengths(store: Store, version: str, positions: Int64) -> Int64:
    """Read the tokens of the documents of a pool version at `positions`, [N]; many by workers, as they lie in it."""
    order = np.argsort(positions, kind="stable")
    cuts = range(0, len(order), READ_DOCUMENTS)
    items = [(store, version, positions[order[first : first + READ_DOCUMENTS]]) for first in cuts]
    one = len(items) == 1  # no work to spread
    read = [lengths_at(*items[0])] if one else map_tasks(lengths_at, items, "read lengths", "pieces")
    n_tokens_N = np.empty(len(positions), dtype=np.int64)
    n_tokens_N[order] = np.concatenate([np.empty(0, dtype=np.int64), *read])
    return n_tokens_N


def lengths_at(store: Store, version: str, positions: Int64) -> Int64:
    """Read the tokens of documents, on a worker."""
    n_tokens_N: Int64 = read_positions(store, version, positions, ["n_tokens"])["n_tokens"].to_numpy().astype(np.int64)
    return n_tokens_N


def scored_tokens(scores: Sequence[pa.Table]) -> Int64:
    """Join the tokens of what was scored, table by table, [N]."""
    n_tokens_N: Int64 = np.concatenate([np.empty(0, np.int64), *(table["n_tokens"].to_numpy() for table in scores)])
    return n_tokens_N


def length_costs(
    store: Store, version: str, reading: Reading, scorer: Mapping[str, Any], n_tokens_N: npt.NDArray[np.integer]
) -> Float64:
    """Count what scoring documents of `n_tokens_N` tokens takes, [N], with a pool version's model."""
    window = scorer_flops(read_size(store, version, reading.attention), scorer, reading.directions)
    return flops.document_flops(window, n_tokens_N.astype(np.int64), reading.window_tokens)


def cheapest_unscored(
    store: Store, version: str, reading: Reading, scorer: Mapping[str, Any], scored_T: Int64
) -> float:
    """Count what scoring the cheapest document takes that is none of those scored, `scored_T` of each number of tokens.

    Infinite where all were scored.
    """
    lengths, documents = count_lengths(store, version)
    scored_L = np.zeros(len(lengths), dtype=np.int64)
    counted = lengths < len(scored_T)
    scored_L[counted] = scored_T[lengths[counted]]
    left = lengths[documents > scored_L]
    return float(length_costs(store, version, reading, scorer, left).min(initial=np.inf))


@functools.lru_cache(maxsize=2)
def pool_cost(store: Store, version: str, reading: Reading, scorer: str = "exact") -> float:
    """Count what scoring a whole pool version takes, exactly or by another scorer without settings."""
    lengths, documents = count_lengths(store, version)
    return float((length_costs(store, version, reading, {"scorer": scorer}, lengths) * documents).sum())


@functools.lru_cache(maxsize=2)
def reading_cost(store: Store, version: str, reading: Reading) -> float:
    """Count what is read of a whole pool version before anything is scored."""
    return whole_pool_reading(read_size(store, version, reading.attention), *count_lengths(store, version), reading)


def whole_pool_reading(size: ModelSize, n_tokens_L: Int64, documents_L: Int64, reading: Reading) -> float:
    """Count what reading documents takes for hidden states and for an embedding by the model.

    Args:
        size: of the model.
        n_tokens_L: [L] tokens of a document.
        documents_L: [L] documents that have this many.
        reading: how documents are read.
    """
    cost_L = np.zeros(len(n_tokens_L))
    if reading.states:
        cost_L += flops.document_flops(flops.forward_flops(size), n_tokens_L, reading.window_tokens)
    if reading.embedded_tokens is not None:
        read_L, longest = np.minimum(n_tokens_L, reading.embedded_tokens), reading.embedded_tokens + 1
        cost_L += flops.document_flops(flops.forward_flops(size, head=False), read_L, longest)
    return float((cost_L * documents_L).sum())


def cost_limit(cap: CostCap | None, pool: float, read_before: float, stage_share: float) -> float:
    """Compute the FLOPs that all stages up to one may spend; what is read before anything is scored comes first.

    Args:
        cap: of all stages; None: no limit.
        pool: FLOPs of scoring the whole pool exactly.
        read_before: FLOPs of `reading_cost`.
        stage_share: share of the rest that the stages up to this one may spend.
    """
    if cap is None:
        return float("inf")
    for_scores = cap.share * pool - (0.0 if cap.beside_reading else read_before)
    return read_before + for_scores * stage_share


def round_cost(
    store: Store,
    version: str,
    reading: Reading,
    ledger: LedgerState,
    n_tokens_N: Int64,
    scorer: Mapping[str, Any],
    calibration: Calibration | None,
) -> RoundCost:
    """Count what a round cost, and what all of the run did so far.

    Args:
        store: the workspace.
        version: key of the pool version.
        reading: how documents are read.
        ledger: before the round.
        n_tokens_N: [N] tokens of the documents scored, again or for the first time.
        scorer: that scored them.
        calibration: done in the round, if any.
    """
    scoring = float(length_costs(store, version, reading, scorer, n_tokens_N).sum())
    calibrating = calibration.flops if calibration else 0.0
    read = reading_cost(store, version, reading)
    return RoundCost(
        scoring=scoring,
        calibration=calibrating,
        reading=read,
        so_far=read + ledger.flops + scoring + calibrating,
        pool=pool_cost(store, version, reading),
    )
