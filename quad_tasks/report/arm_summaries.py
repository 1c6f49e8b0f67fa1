"""Summarise what a finished run knows of each arm, and when its rounds pulled which, for the report.

Influence is per token along the direction that ranked the last stage's documents. An arm's quantiles are of its
documents drawn at random; those drawn for their predicted influence are among its texts. Its mean reward is along the
direction that the last stage's rounds scored by.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.core import bandit
from quad_tasks.core.clustering.keywords import keywords
from quad_tasks.records import BanditState, Stage
from quad_tasks.report.finished_run import FinishedRun
from quad_tasks.report.model import Arm, ArmTexts, Example, Pulls, ScoreRange
from quad_tasks.stages.bandit.ledger import load_arms, read_ledger
from quad_tasks.stages.bandit.round_settings import policy
from quad_tasks.stages.pool.count_amounts import sum_tokens
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.rounds import RoundManifest
from quad_tasks.storage.store import Store

TERM_ARMS = 200
TERM_DOCUMENTS = 16
TERMS = 6
CARDS_SELECTED, CARDS_LOWEST = 12, 4
"""Arms described by texts: the most selected, and those of the lowest median influence."""
CARD_CHARACTERS = 360
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HISTORY_ARMS, HISTORY_BINS = 30, 80
"""Arms and groups of rounds in the picture of pulls."""


def describe_arms(run: FinishedRun, drawn: pa.Table, threshold: float) -> tuple[Arm, ...]:
    """Describe every arm: its size, what the bandit knows of it, what was selected.

    Args:
        run: the run.
        drawn: scores of documents drawn at random (`read_random_draws`).
        threshold: influence per token that a ranked document had to pass in the last stage.

    Returns:
        Arms by number; terms only of the most selected `TERM_ARMS`, texts only of those that get a card.
    """
    arms = load_arms(run.store, run.version)
    state, ucb_K = _bandit_at_the_end(run)
    selected, sources = sum_tokens(run.chosen, "arm"), _sources(run.amounts)
    scored = dict(zip(*np.unique(run.scores.column("arm").to_numpy(), return_counts=True), strict=True))
    terms = _keywords(run, arms, selected)
    quantiles = _quantiles(drawn)
    texts = _texts(run, run.ranked, _carded(selected, quantiles), threshold)
    sizes = (arms.column(name).to_pylist() for name in ("n_documents", "n_tokens"))
    return tuple(
        Arm(
            arm=arm,
            documents=documents,
            tokens=tokens,
            pulls=float(state.pulls[arm]),
            mean_reward=float(state.reward_sum[arm]) / float(state.pulls[arm]) if state.pulls[arm] > 0 else None,
            ucb_score=float(ucb_K[arm]) if np.isfinite(ucb_K[arm]) else None,
            scored=int(scored.get(arm, 0)),
            selected_tokens=selected.get(arm, 0),
            quantiles=quantiles.get(arm),
            terms=terms.get(arm, ()),
            texts=texts.get(arm),
            sources=sources.get(arm, {}),
        )
        for arm, (documents, tokens) in enumerate(zip(*sizes, strict=True))
    )


def history_of_pulls(store: Store, run: str, stages: int) -> Pulls:
    """Sum up which arms were pulled when, over all rounds of all stages but the pilots.

    Returns:
        `arms`, the most pulled, most first; `first_round`, the first round of each group of rounds, counted over all
        stages; `documents` [arms, groups] drawn; `ucb_score`, for each round the lowest, median and highest score of
        the arms pulled, None where none has one yet.
    """
    pulls = [
        _pulls_of(store, committed) for stage in range(stages) for committed in rounds.list_rounds(store, run, stage)
    ]
    size = max(1, -(-len(pulls) // HISTORY_BINS))
    counts: dict[int, npt.NDArray[np.int64]] = {}
    for number, table in enumerate(pulls):
        if table is None:
            continue
        drawn = (table.column(name).to_pylist() for name in ("arm", "n_documents"))
        for arm, n in zip(*drawn, strict=True):
            row = counts.setdefault(arm, np.zeros(-(-len(pulls) // size), np.int64))
            row[number // size] += n
    most = sorted(counts, key=lambda arm: (-int(counts[arm].sum()), arm))[:HISTORY_ARMS]
    return Pulls(
        arms=tuple(most),
        arms_pulled=len(counts),
        first_round=tuple(range(0, len(pulls), size)),
        documents=tuple(tuple(counts[arm].tolist()) for arm in most),
        ucb_score=tuple(_range_of_scores(table) for table in pulls),
    )


def _pulls_of(store: Store, committed: RoundManifest) -> pa.Table | None:
    """Read what a round pulled; None for a pilot, which chooses no arm."""
    return None if committed.info.kind == "pilot" else rounds.read_round_table(store, committed, "pulls")


def _range_of_scores(pulls: pa.Table | None) -> ScoreRange | None:
    known = [] if pulls is None else [score for score in pulls.column("ucb_score").to_pylist() if score is not None]
    return ScoreRange(low=min(known), median=float(np.median(known)), high=max(known)) if known else None


def _bandit_at_the_end(run: FinishedRun) -> tuple[BanditState, npt.NDArray[np.float64]]:
    """Return what the bandit knew after the last round, and [K] the arms' scores by it."""
    committed = rounds.list_rounds(run.store, run.config.run, run.last_stage)
    stage = Stage(run.config.run, run.last_stage, run.version, "", committed[0].info.direction)
    state = read_ledger(run.store, stage, len(committed), run.config.bandit.discount).state
    return state, bandit.ucb_scores(state, policy(run.config.bandit, run.config.clustering.arms))


