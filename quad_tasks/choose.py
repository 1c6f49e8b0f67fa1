"""Stage: choose a stage's documents: measured influence, predicted influence, and what may not be taken twice.

A document is named by its position in the pool version. What a stage chose becomes visible by a manifest written last,
which holds how well the prediction did on scored documents it had not seen.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.artifacts import show_stage
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.core import redundancy, selection
from quad_tasks.core.diagnosis import budget_not_reached, stale_influence
from quad_tasks.predict import fit_scored, predict_positions
from quad_tasks.progress import working
from quad_tasks.records import Stage
from quad_tasks.state import load_arms, load_token_counts
from quad_tasks.storage import pool as tables
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.positions import column_vectors, read_column, read_positions, read_table
from quad_tasks.storage.store import Store, open_store

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
NO_SCORES = pa.schema([("position", pa.int64()), ("influence", pa.float64()), ("round", pa.int32())]).empty_table()
BLOCK_ROWS = 1024
LOOKAHEAD = 3.0  # near-duplicates are looked for among the best documents of this many budgets


@step("select")
def select_stage(config: RunConfig, stage: Stage) -> str:
    """Choose the stage's documents and return their key.

    Scores of earlier stages count as long as they were measured against the same direction. What was measured against
    another one counts as unseen, and what an earlier stage chose is not chosen again.
    """
    with working("choose documents"):
        key = _commit_choice(config, stage, f"{stage.prefix}/selected", config.selection.general_share)
    store = open_store(config.workspace)
    infos = [committed.info for committed in rounds.list_rounds(store, stage.run, stage.number)]
    show_stage(stage, read_manifest(store, f"{key}.json"), infos)
    return key


@step("select a mixture")
def select_mixture(config: RunConfig, stage: Stage, general_share: float) -> str:
    """Choose as `select_stage` would at another general share, for the frontier; return the key."""
    return _commit_choice(config, stage, f"{stage.prefix}/general-{general_share:g}", general_share)


def try_choice(config: RunConfig, stage: Stage, name: str) -> str:
    """Choose by the ranking of a stage's direction, for a trial; return the key."""
    return _commit_choice(config, stage, f"{stage.prefix}/{name}", 0.0)


def _commit_choice(config: RunConfig, stage: Stage, key: str, general_share: float) -> str:
    store = open_store(config.workspace)
    if store.exists(f"{key}.json"):
        return key
    scores, threshold = _read_scores(store, stage)
    taken = read_chosen(store, stage.run, stage.number)
    candidates = _measured_candidates(config.workspace, stage, scores)
    info: dict[str, Any] = {"threshold": threshold, "direction": stage.direction, "general_share": general_share}
    if config.selection.mode == "predicted":
        unseen = np.setdiff1d(np.flatnonzero(~candidates.scored), taken["position"].to_numpy())
        info["prediction"] = _predict(config, stage, scores, candidates, threshold, unseen)
    budget = stage_budget(config, stage.number) - int(taken["n_tokens"].to_numpy().sum())
    means = _arm_means(scores, len(load_arms(config.workspace, stage.version)))
    rows = np.setdiff1d(np.arange(len(candidates.arm)), taken["position"].to_numpy())
    order = rows[selection.rank(_take(candidates, rows), threshold, config.selection.mode, means)]
    order, dropped = _avoid_likes(config, stage, candidates, order, budget, general_share, taken)
    rows = np.setdiff1d(rows, dropped)
    chosen = rows[
        selection.select(
            _take(candidates, rows),
            budget,
            threshold,
            config.selection.mode,
            means,
            config.selection.per_arm_share,
            general_share,
            np.random.default_rng([config.seed, 12, stage.number]),
            np.searchsorted(rows, order),
        )
    ]
    short = budget_not_reached(int(candidates.n_tokens[chosen].sum()), budget, int(candidates.n_tokens[rows].sum()))
    info |= {"budget_tokens": budget, "near_duplicates": np.sort(dropped).tolist()}
    info["findings"] = [*([asdict(short)] if short else []), *_round_findings(store, stage)]
    _write_chosen(store, key, _describe(store, stage, candidates, chosen, scores), info)
    return key


