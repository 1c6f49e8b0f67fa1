"""What a finished run committed, read once for all that the report tells of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.influence import Checkpoint
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.runtime.checkpoints import read_checkpoint_manifest
from quad_tasks.stages.bandit.ledger import mark_at_random, read_chosen, read_cursors, read_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part
from quad_tasks.storage.store import Store

AMOUNTS = pa.schema(
    [("arm", pa.int32()), ("source", pa.large_string()), ("documents", pa.int64()), ("tokens", pa.int64())]
)
MERGED_ROWS = 2**20
"""Amounts of single parts that are held before they are added up."""


@dataclass(frozen=True)
class FinishedRun:
    """A run and its tables.

    Attributes:
        store: the workspace.
        config: the run's configuration.
        version: key of the pool version's manifest.
        reference: key prefix of the reference.
        pool: the pool version.
        model: the manifest of the model that the pool was tokenized for.
        scores: what was scored, all stages.
        chosen: what was selected, all stages.
        amounts: documents and tokens of the pool by arm and source.
    """

    store: Store
    config: RunConfig
    version: str
    reference: str
    pool: PoolVersion
    model: Checkpoint
    scores: pa.Table
    chosen: pa.Table
    amounts: pa.Table

    @property
    def last_stage(self) -> int:
        """Number of the run's last stage."""
        return self.config.training.stages - 1

    @property
    def is_selected(self) -> npt.NDArray[np.bool_]:
        """Return, for each row of `scores`, whether its document was selected."""
        return np.isin(self.scores.column("position").to_numpy(), self.chosen.column("position").to_numpy())


def read_run(store: Store, config: RunConfig, version: str, reference: str) -> FinishedRun:
    """Read what a finished run committed."""
    pool = read_version(store, version)
    stages = config.training.stages
    return FinishedRun(
        store,
        config,
        version,
        reference,
        pool,
        read_checkpoint_manifest(store, pool.model),
        read_scores(store, config.run, stages),
        read_chosen(store, config.run, stages),
        read_amounts(store, pool),
    )


def read_amounts(store: Store, pool: PoolVersion) -> pa.Table:
    """Sum up a pool's documents and tokens by `arm` and `source`, part by part."""
    pieces, rows = [AMOUNTS.empty_table()], 0
    for part in pool.parts:
        table = read_part(store, part, ["arm", "source", "n_tokens"])
        counted = table.group_by(["arm", "source"], use_threads=False).aggregate(
            [("n_tokens", "count"), ("n_tokens", "sum")]
        )
        pieces.append(_named(counted))
        rows += counted.num_rows
        if rows > MERGED_ROWS:
            pieces = [_merge_amounts(pieces)]
            rows = 0
    return _merge_amounts(pieces)


def _merge_amounts(pieces: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(pieces).group_by(["arm", "source"], use_threads=False)
    return _named(grouped.aggregate([("documents", "sum"), ("tokens", "sum")]))


def _named(grouped: pa.Table) -> pa.Table:
    return grouped.rename_columns(AMOUNTS.names).cast(AMOUNTS)


def read_random_draws(run: FinishedRun) -> pa.Table:
    """Keep the scores of the last stage whose documents pulls have covered: a random sample of each arm."""
    direction = rounds.read_round(run.store, run.config.run, run.last_stage, 0).info.direction
    cursor = read_cursors(run.store, run.config.run, run.version, run.config.training.stages, direction)
    staged = run.scores.filter(pa.array(run.scores.column("stage").to_numpy() == run.last_stage))
    marked = mark_at_random(run.store, run.version, staged, cursor)
    return marked.filter(marked.column("at_random"))


def sum_tokens(table: pa.Table, by: str) -> dict[Any, int]:
    """Sum up a table's tokens by the values of a column."""
    grouped = table.group_by(by).aggregate([("n_tokens", "sum")])
    return dict(zip(grouped.column(by).to_pylist(), grouped.column("n_tokens_sum").to_pylist(), strict=True))