def _sources(amounts: pa.Table) -> dict[int, dict[str, int]]:
    """Lay out tokens by arm and source, most first."""
    by_arm: dict[int, dict[str, int]] = {}
    columns = (amounts.column(name).to_pylist() for name in ("arm", "source", "tokens"))
    for arm, source, tokens in sorted(zip(*columns, strict=True), key=lambda row: -row[2]):
        by_arm.setdefault(arm, {})[source] = tokens
    return by_arm


def _keywords(run: FinishedRun, arms: pa.Table, selected: dict[int, int]) -> dict[int, tuple[str, ...]]:
    """Find the words that tell the most selected arms apart, by their first documents: a random sample of each."""
    most = np.argsort([-selected.get(arm, 0) for arm in range(arms.num_rows)], kind="stable")[:TERM_ARMS]
    starts, sizes = (arms.column(name).to_numpy()[most] for name in ("position", "n_documents"))
    counts = np.minimum(sizes, TERM_DOCUMENTS)
    positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
    texts = read_positions(run.store, run.version, positions, ["text"]).column("text").to_pylist()
    bounds = np.cumsum([0, *counts])
    by_arm = [texts[bounds[i] : bounds[i + 1]] for i in range(len(counts))]
    return {arm: tuple(terms) for arm, terms in zip(most.tolist(), keywords(by_arm, TERMS), strict=True)}


def _quantiles(scores: pa.Table) -> dict[int, tuple[float, ...]]:
    arm, influence = (scores.column(name).to_numpy() for name in ("arm", "influence"))
    return {int(k): tuple(np.quantile(influence[arm == k], QUANTILES).tolist()) for k in np.unique(arm)}


def _carded(selected: dict[int, int], quantiles: dict[int, tuple[float, ...]]) -> list[int]:
    """Choose the arms whose texts are shown, among those with something scored at random."""
    most = sorted(quantiles, key=lambda arm: (-selected.get(arm, 0), -quantiles[arm][2]))[:CARDS_SELECTED]
    lowest = sorted(quantiles, key=lambda arm: quantiles[arm][2])
    return most + [arm for arm in lowest if arm not in most][:CARDS_LOWEST]


def _texts(run: FinishedRun, scores: pa.Table, arms: Sequence[int], threshold: float) -> dict[int, ArmTexts]:
    """Read each arm's best, worst and borderline scored document; of fewer than three, the first of these."""
    arm, influence = (scores.column(name).to_numpy() for name in ("arm", "influence"))
    wanted: list[tuple[int, str, int]] = []
    for k in arms:
        left = np.flatnonzero(arm == k)
        for name, rank in (("best", -influence), ("worst", influence), ("borderline", np.abs(influence - threshold))):
            if len(left):
                row = int(left[np.argmin(rank[left])])
                wanted.append((k, name, row))
                left = left[left != row]
    found: dict[int, dict[str, Example]] = {}
    for (k, name, _), example in zip(wanted, _read_texts(run, scores, [row for *_, row in wanted]), strict=True):
        found.setdefault(k, {})[name] = example
    return {k: ArmTexts(**texts) for k, texts in found.items()}


def _read_texts(run: FinishedRun, scores: pa.Table, chosen: Sequence[int]) -> list[Example]:
    if not chosen:
        return []
    rows = scores.take(chosen)
    read = read_positions(run.store, run.version, rows.column("position").to_numpy(), ["text"])
    facts = rows.select(["id", "source", "influence", "n_tokens"]).to_pylist()
    return [
        Example(**fact, text=text[:CARD_CHARACTERS], characters_left_out=max(0, len(text) - CARD_CHARACTERS))
        for fact, text in zip(facts, read.column("text").to_pylist(), strict=True)
    ]
