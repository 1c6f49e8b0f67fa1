"""The page's arms: how influence is spread over and within them, when they were pulled, and what is in them.

Owns the wording of what `arm_summaries` gathered. Influence is per token; > 0: training on the document lowers the
reference loss.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quad_tasks import report_arm_figures as figures
from quad_tasks.report_blocks import (
    Absent,
    Card,
    Cards,
    Cell,
    Example,
    Figure,
    Report,
    Table,
    count,
    count_cell,
    need,
    number_cell,
    percent,
    significant,
    significant_cell,
    text_cell,
)

ARMS_LISTED = 200
ARMS_DRAWN = 24
TERMS_SHOWN = 8
TERMS_IN_LABEL = 2
SOURCES_NAMED = 2
EXAMPLE_CHARS = 600
TEXTS = {
    "best": "Best: highest influence",
    "borderline": "Borderline: nearest the threshold",
    "worst": "Worst: lowest influence",
}
LABELLED_SHARE = 0.005
"""Of the selection's tokens, that an arm must hold to be numbered on the map."""


def draw_arm_influence(report: Report) -> Figure:
    """Draw the distribution of influence within the arms."""
    arms = [arm for arm in need(report, "arms") if arm.get("quantiles")]
    if not arms:
        raise Absent("arms.0.quantiles")
    arms.sort(key=lambda arm: -arm["quantiles"][2])
    half = ARMS_DRAWN // 2
    shown = arms if len(arms) <= ARMS_DRAWN else arms[:half] + arms[-half:]
    beyond = f" The {half} highest and the {half} lowest medians of {count(len(arms))}." if shown is not arms else ""
    drawing = figures.quantile_rows(
        "arm-influence",
        "Quantiles of influence within arms, highest median first; the arm cards hold texts.",
        [_label(arm) for arm in shown],
        np.array([arm["quantiles"] for arm in shown], dtype=np.float64),
        report.get("threshold"),
    )
    return Figure(
        "arm-influence",
        (drawing,),
        "Influence of the documents scored in each arm: the line spans 5 to 95 % of them, the bar the middle half. "
        f"Arms that overlap much tell the bandit little apart.{beyond}",
    )


def draw_pulls(report: Report) -> Figure:
    """Draw which arms were pulled when, and by what score."""
    arms, first, documents = (need(report, "pulls", key) for key in ("arms", "first_round", "documents"))
    scores = report["pulls"].get("ucb_score") or []
    if not arms:
        raise Absent("pulls.arms")
    pulled = report["pulls"].get("arms_pulled") or len(arms)
    panels = [
        figures.pull_chart(
            "pulls",
            f"Documents drawn from the {len(arms)} most pulled arms over the rounds.",
            arms,
            first,
            np.array(documents, dtype=np.float64),
        )
    ]
    by_score = ""
    if any(scores):
        low, middle, high = (
            np.array([np.nan if score is None else score[key] for score in scores], dtype=np.float64)
            for key in ("low", "median", "high")
        )
        panels.append(
            figures.band_over_rounds(
                "ucb-score", "Score of the arms pulled, over the rounds.", low, middle, high, "ucb_score of pulled arms"
            )
        )
        by_score = (
            " (b) The upper confidence bound by which they were chosen (ucb_score, the paper's Cluster Score), over "
            "the arms of each round that had one."
        )
    most = f"the {len(arms)} most pulled of {count(pulled)}" if pulled > len(arms) else f"all {len(arms)} pulled"
    return Figure("pulls", tuple(panels), f"(a) When each arm was pulled, {most}; darker: more documents.{by_score}")


def show_cards(report: Report) -> Cards:
    """Describe the most selected arms, and those of the lowest influence, by their terms and texts."""
    arms = [arm for arm in need(report, "arms") if arm.get("texts")]
    if not arms:
        raise Absent("arms.0.texts")
    arms.sort(key=lambda arm: (-(arm.get("selected_tokens") or 0), -(_median(arm))))
    pool, selected = ((report.get(key) or {}).get("tokens") for key in ("pool", "selected"))
    return Cards(tuple(_card(arm, pool, selected) for arm in arms))


