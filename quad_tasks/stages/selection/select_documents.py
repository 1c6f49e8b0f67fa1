"""Stage: choose a stage's documents: measured influence, predicted influence, and what may not be taken twice.

A document is named by its position in the pool version. What a stage chose becomes visible by a manifest written last,
which holds how well the prediction did on scored documents it had not seen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config.schema import ConfigError, RunConfig, SelectionConfig
from quad_tasks.config.values import Features
from quad_tasks.core.evaluation import diversity
from quad_tasks.core.evaluation.diagnosis import budget_not_reached, stale_influence, too_little_diversity
from quad_tasks.core.seeds import Stream, draw_seed, make_generator
from quad_tasks.core.selection import fill_budget
from quad_tasks.core.selection.prediction import Predictor
from quad_tasks.core.selection.ranking import Rows, take_rows
from quad_tasks.core.selection.redundancy import select_diverse
from quad_tasks.manifests.run import Choice, PredictionQuality
from quad_tasks.records import Finding, ModelUse, Stage
from quad_tasks.runtime.events import record_event
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_ui import show_stage
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.run import check_run_lease, delete_as_driver
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.draw_pulls import closed_positions
from quad_tasks.stages.bandit.ledger import (
    CHOSEN_SCHEMA,
    arms_of,
    count_tokens_without,
    find_arms,
    list_stage_rounds,
    load_arms,
    mark_at_random,
    read_choice,
    read_chosen,
    read_cursors,
    selected_key,
    stage_budget,
)
from quad_tasks.stages.bandit.pool_prediction import Block, read_values, write_predictions
from quad_tasks.stages.bandit.predict import FeatureSource, feature_source, fit_scored
from quad_tasks.stages.selection.drop_near_duplicates import NearDuplicateSearch
from quad_tasks.stages.selection.fill_pool_budget import Ranking, fill_rankings, fill_without_duplicates, read_leading
from quad_tasks.stages.selection.rank_pool import rank_by_mean, rank_by_share
from quad_tasks.storage import rounds, tables
from quad_tasks.storage.keys import choice_key, choice_manifest_key, choice_table_key, rankings_folder
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.store import Store

Int64 = npt.NDArray[np.int64]

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
        rounds: that the stage ended with; None: as many as there are, or as its documents were chosen from.
    """

    settings: SelectionConfig
    features: Features
    budget_tokens: int
    use: ModelUse
    seed: int
    rounds: int | None = None


def stage_selection(config: RunConfig, stage: int) -> StageSelection:
    """Read what selecting a stage's documents needs from a run's configuration."""
    budget = stage_budget(config.selection.budget_tokens, config.training.stages, stage)
    return StageSelection(config.selection, config.bandit.features, budget, config.model_use(), config.seed)


class Eligible(NamedTuple):
    """What a stage may select by influence.

    Attributes:
        rankings: best first, one after another.
        threshold: τ, which a document's value in them must exceed.
        predictions: blocks of predicted influence, which every other document's is read from too.
        quality: of the prediction; None: nothing was predicted.
    """

    rankings: list[Ranking]
    threshold: float
    predictions: Sequence[Block] = ()
    quality: PredictionQuality | None = None


@stage_task("select documents")
def select_documents(store: Store, stage: Stage, how: StageSelection) -> str:
    """Choose the stage's documents and return their key.

    Scores of earlier stages count as long as they were measured against the same direction. What was measured against
    another one counts as unseen, and what an earlier stage chose is not chosen again.

    Raises:
        ConfigError: the choice holds no document, so that there is nothing to train on.
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
    if not chosen.documents:
        raise ConfigError(
            f"bandit.threshold: expected documents of influence above τ = {chosen.threshold:.4g} that fit the "
            f"{chosen.budget_tokens:,} tokens of stage {stage.number}, found none: lower it or leave it out, so that "
            "the pilot chooses τ (bandit.threshold_quantile), raise selection.general_share or "
            "selection.budget_tokens, or use fewer training.stages. The configuration of a run that has begun is "
            "fixed: begin one of another name (run)"
        )
    return key


@stage_task("select a mixture")
def select_mixture(store: Store, stage: Stage, how: StageSelection, general_share: float) -> str:
    """Choose as `select_documents` would at another general share, for the frontier; return the key."""
    return _commit_choice(store, stage, how, f"general-{general_share:g}", general_share)


def try_choice(store: Store, stage: Stage, how: StageSelection, name: str) -> str:
    """Choose by the ranking of a stage's direction, for a trial; return the key."""
    return _commit_choice(store, stage, how, name, 0.0)