def _round_findings(store: Store, stage: Stage) -> list[dict[str, Any]]:
    """Read what held after the last round, and how stale influence was found to be before the first."""
    committed = rounds.list_rounds(store, stage.run, stage.number)
    findings: list[dict[str, Any]] = list(committed[-1].info["findings"])
    known = {finding["signature"] for finding in findings}
    first = committed[0].info["findings"]
    return findings + [f for f in first if f["signature"] == stale_influence.__name__ and f["signature"] not in known]


def read_findings(config: RunConfig, stage: Stage) -> list[dict[str, Any]]:
    """Read what was found in a stage's rounds and in what they made it choose."""
    findings: list[dict[str, Any]] = read_manifest(open_store(config.workspace), f"{stage.prefix}/selected.json")[
        "findings"
    ]
    return findings


def stage_budget(config: RunConfig, number: int) -> int:
    """Return the tokens all stages up to and including `number` may select."""
    return config.selection.budget_tokens * (number + 1) // config.training.stages


def _measured_candidates(workspace: str, stage: Stage, scores: pa.Table) -> selection.Candidates:
    """Lay out the whole pool version by position, with influence where it was measured."""
    arm = read_column(open_store(workspace), stage.version, "arm")
    influence = np.full(len(arm), np.nan)
    scored = np.zeros(len(arm), dtype=bool)
    position = scores["position"].to_numpy()
    influence[position] = scores["influence"].to_numpy()
    scored[position] = True
    n_tokens = load_token_counts(workspace, stage.version)
    return selection.Candidates(np.arange(len(arm)), arm, n_tokens, influence, scored)


def _take(candidates: selection.Candidates, rows: np.ndarray[Any, Any]) -> selection.Candidates:
    fields = (candidates.id, candidates.arm, candidates.n_tokens, candidates.influence, candidates.scored)
    return selection.Candidates(*(values[rows] for values in fields))


def _predict(
    config: RunConfig,
    stage: Stage,
    scores: pa.Table,
    candidates: selection.Candidates,
    threshold: float,
    unseen: np.ndarray[Any, Any],
) -> dict[str, Any]:
    """Fill in what a regression on the scored documents predicts of the unseen ones, inside plausible arms.

    An arm is plausible where its best scored document, or the mean of all it was never asked for, is above τ.
    """
    arms = scores["arm"].to_numpy()
    n_arms = len(load_arms(config.workspace, stage.version))
    generator = np.random.default_rng([config.seed, 13, stage.number])
    predictor = fit_scored(config.workspace, stage.version, scores, n_arms, generator)
    best = np.full(n_arms, np.inf)
    best[np.unique(arms)] = -np.inf
    np.maximum.at(best, arms, scores["influence"].to_numpy())
    asked = unseen[best[candidates.arm[unseen]] > threshold]
    candidates.influence[asked] = predict_positions(config.workspace, stage.version, predictor, asked)
    return {**asdict(predictor.quality), "accepted": predictor.accepted, "predicted_documents": len(asked)}


def _arm_means(scores: pa.Table, n_arms: int) -> np.ndarray[Any, Any]:
    """Return each arm's mean measured influence, NaN where nothing was measured."""
    arm = scores["arm"].to_numpy()
    count = np.bincount(arm, minlength=n_arms)
    total = np.bincount(arm, weights=scores["influence"].to_numpy(), minlength=n_arms)
    means: np.ndarray[Any, Any] = np.divide(total, count, out=np.full(n_arms, np.nan), where=count > 0)
    return means


