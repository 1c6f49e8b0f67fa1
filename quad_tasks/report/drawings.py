"""Draw the page's figures from the report: what the templates call, with what a screen reader is to say.

Influence is per token; > 0: training on the document lowers the reference loss.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup

from quad_tasks.report import arm_figures, figures
from quad_tasks.report.model import Arm, DocumentMap, Histogram, Pulls, Report, Round, ScoreRange
from quad_tasks.report.numbers import UNKNOWN, duration
from quad_tasks.report.outcome import Domain
from quad_tasks.report.rows import SourceShare, labelled_arms

TERMS_IN_LABEL = 2
RoundSeries = Literal["documents", "mean_reward", "effective_arms", "accepted_tokens"]


def domains(domains: Sequence[Domain], description: str) -> Markup:
    """Draw each held-out domain's change in bits per byte, after random and after selected tokens."""
    return figures.dot_pairs(
        "domains",
        description,
        [f"{domain.name} (reference)" if domain.is_reference else domain.name for domain in domains],
        [(domain.random - domain.before, domain.selected - domain.before) for domain in domains],
        ("random tokens", "selected tokens"),
        "change in bits per byte (left of 0: better)",
    )


def sources(shares: Sequence[SourceShare], description: str) -> Markup:
    """Draw shares of tokens by source, pool against selection."""
    pairs = [(100 * source.pool_share, 100 * source.share) for source in shares]
    names = [source.name for source in shares]
    return figures.dot_pairs("sources", description, names, pairs, ("pool", "selection"), "share of tokens (%)")


def concentration(arms: Sequence[Arm], description: str) -> Markup:
    """Draw how the selection concentrates on arms."""
    pool_K, selected_K = (np.array(tokens, dtype=np.float64) for tokens in zip(*map(_tokens, arms), strict=True))
    return figures.concentration("concentration", description, pool_K, selected_K)


def rounds(report: Report, series: RoundSeries, label: str, description: str) -> Markup:
    """Draw one quantity over all rounds of all stages; documents and tokens are added up."""
    rounds = [one for stage in report.stages for one in stage.rounds]
    values = [_or_nan(_value(one, series)) for one in rounds]
    if series in ("documents", "accepted_tokens"):
        values = np.nancumsum(values).tolist()
    return figures.over_rounds(
        f"rounds-{series.replace('_', '-')}",
        description,
        values,
        [one.kind == "pilot" for one in rounds],
        [int(start) for start in np.cumsum([len(stage.rounds) for stage in report.stages])[:-1]],
        label,
        report.selected.budget_tokens if series == "accepted_tokens" else None,
    )


def gain_curve(rounds: Sequence[Round], description: str) -> Markup:
    """Draw the share of full scoring's gain that the selection was estimated to have, by what the run had cost."""
    reached = [[1 - _or_nan(end) for end in (one.left, one.left_high, one.left_low)] for one in rounds]
    middle, low, high = 100 * np.array(reached, dtype=np.float64).T
    cost = [100 * _or_nan(one.cost_share) for one in rounds]
    labels = ("cost so far (% of scoring all)", "full scoring's gain (%)")
    return figures.curve("gain-curve", description, cost, middle, low, high, labels)


def pulls(pulls: Pulls, description: str) -> Markup:
    """Draw which arms were pulled when."""
    documents_KG = np.array(pulls.documents, dtype=np.float64)
    return arm_figures.pull_chart("pulls", description, pulls.arms, pulls.first_round, documents_KG)


def ucb_scores(pulls: Pulls, description: str) -> Markup:
    """Draw the scores of the arms pulled over the rounds; a round without one leaves a gap."""
    scores = [score or ScoreRange() for score in pulls.ucb_score]
    low, median, high = (
        np.array([_or_nan(value) for value in values], dtype=np.float64)
        for values in zip(*((score.low, score.median, score.high) for score in scores), strict=True)
    )
    return arm_figures.band_over_rounds("ucb-score", description, low, median, high, "ucb_score of pulled arms")


def influence(counts: Histogram, threshold: float | None, description: str) -> Markup:
    """Draw the distribution of influence among scored and selected documents."""
    edges, scored, selected = (
        np.array(values, dtype=np.float64) for values in (counts.bin_edges, counts.scored, counts.selected)
    )
    return figures.histogram("influence", description, edges, scored, selected, threshold)


def arm_influence(arms: Sequence[Arm], threshold: float | None, description: str) -> Markup:
    """Draw the quantiles of influence within arms."""
    labels = [" ".join([_number(arm), *arm.terms[:TERMS_IN_LABEL]]) for arm in arms]
    quantiles_K5 = np.array([arm.quantiles for arm in arms], dtype=np.float64)
    return arm_figures.quantile_rows("arm-influence", description, labels, quantiles_K5, threshold)


def map_by_arm(documents: DocumentMap, arms: Sequence[Arm], description: str) -> Markup:
    """Draw the map of documents, a colour an arm."""
    arm_N = np.array([-1 if arm is None else arm for arm in documents.arm], dtype=np.int64)
    return arm_figures.arm_map("map-arm", description, _points(documents), arm_N, labelled_arms(arms))


def map_by_influence(documents: DocumentMap, description: str) -> Markup:
    """Draw the map of documents, coloured by influence."""
    influence_N = np.array([_or_nan(value) for value in documents.influence])
    return figures.influence_map("map-influence", description, _points(documents), influence_N)


def map_by_selection(documents: DocumentMap, description: str) -> Markup:
    """Draw the map of documents, the selected ones in front."""
    selected_N = np.array(documents.selected, dtype=bool)
    return figures.selection_map("map-selected", description, _points(documents), selected_N)


def times(times: Sequence[tuple[str, float]], description: str) -> Markup:
    """Draw the time of each step."""
    labels = [f"{name}: {duration(seconds)}" for name, seconds in times]
    return figures.bars("time", description, labels, [seconds for _, seconds in times], "wall-clock time (s)")


def _number(arm: Arm) -> str:
    return UNKNOWN if arm.arm is None else str(arm.arm)


def _tokens(arm: Arm) -> tuple[int, int]:
    return arm.tokens or 0, arm.selected_tokens or 0


def _value(one: Round, series: RoundSeries) -> float | None:
    value: float | None = getattr(one, series)
    return value


def _points(documents: DocumentMap) -> figures.Array:
    return np.column_stack([documents.x, documents.y]).astype(np.float64)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
