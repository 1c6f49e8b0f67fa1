"""What a finished run knows of each arm, and how its rounds went about the arms, for the report.

Influence here is what the last stage measured, per token. Documents drawn for their predicted influence are among them,
so that an arm's quantiles describe what was looked at, not the arm at random; its mean reward is of random draws alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks.config import RunConfig
from quad_tasks.core import bandit
from quad_tasks.core.terms import telling_terms
from quad_tasks.draw import policy
from quad_tasks.pull import load_state
from quad_tasks.records import Stage
from quad_tasks.state import load_arms
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

TERM_ARMS = 200
TERM_DOCUMENTS = 16
TERMS = 6
CARDS_SELECTED, CARDS_LOWEST = 12, 4
"""Arms described by texts: the most selected, and those of the lowest median influence."""
CARD_CHARACTERS = 360
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COURSE_ARMS, COURSE_BINS = 30, 80
"""Arms and groups of rounds in the picture of pulls."""


def describe_arms(
    store: Store, config: RunConfig, version: str, scores: pa.Table, chosen: pa.Table, documents: pa.Table
) -> list[dict[str, Any]]:
    """Describe every arm: its size, what the bandit knows of it, what was selected.

    Returns:
        A row an arm: `arm`, `documents`, `tokens`, `pulls`, `mean_reward`, `ucb_score`, `scored`, `selected_tokens`,
        `sources` (tokens), `quantiles` of influence (`QUANTILES`; None where nothing was scored), `terms` (of the most
        selected `TERM_ARMS`), and `texts` (`best`, `borderline` and `worst`; of the arms that get a card).
    """
    last = config.training.stages - 1
    committed = rounds.list_rounds(store, config.run, last)
    threshold = float(committed[0].info["threshold"])
    stage = Stage(config.run, last, version, "", committed[0].info["direction"])
    state = load_state(config, stage, len(committed))
    arms = load_arms(config.workspace, version)
    ucb = bandit.ucb_scores(state, policy(config))
    selected = _tokens_by_arm(chosen)
    scored = dict(zip(*np.unique(scores["arm"].to_numpy(), return_counts=True), strict=True))
    first = np.argsort([-selected.get(arm, 0) for arm in range(arms.num_rows)], kind="stable")[:TERM_ARMS]
    terms = dict(zip(first.tolist(), telling_terms(_arm_texts(store, version, arms, first), TERMS), strict=True))
    staged = scores.filter(pa.array(scores["stage"].to_numpy() == last))
    quantiles = _quantiles(staged)
    texts = _texts(store, version, staged, _carded(selected, quantiles), threshold)
    sources = _sources(documents)
    rows = []
    for arm, (n, tokens) in enumerate(zip(arms["n_documents"].to_pylist(), arms["n_tokens"].to_pylist(), strict=True)):
        pulls = float(state.pulls[arm])
        rows.append(
            {
                "arm": arm,
                "documents": n,
                "tokens": tokens,
                "pulls": pulls,
                "mean_reward": float(state.reward_sum[arm]) / pulls if pulls > 0 else None,
                "ucb_score": float(ucb[arm]) if np.isfinite(ucb[arm]) else None,
                "scored": int(scored.get(arm, 0)),
                "selected_tokens": selected.get(arm, 0),
                "quantiles": quantiles.get(arm),
                "terms": terms.get(arm, []),
                "texts": texts.get(arm),
                "sources": sources.get(arm, {}),
            }
        )
    return rows


def course_of_pulls(store: Store, config: RunConfig) -> dict[str, Any]:
    """Sum up which arms were pulled when, over all rounds of all stages but the pilots.

    Returns:
        `arms`, the most pulled, most first; `first_round`, the first round of each group of rounds, counted over all
        stages; `documents` [arms, groups] drawn; `ucb_score`, for each round the `low`, `median` and `high` score of
        the arms pulled, None where none has one yet.
    """
    pulls = [
        None if committed.info["kind"] == "pilot" else rounds.read_round_table(store, committed, "pulls")
        for number in range(config.training.stages)
        for committed in rounds.list_rounds(store, config.run, number)
    ]
    size = max(1, -(-len(pulls) // COURSE_BINS))
    counts: dict[int, npt.NDArray[np.int64]] = {}
    scores: list[dict[str, float] | None] = []
    for number, table in enumerate(pulls):
        known = [] if table is None else [score for score in table["ucb_score"].to_pylist() if score is not None]
        scores.append(
            {"low": min(known), "median": float(np.median(known)), "high": max(known)} if len(known) else None
        )
        if table is None:
            continue
        for arm, n in zip(table["arm"].to_pylist(), table["n_documents"].to_pylist(), strict=True):
            row = counts.setdefault(arm, np.zeros(-(-len(pulls) // size), np.int64))
            row[number // size] += n
    most = sorted(counts, key=lambda arm: (-int(counts[arm].sum()), arm))[:COURSE_ARMS]
    return {
        "arms": most,
        "arms_pulled": len(counts),
        "first_round": list(range(0, len(pulls), size)),
        "documents": [counts[arm].tolist() for arm in most],
        "ucb_score": scores,
    }


def _tokens_by_arm(chosen: pa.Table) -> dict[int, int]:
    grouped = chosen.group_by("arm").aggregate([("n_tokens", "sum")])
    return dict(zip(grouped["arm"].to_pylist(), grouped["n_tokens_sum"].to_pylist(), strict=True))


def _sources(documents: pa.Table) -> dict[int, dict[str, int]]:
    by_arm: dict[int, dict[str, int]] = {}
    grouped = documents.group_by(["arm", "source"]).aggregate([("n_tokens", "sum")])
    for row in sorted(grouped.to_pylist(), key=lambda row: -row["n_tokens_sum"]):
        by_arm.setdefault(row["arm"], {})[row["source"]] = row["n_tokens_sum"]
    return by_arm


def _arm_texts(store: Store, version: str, arms: pa.Table, chosen: npt.NDArray[np.int64]) -> list[list[str]]:
    """Read the first documents of each chosen arm: a random sample of it."""
    starts, sizes = arms["position"].to_numpy()[chosen], arms["n_documents"].to_numpy()[chosen]
    counts = np.minimum(sizes, TERM_DOCUMENTS)
    positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
    texts = read_positions(store, version, positions, ["text"])["text"].to_pylist()
    bounds = np.cumsum([0, *counts])
    return [texts[bounds[i] : bounds[i + 1]] for i in range(len(counts))]


def _quantiles(scores: pa.Table) -> dict[int, list[float]]:
    arm, influence = scores["arm"].to_numpy(), scores["influence"].to_numpy()
    return {int(k): np.quantile(influence[arm == k], QUANTILES).tolist() for k in np.unique(arm)}


def _carded(selected: dict[int, int], quantiles: dict[int, list[float]]) -> list[int]:
    """Choose the arms whose texts are shown, among those with something scored."""
    most = sorted(quantiles, key=lambda arm: (-selected.get(arm, 0), -quantiles[arm][2]))[:CARDS_SELECTED]
    lowest = sorted(quantiles, key=lambda arm: quantiles[arm][2])
    return most + [arm for arm in lowest if arm not in most][:CARDS_LOWEST]


def _texts(
    store: Store, version: str, scores: pa.Table, arms: Sequence[int], threshold: float
) -> dict[int, dict[str, Any]]:
    """Read each arm's best, borderline and worst scored document; of fewer than three, the first of these."""
    arm, influence = scores["arm"].to_numpy(), scores["influence"].to_numpy()
    wanted: list[tuple[int, str, int]] = []
    for k in arms:
        left = np.flatnonzero(arm == k)
        for name, rank in (("best", -influence), ("worst", influence), ("borderline", np.abs(influence - threshold))):
            if len(left):
                row = int(left[np.argmin(rank[left])])
                wanted.append((k, name, row))
                left = left[left != row]
    rows = scores.take([row for _, _, row in wanted])
    read = read_positions(store, version, rows["position"].to_numpy(), ["text"])["text"].to_pylist() if wanted else []
    facts = rows.select(["id", "source", "influence", "n_tokens"]).to_pylist()
    found: dict[int, dict[str, Any]] = {}
    for (k, name, _), fact, text in zip(wanted, facts, read, strict=True):
        cut = {"text": text[:CARD_CHARACTERS], "characters_left_out": max(0, len(text) - CARD_CHARACTERS)}
        found.setdefault(k, {})[name] = fact | cut
    return found
