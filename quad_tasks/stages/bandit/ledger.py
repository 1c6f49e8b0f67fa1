"""What a run's ledger says so far: the arms' statistics and every score, read forward once a process.

The ledger is the truth: state is read back from it, never passed between rounds. Reading goes on where the last one
stopped, so that a round costs what it committed and not what all rounds did.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core import bandit, carry_over
from quad_tasks.core.evaluation.homogeneity import ArmSpread, add_pulls, no_spread
from quad_tasks.core.random_order import drawn_at_random
from quad_tasks.core.selection.ranking import arms_at
from quad_tasks.manifests.run import Choice
from quad_tasks.records import BanditState, Stage
from quad_tasks.stages.bandit.score_index import ScoreIndex, add_scores, empty_index, insert_positions, is_among
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import (
    arm_index_key,
    choice_key,
    choice_manifest_key,
    choice_table_key,
    manifest_key,
    round_folder,
)
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import Store

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
"""A scored document; `active`: it was drawn for its prediction, no pull had covered it yet. A later pull may:
`mark_at_random` says which scores are a random sample of their arms. The ledger adds `accepted`: above τ; and, where
there are several reference sets, the influence along each."""
SET_COLUMN = "influence_"
"""Before a reference set's name: the column of the influence along its direction alone."""
SPREAD_COLUMNS = ("arm", "n_scored", "reward", "reward_variance")
"""Of a round's pulls, that `add_pulls` takes."""
REFIT_GROWTH = 1.5
"""A regression is due again once there are this many times the scored documents it was fitted on: the sum of all fits
then costs three times the last."""


@dataclass
class LedgerState:
    """How far this process has read a run's ledger.

    Attributes:
        state: the arms before the next round.
        scored_S: [S] positions of the documents scored in any round of any stage, ascending.
        scored_lengths_T: [T] how many of them have this many tokens.
        known: those scored along the direction.
        along_another_S: positions of the others, ascending.
        stage: the stage it is in.
        round: the next round to read.
        direction: what the stage's scores were measured against; empty before its first round.
        scores: the stage's score tables in order; earlier stages' too where their direction is the same.
        spread: of the documents that the stage's pulls before it covered.
        stage_tokens: tokens scored in the stage's rounds before it.
        accepted_tokens: of these, in documents above τ.
        flops: of the model, spent on scoring and calibration in all rounds before it.
        cut: whether the cap on cost cut the last round of the stage.
        left: what scoring everything was last estimated to add in the stage, as a share of full scoring's gain.
        first_left: the stage's first such estimate.
        fitted_round: the round before which a regression was last due, 0 before the first.
        fitted_documents: documents scored before it.
        fitted_cursor: [K] the arms' cursors before it.
        pulled: [P] the arms pulled, by round of the stage.
    """

    state: BanditState
    scored_S: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    scored_lengths_T: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    known: ScoreIndex = field(default_factory=empty_index)
    along_another_S: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    stage: int = 0
    round: int = 0
    direction: str = ""
    scores: list[pa.Table] = field(default_factory=list)
    spread: ArmSpread = field(default_factory=lambda: no_spread(0))
    stage_tokens: int = 0
    accepted_tokens: int = 0
    flops: float = 0.0
    cut: bool = False
    left: float | None = None
    first_left: float | None = None
    fitted_round: int = 0
    fitted_documents: int = 0
    fitted_cursor: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    pulled: list[npt.NDArray[np.int64]] = field(default_factory=list)

    @property
    def n_documents(self) -> int:
        """Documents of the pool version."""
        return int(self.state.n_documents.sum())


def read_ledger(store: Store, stage: Stage, number: int, discount: float) -> LedgerState:
    """Read the ledger up to round `number` of a stage: all rounds of the stages before it, and its rounds before.

    Args:
        store: the workspace.
        stage: the stage.
        number: the first round that is not read.
        discount: γ, what arms' statistics of the stage before still count.
    """
    ledger = _open_ledger(store, stage.run, stage.version)
    if (ledger.stage, ledger.round) > (stage.number, number):
        _open_ledger.cache_clear()
        ledger = _open_ledger(store, stage.run, stage.version)
    while ledger.stage < stage.number:
        _read_rounds(store, stage.run, ledger, len(list_stage_rounds(store, stage.run, ledger.stage)))
        if ledger.round > 0:
            ledger.state = carry_over.discount(ledger.state, discount)
        ledger.stage, ledger.round, ledger.stage_tokens, ledger.accepted_tokens = ledger.stage + 1, 0, 0, 0
        ledger.spread = no_spread(len(ledger.state.n_documents))
        ledger.fitted_round, ledger.fitted_documents, ledger.pulled, ledger.cut = 0, 0, [], False
        ledger.left = ledger.first_left = None
    _read_rounds(store, stage.run, ledger, number)
    return ledger


