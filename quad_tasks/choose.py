"""Stage: choose a stage's documents: measured influence, predicted influence, and what may not be taken twice.

A document is named by its position in the pool version. What a stage chose becomes visible by a manifest written last,
which holds how well the prediction did on scored documents it had not seen.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from quad_tasks.artifacts import show_stage
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.core import diversity, redundancy, selection
from quad_tasks.core.diagnosis import Finding, budget_not_reached, stale_influence, too_little_diversity
from quad_tasks.findings import announce_findings
from quad_tasks.likes import LikeSearch
from quad_tasks.predict import fit_scored, predict_positions
from quad_tasks.progress import working
from quad_tasks.records import Stage
from quad_tasks.state import load_arms, load_token_counts
from quad_tasks.states import states_key
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
DIVERSITY_DOCUMENTS = 1000  # whose diversity is measured
LOOKAHEAD = 3.0  # variety is looked for among the best documents of this many budgets


@step("select")
def select_stage(config: RunConfig, stage: Stage) -> str:
    """Choose the stage's documents and return their key.

    Scores of earlier stages count as long as they were measured against the same direction. What was measured against
    another one counts as unseen, and what an earlier stage chose is not chosen again.
    """
    store, key = open_store(config.workspace), f"{stage.prefix}/selected"
    new = not store.exists(f"{key}.json")
    with working("choose documents"):
        _commit_choice(config, stage, key, config.selection.general_share)
    chosen = read_manifest(store, f"{key}.json")
    if new:
        announce_findings(f"selection of stage {stage.number}", chosen["findings"], _said(store, stage))
    infos = [committed.info for committed in rounds.list_rounds(store, stage.run, stage.number)]
    show_stage(stage, chosen, infos)
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
    search = LikeSearch(config.workspace, stage.version, config.selection, candidates.arm, taken["position"].to_numpy())
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
            lambda local: np.searchsorted(rows, search.find(rows[local])),
            _variety(config, stage, candidates, rows, means) if config.selection.redundancy > 0 else None,
        )
    ]
    rows = np.setdiff1d(rows, search.dropped)
    short = budget_not_reached(int(candidates.n_tokens[chosen].sum()), budget, int(candidates.n_tokens[rows].sum()))
    info |= {"budget_tokens": budget, "near_duplicates": sorted(search.dropped)}
    narrow = _narrowness(config, stage, candidates, chosen)
    info["findings"] = [*(asdict(finding) for finding in (short, narrow) if finding), *_round_findings(store, stage)]
    _write_chosen(store, key, _describe(store, stage, candidates, chosen, scores), info)
    return key


def _said(store: Store, stage: Stage) -> list[str]:
    """Name the signatures that the stage's rounds have told of."""
    return [finding["signature"] for finding in _round_findings(store, stage)]


def _narrowness(
    config: RunConfig, stage: Stage, candidates: selection.Candidates, chosen: np.ndarray[Any, Any]
) -> Finding | None:
    """Compare a sample of the chosen documents with as many random ones, before anything is trained on them."""
    generator = np.random.default_rng([config.seed, 17, stage.number])
    n = min(DIVERSITY_DOCUMENTS, len(chosen))
    if n == 0:
        return None
    measured = []
    for positions in (chosen, np.arange(len(candidates.arm))):
        sample = generator.choice(positions, n, replace=False)
        rows = read_positions(open_store(config.workspace), stage.version, sample, ["embedding"])
        vendi = diversity.vendi_score(column_vectors(rows["embedding"]))
        arms = diversity.effective_arms(np.bincount(candidates.arm[sample]))
        measured.append({"effective_arms": arms, "vendi_score": vendi})
    return too_little_diversity(measured[0], measured[1], None, {})


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
    states = states_key(config, stage.version)
    predictor = fit_scored(config.workspace, stage.version, scores, n_arms, generator, states)
    best = np.full(n_arms, np.inf)
    best[np.unique(arms)] = -np.inf
    np.maximum.at(best, arms, scores["influence"].to_numpy())
    asked = unseen[best[candidates.arm[unseen]] > threshold]
    candidates.influence[asked] = predict_positions(config.workspace, stage.version, predictor, asked, states)
    found = {"accepted": predictor.accepted, "features": list(predictor.groups), "predicted_documents": len(asked)}
    return {**asdict(predictor.quality), **found}


def _arm_means(scores: pa.Table, n_arms: int) -> np.ndarray[Any, Any]:
    """Return each arm's mean influence by the documents drawn at random, NaN where none was."""
    at_random = ~scores["active"].to_numpy(zero_copy_only=False)
    arm, influence = scores["arm"].to_numpy()[at_random], scores["influence"].to_numpy()[at_random]
    count = np.bincount(arm, minlength=n_arms)
    total = np.bincount(arm, weights=influence, minlength=n_arms)
    means: np.ndarray[Any, Any] = np.divide(total, count, out=np.full(n_arms, np.nan), where=count > 0)
    return means


def _variety(
    config: RunConfig,
    stage: Stage,
    candidates: selection.Candidates,
    rows: np.ndarray[Any, Any],
    means: np.ndarray[Any, Any],
) -> Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, Any]]:
    """Build what fills a budget with variety, from the best documents of a few budgets.

    A document that was neither scored nor predicted is worth its arm's mean.
    """
    settings, store = config.selection, open_store(config.workspace)

    def fill(order: np.ndarray[Any, Any], budget: int) -> np.ndarray[Any, Any]:
        n_tokens = candidates.n_tokens[rows[order]]
        local = order[np.cumsum(n_tokens) <= LOOKAHEAD * budget + n_tokens.max(initial=0)]
        best, numbers = rows[local], np.arange(len(local))
        vectors = column_vectors(read_positions(store, stage.version, best, ["embedding"])["embedding"])
        n_tokens, arm = candidates.n_tokens[best], candidates.arm[best]
        influence = np.where(np.isnan(candidates.influence[best]), means[arm], candidates.influence[best])
        varied: np.ndarray[Any, Any] = redundancy.select_diverse(
            numbers, influence, n_tokens, vectors, arm, budget, settings.redundancy, settings.per_arm_share
        )
        return np.take(local, varied)

    return fill


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
