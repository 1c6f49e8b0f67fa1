"""What a run's ledger says so far: the arms' statistics and every score, read forward once a process.

The ledger is the truth: state is read back from it, never passed between rounds. Reading goes on where the last one
stopped, so that a round costs what it committed and not what all rounds did.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config import RunConfig
from quad_tasks.core import bandit
from quad_tasks.records import BanditState, Stage
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import read_column, read_table
from quad_tasks.storage.store import Store, open_store

SCORE_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("arm", pa.int32()),
        ("n_tokens", pa.int64()),
        ("n_targets", pa.int64()),
        ("influence", pa.float64()),
        ("active", pa.bool_()),
    ]
)
"""A scored document; `active`: drawn for what was predicted of it, which makes its score no fair sample of its arm. The
ledger adds `accepted`: above τ; and, where there are several reference sets, the influence along each."""
SET_COLUMN = "influence_"
"""Before a reference set's name: the column of the influence along its direction alone."""
REFIT_GROWTH = 1.5
"""A regression is due again once there are this many times the scored documents it was fitted on: the sum of all fits
then costs three times the last."""


@dataclass
class Reading:
    """How far this process has read a run's ledger.

    Attributes:
        state: the arms before the next round.
        scored_N: [N] bool by position: scored in any round of any stage.
        stage: the stage it is in.
        round: the next round to read.
        direction: what the stage's scores were measured against; empty before its first round.
        scores: the stage's score tables in order; earlier stages' too where their direction is the same.
        accepted_tokens: tokens above τ in the stage's rounds before it.
        fitted_round: the round before which a regression was last due, 0 before the first.
        fitted_documents: documents scored before it.
    """

    state: BanditState
    scored_N: npt.NDArray[np.bool_]
    stage: int = 0
    round: int = 0
    direction: str = ""
    scores: list[pa.Table] = field(default_factory=list)
    accepted_tokens: int = 0
    fitted_round: int = 0
    fitted_documents: int = 0


def read_state(config: RunConfig, stage: Stage, number: int) -> Reading:
    """Read the ledger up to round `number` of a stage: all rounds of the stages before it, and its rounds before."""
    store = open_store(config.workspace)
    reading = _reading(config.workspace, stage.run, stage.version)
    if (reading.stage, reading.round) > (stage.number, number):
        _reading.cache_clear()
        reading = _reading(config.workspace, stage.run, stage.version)
    while reading.stage < stage.number:
        _read_rounds(store, stage.run, reading, rounds.count_rounds(store, stage.run, reading.stage))
        if reading.round > 0:
            reading.state = bandit.discount(reading.state, config.bandit.discount)
        reading.stage, reading.round, reading.accepted_tokens = reading.stage + 1, 0, 0
        reading.fitted_round, reading.fitted_documents = 0, 0
    _read_rounds(store, stage.run, reading, number)
    return reading


def stage_scores(reading: Reading, stage: Stage) -> pa.Table:
    """Return what was scored so far against the stage's direction, in the ledger's order."""
    return pa.concat_tables(
        [SCORE_SCHEMA.empty_table(), *(reading.scores if reading.direction == stage.direction else [])]
    )


@functools.lru_cache(maxsize=1)
def _reading(workspace: str, run: str, version: str) -> Reading:
    n_documents = load_arms(workspace, version)["n_documents"].to_numpy()
    return Reading(bandit.initial_state(n_documents), np.zeros(int(n_documents.sum()), dtype=np.bool_))


def _read_rounds(store: Store, run: str, reading: Reading, end: int) -> None:
    """Apply the rounds from where `reading` stands up to round `end` of its stage."""
    while reading.round < end:
        manifest = rounds.read_round(store, run, reading.stage, reading.round)
        table = rounds.read_round_table(store, manifest, "arms")
        state, arm = reading.state, table["arm"].to_numpy()
        cursor, pulls, reward_sum = state.cursor.copy(), state.pulls.copy(), state.reward_sum.copy()
        cursor[arm], pulls[arm], reward_sum[arm] = table["cursor"], table["pulls"], table["reward_sum"]
        moments = np.array(manifest.info["reward_moments"])
        reading.state = BanditState(state.n_documents, cursor, pulls, reward_sum, moments, reading.round + 1)
        _add_scores(reading, manifest.info["direction"], rounds.read_round_table(store, manifest, "scores"))
        reading.accepted_tokens += manifest.info["accepted_tokens"]
        reading.round += 1
        documents = sum(map(len, reading.scores))
        if documents >= REFIT_GROWTH * reading.fitted_documents:
            reading.fitted_round, reading.fitted_documents = reading.round, documents


def _add_scores(reading: Reading, direction: str, scores: pa.Table) -> None:
    if direction != reading.direction:
        reading.direction, reading.scores = direction, []
    reading.scores.append(scores.select(SCORE_SCHEMA.names))
    reading.scored_N[scores["position"].to_numpy()] = True


@functools.lru_cache(maxsize=2)
def load_arms(workspace: str, version: str) -> pa.Table:
    """Load a pool version's arm index, with each arm's first `position` in arm order."""
    store = open_store(workspace)
    manifest = read_manifest(store, version)
    table = read_table(store, f"{manifest['tables']}/arms.parquet", None)
    starts = np.cumsum([0, *[part["rows"] for part in manifest["parts"]]])
    position = starts[table["part"].to_numpy()] + table["row"].to_numpy()
    return table.append_column("position", pa.array(position))


@functools.lru_cache(maxsize=1)
def load_token_counts(workspace: str, version: str) -> npt.NDArray[np.int64]:
    """Load the tokens of every document of a pool version, [N] by position."""
    return read_column(open_store(workspace), version, "n_tokens").astype(np.int64)