def stage_scores(ledger: LedgerState, stage: Stage) -> pa.Table:
    """Return what was scored so far against the stage's direction, in the ledger's order."""
    return pa.concat_tables(
        [SCORE_SCHEMA.empty_table(), *(ledger.scores if ledger.direction == stage.direction else [])]
    )


def mark_at_random(store: Store, version: str, scores: pa.Table, cursor: npt.NDArray[np.int64]) -> pa.Table:
    """Append `at_random` to scores along one direction: whether a pull has covered the document.

    Args:
        store: the workspace.
        version: key of the pool version.
        scores: `position` and `arm` of documents scored along one direction.
        cursor: [K] the arms' cursors, of the same moment as the scores.
    """
    first = load_arms(store, version)["position"].to_numpy()
    positions, arms = scores["position"].to_numpy(), scores["arm"].to_numpy()
    return scores.append_column("at_random", pa.array(drawn_at_random(positions, arms, first, cursor)))


def read_cursors(store: Store, run: str, version: str, stages: int, direction: str) -> npt.NDArray[np.int64]:
    """Read how many documents of each arm the pulls of a run's first `stages` stages had covered, [K].

    Args:
        store: the workspace.
        run: the run's name.
        version: key of the pool version.
        stages: how many stages are read.
        direction: the last round along it counts.
    """
    cursor = np.zeros(load_arms(store, version).num_rows, dtype=np.int64)
    for number in range(stages):
        for committed in list_stage_rounds(store, run, number):
            if committed.info.direction == direction:
                pulls = rounds.read_round_table(store, committed, "pulls")
                end = pulls["cursor"].to_numpy() + pulls["n_documents"].to_numpy()
                np.maximum.at(cursor, pulls["arm"].to_numpy(), end)
    return cursor


def list_stage_rounds(store: Store, run: str, number: int, wanted: int | None = None) -> list[rounds.RoundManifest]:
    """List a stage's committed rounds, in order: all that its documents were chosen from.

    Args:
        store: the workspace.
        run: the run's name.
        number: of the stage.
        wanted: how many rounds the stage ended with; None: as many as its choice says, any number before there is one.

    Raises:
        LedgerGap: there are less or more; a last round that is gone leaves no gap of its own.
    """
    committed = rounds.list_rounds(store, run, number)
    chosen = choice_key(run, number, "selected")
    if wanted is None and store.exists(choice_manifest_key(chosen)):
        wanted = read_choice(store, chosen).rounds
    if wanted is not None and wanted != len(committed):
        last = manifest_key(round_folder(run, number, wanted - 1))
        raise rounds.LedgerGap(
            f"{last!r} in {store.uri}: expected it as the last round of stage {number}, found {len(committed)} rounds"
        )
    return committed


@functools.lru_cache(maxsize=1)
def _open_ledger(store: Store, run: str, version: str) -> LedgerState:
    n_documents_K = load_arms(store, version)["n_documents"].to_numpy()
    return LedgerState(bandit.initial_state(n_documents_K), spread=no_spread(len(n_documents_K)))


def _read_rounds(store: Store, run: str, ledger: LedgerState, end: int) -> None:
    """Apply the rounds from where `ledger` stands up to round `end` of its stage.

    A round is read before any of it is applied: where a read fails, a later one in this process goes on from there.
    """
    while ledger.round < end:
        manifest = rounds.read_round(store, run, ledger.stage, ledger.round)
        table, pulled, scores = (rounds.read_round_table(store, manifest, name) for name in ("arms", "pulls", "scores"))
        state, arm = ledger.state, table["arm"].to_numpy()
        cursor, pulls, reward_sum = state.cursor.copy(), state.pulls.copy(), state.reward_sum.copy()
        cursor[arm], pulls[arm], reward_sum[arm] = table["cursor"], table["pulls"], table["reward_sum"]
        ledger.pulled.append(arm[cursor[arm] != state.cursor[arm]].astype(np.int64))
        moments = np.array(manifest.info.reward_moments)
        ledger.state = BanditState(state.n_documents, cursor, pulls, reward_sum, moments, ledger.round + 1)
        _add_scores(ledger, manifest.info.direction, scores)
        ledger.spread = add_pulls(ledger.spread, *(pulled[name].to_numpy() for name in SPREAD_COLUMNS))
        ledger.accepted_tokens += manifest.info.accepted_tokens
        ledger.cut = manifest.info.cut
        if (remaining := manifest.info.remaining) is not None:
            ledger.left = remaining.left
            ledger.first_left = remaining.left if ledger.first_left is None else ledger.first_left
        if (cost := manifest.info.cost) is not None:
            ledger.flops += cost.scoring + cost.calibration
        ledger.round += 1
        documents = len(ledger.known.position_S)
        if documents >= REFIT_GROWTH * ledger.fitted_documents:
            ledger.fitted_round, ledger.fitted_documents, ledger.fitted_cursor = ledger.round, documents, cursor