def _commit_choice(store: Store, stage: Stage, how: StageSelection, name: str, general_share: float) -> str:
    key, folder = choice_key(stage.run, stage.number, name), rankings_folder(stage.run, stage.number, name)
    if store.exists(choice_manifest_key(key)):
        delete_as_driver(store, stage.run, folder)  # rankings of one that was killed right after
        return key
    committed = list_stage_rounds(store, stage.run, stage.number, how.rounds)
    scores, threshold = read_stage_scores(store, stage, committed)
    taken = read_chosen(store, stage.run, stage.number)
    closed = closed_positions(store, stage)
    eligible = _rank_eligible(store, stage, how, folder, scores, threshold, closed)
    budget = how.budget_tokens - int(taken["n_tokens"].to_numpy().sum())
    search = NearDuplicateSearch(store, stage.version, how.settings, taken["position"].to_numpy())
    chosen = _choose(store, stage, how, general_share, eligible, budget, closed, search, folder)
    described = describe_chosen(store, stage.version, chosen, scores, eligible.predictions)
    delete_as_driver(store, stage.run, folder)
    table = write_chosen(store, key, described)
    open_tokens = count_tokens_without(store, stage.version, np.union1d(closed, search.dropped).astype(np.int64))
    short = budget_not_reached(table["tokens"], budget, open_tokens)
    narrow = _narrowness(store, stage, how.seed, chosen)
    choice = Choice(
        **table,
        budget_tokens=budget,
        threshold=threshold,
        direction=stage.direction,
        general_share=general_share,
        near_duplicates=tuple(sorted(search.dropped)),
        findings=(*(finding for finding in (short, narrow) if finding), *_round_findings(store, stage)),
        prediction=eligible.quality,
        rounds=len(committed),
    )
    check_run_lease(store, stage.run)
    write_manifest(store, choice_manifest_key(key), choice)
    return key


def _choose(
    store: Store,
    stage: Stage,
    how: StageSelection,
    general_share: float,
    eligible: Eligible,
    budget_tokens: int,
    closed: Int64,
    search: NearDuplicateSearch,
    folder: str,
) -> Int64:
    """Choose positions as `in_memory_selection.select` does: the best of the rankings, then the general share."""
    settings, version = how.settings, stage.version
    start_A, arm_A = find_arms(store, version)
    targeted = fill_budget.targeted_budget(budget_tokens, general_share)

    def fill(excluded: Int64) -> Rows:
        if settings.redundancy > 0:
            return _fill_diverse(store, version, settings, eligible, targeted, excluded)
        limits = start_A, settings.per_arm_share, eligible.threshold
        return fill_rankings(store, eligible.rankings, targeted, excluded, *limits)

    best = fill_without_duplicates(fill, search.find)
    if general_share == 0:
        return best.position_B
    seed = draw_seed(make_generator(how.seed, Stream.GENERAL_SHARE, stage.number))
    left, shut = budget_tokens - int(best.tokens_B.sum()), np.union1d(closed, best.position_B)
    n_documents = read_version(store, version).documents
    rest = rank_by_share(store, version, f"{folder}/share", (start_A, arm_A), n_documents, seed, shut)
    drawn = fill_without_duplicates(
        lambda excluded: fill_rankings(store, [rest], left, excluded), search.find, best.position_B
    )
    return np.concatenate([best.position_B, drawn.position_B])