def list_arms(report: Report) -> Table:
    """List the arms with their telling terms."""
    arms = sorted(need(report, "arms"), key=lambda arm: -_rank(arm))
    shown = arms if len(arms) <= ARMS_LISTED else arms[: ARMS_LISTED // 2] + arms[-ARMS_LISTED // 2 :]
    beyond = (
        "" if shown is arms else f" The {ARMS_LISTED // 2} best and the {ARMS_LISTED // 2} worst of {count(len(arms))}."
    )
    return Table(
        "arm-table",
        "The arms (clusters of the pool), by mean reward: mean influence per token of the documents drawn. Score: the "
        f"upper confidence bound by which the next arm is chosen (the paper's Cluster Score).{beyond}",
        (
            "arm",
            "telling terms",
            "sources",
            "documents",
            "tokens",
            "pulls",
            "scored",
            "mean reward",
            "score",
            "selected tokens",
        ),
        tuple(_arm_row(arm) for arm in shown),
    )


def labelled_arms(report: Report) -> list[int]:
    """Name the arms a map should label: the most selected ones."""
    arms = [arm for arm in report.get("arms") or () if arm.get("selected_tokens") and arm.get("arm") is not None]
    least = LABELLED_SHARE * sum(arm["selected_tokens"] for arm in arms)
    arms = [arm for arm in arms if arm["selected_tokens"] >= least]
    return [int(arm["arm"]) for arm in sorted(arms, key=lambda arm: -arm["selected_tokens"])]


def _label(arm: Mapping[str, Any]) -> str:
    return " ".join([str(arm.get("arm", "–")), *map(str, (arm.get("terms") or ())[:TERMS_IN_LABEL])])


def _card(arm: Mapping[str, Any], pool: float | None, selected: float | None) -> Card:
    facts = [
        f"{count(arm['documents'])} documents" if arm.get("documents") is not None else "",
        f"{count(arm['scored'])} scored" if arm.get("scored") is not None else "",
        f"median influence {significant(_median(arm))}" if arm.get("quantiles") else "",
        _share(arm, pool, selected),
        _sources(arm),
    ]
    texts = tuple(_example(arm["texts"][name], title) for name, title in TEXTS.items() if arm["texts"].get(name))
    name, terms = str(arm.get("arm", "–")), tuple(map(str, (arm.get("terms") or ())[:TERMS_SHOWN]))
    return Card(f"arm-{name}", f"Arm {name}", terms, " · ".join(fact for fact in facts if fact), texts)


def _share(arm: Mapping[str, Any], pool: float | None, selected: float | None) -> str:
    tokens, taken = arm.get("tokens"), arm.get("selected_tokens")
    if not pool or not selected or tokens is None or taken is None:
        return ""
    share = f"{percent(taken / selected)} of the selection's" if taken else "none of the selection's"
    return f"{percent(tokens / pool)} of the pool's tokens, {share}"


def _sources(arm: Mapping[str, Any]) -> str:
    by_source = arm.get("sources") or {}
    sources = sorted(by_source, key=lambda name: -(by_source[name] or 0))
    more = f" and {len(sources) - SOURCES_NAMED} more" if len(sources) > SOURCES_NAMED else ""
    return ", ".join(map(str, sources[:SOURCES_NAMED])) + more


def _example(document: Mapping[str, Any], title: str) -> Example:
    text, influence = str(document.get("text") or ""), document.get("influence")
    known = significant(influence) if influence is not None else "not known"
    left_out = int(document.get("characters_left_out") or 0) + max(0, len(text) - EXAMPLE_CHARS)
    return Example(title, f"{document.get('id', 'no id')} · influence {known}", text[:EXAMPLE_CHARS], left_out)


def _arm_row(arm: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        Cell(str(arm.get("arm", "–")), _number(arm.get("arm"))),
        text_cell(", ".join(map(str, (arm.get("terms") or ())[:TERMS_SHOWN]))),
        text_cell(_sources(arm)),
        *(count_cell(arm.get(key)) for key in ("documents", "tokens")),
        number_cell(arm.get("pulls"), 1),
        count_cell(arm.get("scored")),
        *(significant_cell(arm.get(key)) for key in ("mean_reward", "ucb_score")),
        count_cell(arm.get("selected_tokens")),
    )


def _rank(arm: Mapping[str, Any]) -> float:
    reward = _number(arm.get("mean_reward"))
    return reward if np.isfinite(reward) else -np.inf


def _median(arm: Mapping[str, Any]) -> float:
    quantiles = arm.get("quantiles")
    return float(quantiles[2]) if quantiles else float("-inf")


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
