"""Stage: choose a stage's documents: measured influence, predicted influence, and what may not be taken twice.

A document is named by its position in the pool version. What a stage chose becomes visible by a manifest written last,
which holds how well the prediction did on scored documents it had not seen.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.config.schema import RunConfig, SelectionConfig
from quad_tasks.config.values import Features
from quad_tasks.core.evaluation import diversity
from quad_tasks.core.evaluation.diagnosis import budget_not_reached, stale_influence, too_little_diversity
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection import fill_budget
from quad_tasks.manifests.run import Choice, PredictionQuality
from quad_tasks.records import Finding, ModelUse, Stage
from quad_tasks.runtime.events import record_event
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_ui import show_stage
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.run import check_run_lease
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.ledger import (
    CHOSEN_SCHEMA,
    load_arms,
    load_token_counts,
    mark_at_random,
    read_choice,
    read_chosen,
    read_cursors,
    selected_key,
    stage_budget,
)
from quad_tasks.stages.bandit.predict import feature_source, fit_scored, predict_positions
from quad_tasks.stages.influence.find_overlap import overlap_positions
from quad_tasks.stages.selection.drop_near_duplicates import NearDuplicateSearch
from quad_tasks.storage import rounds, tables
from quad_tasks.storage.keys import choice_key, choice_manifest_key, choice_table_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import column_vectors, read_column, read_positions
from quad_tasks.storage.store import Store

NO_SCORES = pa.schema([("position", pa.int64()), ("influence", pa.float64()), ("round", pa.int32())]).empty_table()
BLOCK_ROWS = 1024
DIVERSITY_DOCUMENTS = 1000  # whose diversity is measured


@dataclass(frozen=True)
class StageSelection:
    """What selecting a stage's documents needs of the configuration.

    Attributes:
        settings: the selection's section.
        features: what influence is predicted from.
        budget_tokens: that all stages up to this one may select.
        use: how the model reads documents.
        seed: of the run.
    """

    settings: SelectionConfig
    features: Features
    budget_tokens: int
    use: ModelUse
    seed: int


def stage_selection(config: RunConfig, stage: int) -> StageSelection:
    """Read what selecting a stage's documents needs from a run's configuration."""
    budget = stage_budget(config.selection.budget_tokens, config.training.stages, stage)
    return StageSelection(config.selection, config.bandit.features, budget, config.model_use(), config.seed)


@stage_task("select documents")
def select_documents(store: Store, stage: Stage, how: StageSelection) -> str:
    """Choose the stage's documents and return their key.

    Scores of earlier stages count as long as they were measured against the same direction. What was measured against
    another one counts as unseen, and what an earlier stage chose is not chosen again.
    """
    key = selected_key(stage)
    new = not store.exists(choice_manifest_key(key))
    with working("select documents"):
        _commit_choice(store, stage, how, "selected", how.settings.general_share)
    chosen = read_choice(store, key)
    if new:
        counts = chosen.model_dump(include={"documents", "tokens", "budget_tokens", "threshold"})
        record_event(store, stage.run, "documents_selected", stage=stage.number, **counts)
        known = [finding.signature for finding in _round_findings(store, stage)]
        announce_findings(f"selection of stage {stage.number}", chosen.findings, known)
    infos = [committed.info for committed in rounds.list_rounds(store, stage.run, stage.number)]
    show_stage(stage, chosen, infos)
    return key


@stage_task("select a mixture")
def select_mixture(store: Store, stage: Stage, how: StageSelection, general_share: float) -> str:
    """Choose as `select_documents` would at another general share, for the frontier; return the key."""
    return _commit_choice(store, stage, how, f"general-{general_share:g}", general_share)


def try_choice(store: Store, stage: Stage, how: StageSelection, name: str) -> str:
    """Choose by the ranking of a stage's direction, for a trial; return the key."""
    return _commit_choice(store, stage, how, name, 0.0)