def _fill_diverse(
    store: Store,
    version: str,
    settings: SelectionConfig,
    eligible: Eligible,
    budget_tokens: int,
    excluded: Int64,
) -> Rows:
    """Fill a budget with diverse documents from the best of a few budgets (`redundancy.select_diverse`)."""
    tokens = int(fill_budget.LOOKAHEAD * budget_tokens)
    best = read_leading(store, eligible.rankings, tokens, excluded, eligible.threshold)
    rows = select_diverse(
        np.arange(len(best.position_B)),
        best.value_B,
        best.tokens_B,
        _read_embeddings(store, version, best.position_B),
        arms_of(store, version, best.position_B),
        budget_tokens,
        settings.redundancy,
        settings.per_arm_share,
    )
    return take_rows(best, rows)


def _narrowness(store: Store, stage: Stage, seed: int, chosen: Int64) -> Finding | None:
    """Compare a sample of the chosen documents with as many random ones, before anything is trained on them."""
    generator = make_generator(seed, Stream.SELECTION_DIVERSITY, stage.number)
    n = min(DIVERSITY_DOCUMENTS, len(chosen))
    if n == 0:
        return None
    measured = []
    for positions in (chosen, read_version(store, stage.version).documents):
        sample = generator.choice(positions, n, replace=False)
        vendi = diversity.vendi_score(_read_embeddings(store, stage.version, sample))
        arms = diversity.effective_arms(np.bincount(arms_of(store, stage.version, sample)))
        measured.append({"effective_arms": arms, "vendi_score": vendi})
    return too_little_diversity(measured[0], measured[1], None, {})


def _round_findings(store: Store, stage: Stage) -> list[Finding]:
    """Read what held after the last round, and how stale influence was found to be before the first."""
    committed = rounds.list_rounds(store, stage.run, stage.number)
    findings = list(committed[-1].info.findings)
    known = {finding.signature for finding in findings}
    first = committed[0].info.findings
    return findings + [f for f in first if f.signature == stale_influence.__name__ and f.signature not in known]


def _rank_eligible(
    store: Store, stage: Stage, how: StageSelection, folder: str, scores: pa.Table, threshold: float, closed: Int64
) -> Eligible:
    """Rank the documents that the mode makes eligible, as `in_memory_selection.rank` does."""
    if how.settings.mode == "predicted":
        return _rank_predicted(store, stage, how, folder, scores, threshold, closed)
    position, influence = scores["position"].to_numpy(), scores["influence"].to_numpy()
    eligible = (influence > threshold) & ~np.isin(position, closed)
    rows = Rows(position[eligible], influence[eligible], scores["n_tokens"].to_numpy()[eligible])
    if how.settings.mode == "instance":
        return Eligible([rows], threshold)
    start_A, arm_A = find_arms(store, stage.version)
    mean_A = _arm_means(scores, len(load_arms(store, stage.version)))[arm_A]
    n_documents, shut = read_version(store, stage.version).documents, np.union1d(closed, position)
    blocks = rank_by_mean(store, stage.version, folder, start_A, mean_A, n_documents, shut)
    return Eligible([rows, blocks], threshold)


