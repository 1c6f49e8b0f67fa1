"""What a finished run committed, read once for all that the report tells of it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.influence import Checkpoint
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.runtime.checkpoints import read_checkpoint_manifest
from quad_tasks.stages.bandit.ledger import (
    Ranking,
    mark_at_random,
    read_chosen,
    read_cursors,
    read_ranking,
    read_scores,
)
from quad_tasks.stages.pool.count_amounts import count_amounts
from quad_tasks.storage import rounds
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store


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
        scores: what was scored, all stages; influences along directions that differ do not compare.
        ranking: what ranked the last stage's documents.
        ranked: the scores along its direction, of whichever stage.
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
    ranking: Ranking
    ranked: pa.Table
    chosen: pa.Table
    amounts: pa.Table

    @property
    def last_stage(self) -> int:
        """Number of the run's last stage."""
        return self.config.training.stages - 1


def read_run(store: Store, config: RunConfig, version: str, reference: str) -> FinishedRun:
    """Read what a finished run committed."""
    pool = read_version(store, version)
    stages = config.training.stages
    scores, ranking = read_scores(store, config.run, stages), read_ranking(store, config.run, stages - 1)
    opened = [rounds.read_round(store, config.run, number, 0).info.direction for number in range(stages)]
    along = [number for number, direction in enumerate(opened) if direction == ranking.direction]
    return FinishedRun(
        store,
        config,
        version,
        reference,
        pool,
        read_checkpoint_manifest(store, pool.model),
        scores,
        ranking,
        scores.filter(pa.array(np.isin(scores["stage"].to_numpy(), along))),
        read_chosen(store, config.run, stages),
        count_amounts(store, version),
    )


def read_random_draws(run: FinishedRun) -> pa.Table:
    """Keep the ranked scores whose documents pulls have covered: a random sample of each arm."""
    cursor = read_cursors(run.store, run.config.run, run.version, run.config.training.stages, run.ranking.direction)
    marked = mark_at_random(run.store, run.version, run.ranked, cursor)
    return marked.filter(marked.column("at_random"))