def _avoid_likes(
    config: RunConfig,
    stage: Stage,
    candidates: selection.Candidates,
    order: np.ndarray[Any, Any],
    budget: int,
    general_share: float,
    taken: pa.Table,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Drop from a ranking what is too like a better document of its arm, or one taken before; then prefer variety.

    Both look among the best documents of a few budgets.

    Returns:
        The positions left, best first, and those dropped.
    """
    settings = config.selection
    within = np.cumsum(candidates.n_tokens[order]) <= LOOKAHEAD * budget + candidates.n_tokens.max()
    best, rest = order[within], order[~within]
    dropped = np.empty(0, dtype=np.int64)
    if not len(best) or (settings.near_duplicate_cosine is None and settings.redundancy == 0):
        return order, dropped
    looked = np.concatenate([taken["position"].to_numpy(), best])
    rows = read_positions(open_store(config.workspace), stage.version, looked, ["embedding"])
    vectors = column_vectors(rows["embedding"])
    if settings.near_duplicate_cosine is not None:
        numbers = np.arange(len(looked))
        drop = redundancy.near_duplicates(vectors, candidates.arm[looked], numbers, settings.near_duplicate_cosine)
        drop = drop[taken.num_rows :]
        dropped, best, vectors = best[drop], best[~drop], vectors[taken.num_rows :][~drop]
    else:
        vectors = vectors[taken.num_rows :]
    if settings.redundancy == 0:
        return np.concatenate([best, rest]), dropped
    targeted = selection.targeted_budget(budget, general_share)
    influence, n_tokens, arm = candidates.influence[best], candidates.n_tokens[best], candidates.arm[best]
    numbers = np.arange(len(best))
    varied = redundancy.select_diverse(numbers, influence, n_tokens, vectors, arm, targeted, settings.redundancy)
    return best[varied], dropped


def _describe(
    store: Store,
    stage: Stage,
    candidates: selection.Candidates,
    chosen: np.ndarray[Any, Any],
    scores: pa.Table,
) -> pa.Table:
    """Name the chosen documents, with the round that scored each; none for a document taken unscored."""
    round_of = dict(zip(scores["position"].to_pylist(), scores["round"].to_pylist(), strict=True))
    influence = candidates.influence[chosen]
    return (
        read_positions(store, stage.version, chosen, ["id", "source", "arm", "n_tokens"])
        .append_column("position", pa.array(chosen))
        .append_column("round", pa.array([round_of.get(position) for position in chosen.tolist()], pa.int32()))
        .append_column("influence", pa.array(influence, mask=np.isnan(influence)))
        .append_column("scored", pa.array(candidates.scored[chosen]))
        .select(CHOSEN_SCHEMA.names)
        .cast(CHOSEN_SCHEMA)
    )


@step("draw control")
def draw_control(config: RunConfig, stage: Stage, seed: int) -> str:
    """Draw the random control of the stage: uniform documents of the pool, as many tokens as were selected."""
    store = open_store(config.workspace)
    key = f"{stage.prefix}/random-{seed}"
    if store.exists(f"{key}.json"):
        return key
    candidates = _measured_candidates(config.workspace, stage, NO_SCORES)
    budget = read_manifest(store, f"{stage.prefix}/selected.json")["tokens"]
    generator = np.random.default_rng([config.seed, 6, stage.number, seed])
    rows = selection.random_control(candidates.n_tokens, budget, generator)
    chosen = _describe(store, stage, candidates, rows, NO_SCORES)
    _write_chosen(store, key, chosen, {"budget_tokens": budget, "seed": seed})
    return key


def _write_chosen(store: Store, key: str, chosen: pa.Table, info: dict[str, Any]) -> None:
    _, sha256 = tables.write_table_stream(store, f"{key}.parquet", CHOSEN_SCHEMA, [chosen], BLOCK_ROWS)
    tokens = int(chosen["n_tokens"].to_numpy().sum())
    write_manifest(store, f"{key}.json", {**info, "documents": chosen.num_rows, "tokens": tokens, "sha256": sha256})


def _read_scores(store: Store, stage: Stage) -> tuple[pa.Table, float]:
    """Read the scores measured against the stage's direction, and its τ."""
    current = []
    for number in range(stage.number + 1):
        for committed in rounds.list_rounds(store, stage.run, number):
            if committed.info["direction"] == stage.direction:
                table = rounds.read_round_table(store, committed, "scores")
                current.append(table.append_column("round", pa.array(np.full(len(table), committed.round, np.int32))))
                threshold = float(committed.info["threshold"])
    return pa.concat_tables(current), threshold


def read_chosen(store: Store, run: str, stages: int) -> pa.Table:
    """Read what a run's first `stages` stages chose, with `stage`."""
    pieces = [CHOSEN_SCHEMA.append(pa.field("stage", pa.int32())).empty_table()]
    for number in range(stages):
        table = read_table(store, f"runs/{run}/stage-{number:02d}/selected.parquet")
        pieces.append(table.append_column("stage", pa.array(np.full(table.num_rows, number, np.int32))))
    return pa.concat_tables(pieces)