def _rank_predicted(
    store: Store, stage: Stage, how: StageSelection, folder: str, scores: pa.Table, threshold: float, closed: Int64
) -> Eligible:
    """Rank by what was measured, and by what a regression on it predicts of unscored documents in plausible arms.

    An arm is plausible where its best scored document, or the mean of all it was never asked for, is above τ.
    """
    version, arms = stage.version, scores["arm"].to_numpy()
    n_arms = len(load_arms(store, version))
    predictor, features = fit_stage_scores(store, stage, how, scores)
    best = np.full(n_arms, np.inf)
    best[np.unique(arms)] = -np.inf
    np.maximum.at(best, arms, scores["influence"].to_numpy())
    start_A, arm_A = find_arms(store, version)
    n_documents, plausible = read_version(store, version).documents, np.flatnonzero(best[arm_A] > threshold)
    asked = start_A[plausible], np.append(start_A, n_documents)[plausible + 1]
    known = scores["position"].to_numpy(), scores["influence"].to_numpy()
    blocks, written = write_predictions(store, version, folder, n_documents, predictor, features, known, closed, asked)
    quality = PredictionQuality(
        **asdict(predictor.quality),
        accepted=predictor.accepted,
        features=predictor.groups,
        predicted_documents=sum(each.predicted for each in written),
    )
    return Eligible([blocks], threshold, blocks, quality)


def fit_stage_scores(
    store: Store, stage: Stage, how: StageSelection, scores: pa.Table
) -> tuple[Predictor, FeatureSource]:
    """Fit the regression that a stage's choice predicts by; return it and what it reads of a document.

    Args:
        store: the workspace.
        stage: the stage.
        how: how it selects.
        scores: from `read_stage_scores`.
    """
    features = feature_source(store, stage.version, how.features, how.use)
    generator = make_generator(how.seed, Stream.SELECTION_REGRESSION, stage.number)
    n_arms = len(load_arms(store, stage.version))
    return fit_scored(store, stage.version, scores, n_arms, generator, features), features


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
    store: Store, version: str, chosen: Int64, scores: pa.Table, predictions: Sequence[Block] = ()
) -> pa.Table:
    """Describe the chosen documents, with the round that scored each; none for a document taken unscored.

    Args:
        store: the workspace.
        version: key of the pool version.
        chosen: positions.
        scores: of documents scored.
        predictions: that influence is read from where it was not measured; without, it is null there.
    """
    known = scores["position"].to_numpy()
    round_of = dict(zip(known.tolist(), scores["round"].to_pylist(), strict=True))
    measured = dict(zip(known.tolist(), scores["influence"].to_pylist(), strict=True))
    influence = np.array([measured.get(position, np.nan) for position in chosen.tolist()], dtype=np.float64)
    scored = np.isin(chosen, known)
    if predictions:
        influence[~scored] = read_values(store, predictions, chosen[~scored])
    return (
        read_positions(store, version, chosen, ["id", "source", "arm", "n_tokens"])
        .append_column("position", pa.array(chosen))
        .append_column("round", pa.array([round_of.get(position) for position in chosen.tolist()], pa.int32()))
        .append_column("influence", pa.array(influence, mask=np.isnan(influence)))
        .append_column("scored", pa.array(scored))
        .select(CHOSEN_SCHEMA.names)
        .cast(CHOSEN_SCHEMA)
    )


def write_chosen(store: Store, key: str, chosen: pa.Table) -> dict[str, Any]:
    """Write a choice's table; return what its manifest says of it: documents, tokens and digest."""
    rows, sha256 = tables.write_table_stream(store, choice_table_key(key), CHOSEN_SCHEMA, [chosen], BLOCK_ROWS)
    return {"documents": rows, "tokens": int(chosen["n_tokens"].to_numpy().sum()), "sha256": sha256}


def read_stage_scores(store: Store, stage: Stage, own: list[rounds.RoundManifest]) -> tuple[pa.Table, float]:
    """Read the scores measured against the stage's direction, with `round` and `at_random`, and its τ."""
    earlier = [one for number in range(stage.number) for one in list_stage_rounds(store, stage.run, number)]
    current = []
    for committed in [*earlier, *own]:
        if committed.info.direction == stage.direction:
            table = rounds.read_round_table(store, committed, "scores")
            current.append(table.append_column("round", pa.array(np.full(len(table), committed.round, np.int32))))
            threshold = committed.info.threshold
    cursor = read_cursors(store, stage.run, stage.version, stage.number + 1, stage.direction)
    return mark_at_random(store, stage.version, pa.concat_tables(current), cursor), threshold