def _commit_choice(store: Store, stage: Stage, how: StageSelection, name: str, general_share: float) -> str:
    key, settings = choice_key(stage.run, stage.number, name), how.settings
    if store.exists(choice_manifest_key(key)):
        return key
    scores, threshold = _read_scores(store, stage)
    taken = read_chosen(store, stage.run, stage.number)
    candidates = lay_out_candidates(store, stage.version, scores)
    rows = selectable_positions(store, stage)
    prediction = None
    if settings.mode == "predicted":
        unseen = rows[~candidates.scored[rows]]
        prediction = _predict(store, stage, how, scores, candidates, threshold, unseen)
    budget = how.budget_tokens - int(taken["n_tokens"].to_numpy().sum())
    means = _arm_means(scores, len(load_arms(store, stage.version)))
    search = NearDuplicateSearch(store, stage.version, settings, candidates.arm, taken["position"].to_numpy())
    chosen = rows[
        fill_budget.select(
            _take(candidates, rows),
            budget,
            fill_budget.SelectionSettings(
                threshold, settings.mode, settings.per_arm_share, general_share, settings.redundancy
            ),
            arm_mean_K=means,
            generator=make_generator(how.seed, Stream.GENERAL_SHARE, stage.number),
            find_near_duplicates=search.find,
            read_embeddings=partial(_read_embeddings, store, stage.version),
        )
    ]
    rows = np.setdiff1d(rows, search.dropped)
    short = budget_not_reached(int(candidates.n_tokens[chosen].sum()), budget, int(candidates.n_tokens[rows].sum()))
    narrow = _narrowness(store, stage, how.seed, candidates, chosen)
    described = describe_chosen(store, stage.version, candidates, chosen, scores)
    table = write_chosen(store, key, described)
    choice = Choice(
        **table,
        budget_tokens=budget,
        threshold=threshold,
        direction=stage.direction,
        general_share=general_share,
        near_duplicates=tuple(sorted(search.dropped)),
        findings=(*(finding for finding in (short, narrow) if finding), *_round_findings(store, stage)),
        prediction=prediction,
    )
    check_run_lease(store, stage.run)
    write_manifest(store, choice_manifest_key(key), choice)
    return key


def _narrowness(
    store: Store, stage: Stage, seed: int, candidates: fill_budget.Candidates, chosen: np.ndarray[Any, Any]
) -> Finding | None:
    """Compare a sample of the chosen documents with as many random ones, before anything is trained on them."""
    generator = make_generator(seed, Stream.SELECTION_DIVERSITY, stage.number)
    n = min(DIVERSITY_DOCUMENTS, len(chosen))
    if n == 0:
        return None
    measured = []
    for positions in (chosen, np.arange(len(candidates.arm))):
        sample = generator.choice(positions, n, replace=False)
        rows = read_positions(store, stage.version, sample, ["embedding"])
        vendi = diversity.vendi_score(column_vectors(rows["embedding"]))
        arms = diversity.effective_arms(np.bincount(candidates.arm[sample]))
        measured.append({"effective_arms": arms, "vendi_score": vendi})
    return too_little_diversity(measured[0], measured[1], None, {})


def _round_findings(store: Store, stage: Stage) -> list[Finding]:
    """Read what held after the last round, and how stale influence was found to be before the first."""
    committed = rounds.list_rounds(store, stage.run, stage.number)
    findings = list(committed[-1].info.findings)
    known = {finding.signature for finding in findings}
    first = committed[0].info.findings
    return findings + [f for f in first if f.signature == stale_influence.__name__ and f.signature not in known]


def selectable_positions(store: Store, stage: Stage) -> np.ndarray[Any, Any]:
    """List the positions a stage may take: neither chosen by an earlier stage nor holding held-out text, ascending."""
    taken = read_chosen(store, stage.run, stage.number)["position"].to_numpy()
    closed = np.union1d(taken, overlap_positions(store, stage.run))
    return np.setdiff1d(np.arange(len(load_token_counts(store, stage.version))), closed)


def lay_out_candidates(store: Store, version: str, scores: pa.Table) -> fill_budget.Candidates:
    """Lay out the whole pool version by position, with influence where it was measured."""
    arm = read_column(store, version, "arm")
    influence = np.full(len(arm), np.nan)
    scored = np.zeros(len(arm), dtype=bool)
    position = scores["position"].to_numpy()
    influence[position] = scores["influence"].to_numpy()
    scored[position] = True
    n_tokens = load_token_counts(store, version)
    return fill_budget.Candidates(np.arange(len(arm)), arm, n_tokens, influence, scored)