def _add_scores(ledger: LedgerState, direction: str, scores: pa.Table) -> None:
    if direction != ledger.direction:
        ledger.direction, ledger.scores = direction, []
        ledger.known, ledger.along_another_S = empty_index(), ledger.scored_S
    positions, n_tokens = scores["position"].to_numpy(), scores["n_tokens"].to_numpy()
    new = ~is_among(ledger.scored_S, positions)
    ledger.scores.append(scores.select(SCORE_SCHEMA.names))
    ledger.known = add_scores(ledger.known, scores)
    ledger.scored_S = insert_positions(ledger.scored_S, positions)
    if not new.all():
        ledger.along_another_S = ledger.along_another_S[~is_among(np.sort(positions), ledger.along_another_S)]
    if (longer := int(n_tokens.max(initial=0)) + 1 - len(ledger.scored_lengths_T)) > 0:
        ledger.scored_lengths_T = np.pad(ledger.scored_lengths_T, (0, longer))
    np.add.at(ledger.scored_lengths_T, n_tokens[new], 1)
    ledger.stage_tokens += int(n_tokens.sum())


@functools.lru_cache(maxsize=2)
def load_arms(store: Store, version: str) -> pa.Table:
    """Load a pool version's arm index, with each arm's first `position` in arm order."""
    manifest = read_version(store, version)
    key = arm_index_key(manifest.tables)
    table = read_table(store, key, sha256=manifest.files.get(key))
    n_documents = table["n_documents"].to_numpy()
    return table.append_column("position", pa.array(np.cumsum(n_documents) - n_documents))


def find_arms(store: Store, version: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find where the arms with documents begin: [A] ascending positions, and the [A] arms that begin there."""
    arms = load_arms(store, version)
    filled = np.flatnonzero(arms["n_documents"].to_numpy())
    start = arms["position"].to_numpy()[filled]
    order = np.argsort(start)
    return start[order], arms["arm"].to_numpy()[filled[order]].astype(np.int64)


def arms_of(store: Store, version: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the arms of the documents at positions, [N]."""
    start_A, arm_A = find_arms(store, version)
    return arm_A[arms_at(start_A, positions)].astype(np.int32)


def count_tokens_without(store: Store, version: str, positions: npt.NDArray[np.int64]) -> int:
    """Count the tokens of a pool version without those of some documents."""
    left_out = read_positions(store, version, positions, ["n_tokens"])["n_tokens"].to_numpy()
    return int(load_arms(store, version)["n_tokens"].to_numpy().sum()) - int(left_out.sum(dtype=np.int64))


CHOSEN_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("arm", pa.int32()),
        ("n_tokens", pa.int64()),
        ("round", pa.int32()),
        ("influence", pa.float64()),
        ("scored", pa.bool_()),
    ]
)


def stage_budget(budget_tokens: int, stages: int, number: int) -> int:
    """Return the tokens all stages up to and including `number` may select."""
    return budget_tokens * (number + 1) // stages


def read_choice(store: Store, choice: str) -> Choice:
    """Read the manifest of a choice of documents."""
    return read_manifest(Choice, store, choice_manifest_key(choice))


class Ranking(NamedTuple):
    """What ranked a stage's documents: a direction, an earlier stage's where a gate refused its own, and its τ."""

    direction: str
    threshold: float


def read_ranking(store: Store, run: str, stage: int) -> Ranking:
    """Read what ranked the documents that a stage selected."""
    choice = read_choice(store, choice_key(run, stage, "selected"))
    assert choice.direction is not None
    assert choice.threshold is not None
    return Ranking(choice.direction, choice.threshold)


def read_choice_table(store: Store, choice: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the documents of a choice.

    Raises:
        DigestMismatch: the table is not the one its manifest names.
    """
    return read_table(store, choice_table_key(choice), columns, sha256=read_choice(store, choice).sha256)


def selected_key(stage: Stage) -> str:
    """Return the key of what a stage selected."""
    return choice_key(stage.run, stage.number, "selected")


def read_chosen(store: Store, run: str, stages: int) -> pa.Table:
    """Read what a run's first `stages` stages chose, with `stage`."""
    pieces = [CHOSEN_SCHEMA.append(pa.field("stage", pa.int32())).empty_table()]
    for number in range(stages):
        table = read_choice_table(store, choice_key(run, number, "selected"))
        pieces.append(table.append_column("stage", pa.array(np.full(table.num_rows, number, np.int32))))
    return pa.concat_tables(pieces)


def read_scores(store: Store, run: str, stages: int) -> pa.Table:
    """Read every score of a run's first `stages` stages, with `stage` and `round`."""
    pieces = [
        rounds.read_round_table(store, committed, "scores")
        .append_column("stage", pa.array(np.full(committed.tables["scores"].rows, number, np.int32)))
        .append_column("round", pa.array(np.full(committed.tables["scores"].rows, committed.round, np.int32)))
        for number in range(stages)
        for committed in list_stage_rounds(store, run, number)
    ]
    return pa.concat_tables(pieces)