def _take(candidates: fill_budget.Candidates, rows: np.ndarray[Any, Any]) -> fill_budget.Candidates:
    fields = (candidates.id, candidates.arm, candidates.n_tokens, candidates.influence, candidates.scored)
    return fill_budget.Candidates(*(values[rows] for values in fields))


def _predict(
    store: Store,
    stage: Stage,
    how: StageSelection,
    scores: pa.Table,
    candidates: fill_budget.Candidates,
    threshold: float,
    unseen: np.ndarray[Any, Any],
) -> PredictionQuality:
    """Fill in what a regression on the scored documents predicts of the unseen ones, inside plausible arms.

    An arm is plausible where its best scored document, or the mean of all it was never asked for, is above τ.
    """
    arms = scores["arm"].to_numpy()
    n_arms = len(load_arms(store, stage.version))
    generator = make_generator(how.seed, Stream.SELECTION_REGRESSION, stage.number)
    features = feature_source(store, stage.version, how.features, how.use)
    predictor = fit_scored(store, stage.version, scores, n_arms, generator, features)
    best = np.full(n_arms, np.inf)
    best[np.unique(arms)] = -np.inf
    np.maximum.at(best, arms, scores["influence"].to_numpy())
    asked = unseen[best[candidates.arm[unseen]] > threshold]
    candidates.influence[asked] = predict_positions(store, stage.version, predictor, asked, features)
    quality = asdict(predictor.quality)
    return PredictionQuality(
        **quality, accepted=predictor.accepted, features=predictor.groups, predicted_documents=len(asked)
    )


def _arm_means(scores: pa.Table, n_arms: int) -> np.ndarray[Any, Any]:
    """Return each arm's mean influence by the documents drawn at random, NaN where none was."""
    at_random = scores["at_random"].to_numpy(zero_copy_only=False)
    arm, influence = scores["arm"].to_numpy()[at_random], scores["influence"].to_numpy()[at_random]
    count = np.bincount(arm, minlength=n_arms)
    total = np.bincount(arm, weights=influence, minlength=n_arms)
    means: np.ndarray[Any, Any] = np.divide(total, count, out=np.full(n_arms, np.nan), where=count > 0)
    return means


def _read_embeddings(store: Store, version: str, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return column_vectors(read_positions(store, version, positions, ["embedding"])["embedding"])


def describe_chosen(
    store: Store,
    version: str,
    candidates: fill_budget.Candidates,
    chosen: np.ndarray[Any, Any],
    scores: pa.Table,
) -> pa.Table:
    """Name the chosen documents, with the round that scored each; none for a document taken unscored."""
    round_of = dict(zip(scores["position"].to_pylist(), scores["round"].to_pylist(), strict=True))
    influence = candidates.influence[chosen]
    return (
        read_positions(store, version, chosen, ["id", "source", "arm", "n_tokens"])
        .append_column("position", pa.array(chosen))
        .append_column("round", pa.array([round_of.get(position) for position in chosen.tolist()], pa.int32()))
        .append_column("influence", pa.array(influence, mask=np.isnan(influence)))
        .append_column("scored", pa.array(candidates.scored[chosen]))
        .select(CHOSEN_SCHEMA.names)
        .cast(CHOSEN_SCHEMA)
    )


def write_chosen(store: Store, key: str, chosen: pa.Table) -> dict[str, Any]:
    """Write a choice's table; return what its manifest says of it: documents, tokens and digest."""
    rows, sha256 = tables.write_table_stream(store, choice_table_key(key), CHOSEN_SCHEMA, [chosen], BLOCK_ROWS)
    return {"documents": rows, "tokens": int(chosen["n_tokens"].to_numpy().sum()), "sha256": sha256}


def _read_scores(store: Store, stage: Stage) -> tuple[pa.Table, float]:
    """Read the scores measured against the stage's direction, with `round` and `at_random`, and its τ."""
    current = []
    for number in range(stage.number + 1):
        for committed in rounds.list_rounds(store, stage.run, number):
            if committed.info.direction == stage.direction:
                table = rounds.read_round_table(store, committed, "scores")
                current.append(table.append_column("round", pa.array(np.full(len(table), committed.round, np.int32))))
                threshold = committed.info.threshold
    cursor = read_cursors(store, stage.run, stage.version, stage.number + 1, stage.direction)
    return mark_at_random(store, stage.version, pa.concat_tables(current), cursor), threshold
