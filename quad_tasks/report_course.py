"""The second half of the report page: how the run went, what it looked at, and all that is needed to repeat it.

Owns the bandit's course over rounds, the distribution of influence, the map, the arms, the example texts, diversity,
findings, cost and provenance. Influence is per token; > 0: training on the document lowers the reference loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quad_tasks import report_figures as figures
from quad_tasks.report_blocks import (
    Absent,
    Cell,
    Example,
    Examples,
    Figure,
    FindingCard,
    Findings,
    Paragraph,
    Report,
    Table,
    Tree,
    count,
    count_cell,
    duration,
    fixed,
    need,
    number_cell,
    percent,
    scalar,
    significant,
    significant_cell,
    size,
    text_cell,
)

ARMS_LISTED = 200
EXAMPLES_SHOWN = 8
EXAMPLE_CHARS = 1200
TERMS_SHOWN = 8
SOURCES_NAMED = 2
ROUND_PANELS = {
    "documents": "documents scored so far",
    "mean_reward": "mean influence per token",
    "effective_arms": "effective number of arms",
    "accepted_tokens": "accepted tokens so far",
}
SEVERITIES = ("severe", "warning", "info")


def draw_rounds(report: Report) -> Figure:
    """Draw documents scored, mean reward, effective arms and accepted tokens over all rounds."""
    stages = [list(stage.get("rounds") or ()) for stage in need(report, "stages")]
    rounds = [entry for stage in stages for entry in stage]
    if not rounds:
        raise Absent("stages.0.rounds")
    starts = [int(start) for start in np.cumsum([len(stage) for stage in stages])[:-1]]
    pilot = [entry.get("kind") == "pilot" for entry in rounds]
    series = {key: [_number(entry.get(key)) for entry in rounds] for key in ROUND_PANELS}
    for key in ("documents", "accepted_tokens"):
        series[key] = np.nancumsum(series[key]).tolist()
    budget = (report.get("selected") or {}).get("budget_tokens")
    panels = [
        figures.over_rounds(
            f"rounds-{key.replace('_', '-')}",
            f"{label} over {len(rounds)} rounds.",
            series[key],
            pilot,
            starts,
            label,
            budget if key == "accepted_tokens" else None,
        )
        for key, label in ROUND_PANELS.items()
    ]
    budget_note = f" Dashed: the budget of {count(budget)} tokens." if budget is not None else ""
    stage_note = " Dotted: a new stage." if starts else ""
    return Figure(
        "rounds",
        tuple(panels),
        "The bandit over its rounds. Open circles: random pilot rounds; filled: rounds chosen by the policy. Effective "
        "number of arms: exponential of the entropy of pulls; an early fall means that the policy collapsed onto few "
        f"arms.{budget_note}{stage_note}",
    )


def describe_pilot(report: Report) -> Paragraph | None:
    """Say what the last stage's random pilot advised."""
    pilot = need(report, "stages", -1).get("pilot")
    if not pilot:
        return None
    m = pilot.get("documents_per_pull")
    advice = (
        f"pulls of {count(m)} documents would tell arms apart (a standard error of half the deviation between them)"
        if m
        else "arms do not differ, however many documents a pull draws"
    )
    return Paragraph(
        f"The random pilot put τ at {significant(need(report, 'threshold'))}. Influence deviates by "
        f"{significant(need(pilot, 'influence_deviation'))} per token, which α weighs; {advice}."
    )


def describe_prediction(report: Report) -> Paragraph | None:
    """Say how well a regression predicted the influence of unscored documents, where one was tried."""
    prediction = report.get("prediction")
    if not prediction:
        return None
    spearman, baseline = need(prediction, "spearman"), need(prediction, "baseline_spearman")
    use = (
        "used to rank unscored documents"
        if need(prediction, "accepted")
        else "not used: arms' means ranked the unscored"
    )
    return Paragraph(
        "A regression predicts the influence of held-back scored documents with Spearman correlation "
        f"{fixed(spearman)}; their arm's mean alone gives {fixed(baseline)}. It was {use}."
    )


def draw_influence(report: Report) -> Figure:
    """Draw the distribution of influence."""
    edges, scored, selected = (
        np.asarray(need(report, "influence", key), dtype=np.float64) for key in ("bin_edges", "scored", "selected")
    )
    threshold = report.get("threshold")
    drawing = figures.histogram(
        "influence", "Histogram of influence among scored and selected documents.", edges, scored, selected, threshold
    )
    tau = f" Dashed: the threshold τ = {significant(threshold)}." if threshold is not None else ""
    return Figure(
        "influence",
        (drawing,),
        f"Influence per token of the {count(scored.sum())} scored documents (outline) and of the "
        f"{count(selected.sum())} selected among them (filled). Right of 0: training on the document lowers the "
        f"reference loss, to first order.{tau}",
    )


def draw_map(report: Report) -> Figure:
    """Draw the documents on a plane, by influence and by selection."""
    x, y, influence, selected = (need(report, "map", key) for key in ("x", "y", "influence", "selected"))
    if not x:
        raise Absent("map.x")
    points_N2 = np.column_stack([x, y]).astype(np.float64)
    influence_N = np.array([_number(value) for value in influence])
    selected_N = np.array(selected, dtype=bool)
    scored = int(np.isfinite(influence_N).sum())
    return Figure(
        "map",
        (
            figures.influence_map("map-influence", "Map of documents by influence.", points_N2, influence_N),
            figures.selection_map("map-selected", "Map of documents by selection.", points_N2, selected_N),
        ),
        f"{count(len(x))} documents projected from their embeddings onto two directions; near points are similar "
        f"texts, the axes have no unit. (a) Influence per token of the {count(scored)} scored ones; faint: not scored. "
        f"(b) The {count(selected_N.sum())} selected ones.",
    )


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


def show_best(report: Report) -> Examples:
    """Show the documents of highest influence."""
    return _show(report, "best", "Highest influence")


def show_borderline(report: Report) -> Examples:
    """Show the documents nearest the threshold."""
    return _show(report, "borderline", "Nearest the threshold")


def show_worst(report: Report) -> Examples:
    """Show the documents of lowest influence."""
    return _show(report, "worst", "Lowest influence")


def list_diversity(report: Report) -> Table:
    """List the diversity of the selection beside that of as many documents chosen otherwise."""
    profiles = need(report, "diversity")
    selected, random = need(profiles, "selected"), need(profiles, "random")
    others = [name for name in profiles if name != "selected"]
    rows = tuple(
        (
            text_cell(metric.replace("_", " ")),
            significant_cell(selected.get(metric)),
            *(significant_cell(profiles[name].get(metric)) for name in others),
            number_cell(_ratio(selected.get(metric), random.get(metric)), 2),
        )
        for metric in dict.fromkeys([*selected, *random])
    )
    return Table(
        "diversity-table",
        "Diversity of the selection and of as many documents chosen otherwise.",
        ("measure", "selection", *(name.replace("_", " ") for name in others), "selection / random"),
        rows,
    )


def list_findings(report: Report) -> Findings | Paragraph:
    """Show what went wrong, most severe first, each with its remedy."""
    findings = need(report, "findings")
    if not findings:
        return Paragraph("No failure signature was found.")
    cards = [
        FindingCard(
            str(finding.get("signature", "unnamed")).replace("_", " "),
            str(finding.get("severity", "info")),
            tuple((key.replace("_", " "), scalar(value)) for key, value in (finding.get("evidence") or {}).items()),
            str(finding.get("remedy", "")),
        )
        for finding in findings
    ]
    order = {severity: position for position, severity in enumerate(SEVERITIES)}
    return Findings(tuple(sorted(cards, key=lambda card: order.get(card.severity, len(order)))))


def draw_time(report: Report) -> Figure:
    """Draw where the time went."""
    known = {name: seconds for name, seconds in need(report, "time_s").items() if seconds is not None}
    times = sorted(known.items(), key=lambda item: -item[1])
    if not times:
        raise Absent("time_s")
    total = sum(seconds for _, seconds in times)
    drawing = figures.bars(
        "time",
        "Seconds by stage: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in times) + ".",
        [f"{name}: {duration(seconds)}" for name, seconds in times],
        [seconds for _, seconds in times],
        "wall-clock time (s)",
    )
    first = f"; {times[0][0]} took {percent(times[0][1] / total)} of it" if total else ""
    return Figure("time", (drawing,), f"Wall-clock time by stage, {duration(total)} in all{first}.")


def state_memory(report: Report) -> Paragraph:
    """State the peak memory."""
    return Paragraph(f"Peak resident memory of one process: {size(need(report, 'peak_memory_bytes'))}.")


def list_provenance(report: Report) -> Tree:
    """Give the names, versions and digests that identify the run."""
    run = {key: report[key] for key in ("run", "created", "quad_version", "config_digest") if key in report}
    pool = report.get("pool") or {}
    facts = {
        **run,
        "pool": {
            key: pool[key] for key in ("name", "version", "documents", "tokens", "bytes", "inputs") if key in pool
        },
        "model": report.get("model"),
        "tokenizer": report.get("tokenizer"),
    }
    return Tree({key: value for key, value in facts.items() if value})


def list_config(report: Report) -> Tree:
    """Give the whole configuration as it ran."""
    return Tree({"config": need(report, "config")})


def _show(report: Report, key: str, title: str) -> Examples:
    documents: Sequence[Mapping[str, Any]] = need(report, "examples", key)
    return Examples(f"examples-{key}", title, tuple(_example(document) for document in documents[:EXAMPLES_SHOWN]))


def _example(document: Mapping[str, Any]) -> Example:
    text, influence, n_tokens = str(document.get("text", "")), document.get("influence"), document.get("n_tokens")
    facts = [
        f"source {document.get('source', 'unknown')}",
        f"arm {document.get('arm', 'unknown')}",
        f"influence {significant(influence)} per token" if influence is not None else "not scored",
        *([f"{count(n_tokens)} tokens"] if n_tokens is not None else []),
    ]
    left_out = max(len(text) - EXAMPLE_CHARS, 0)
    return Example(str(document.get("id", "no id")), " · ".join(facts), text[:EXAMPLE_CHARS], left_out)


def _arm_row(arm: Mapping[str, Any]) -> tuple[Cell, ...]:
    by_source = arm.get("sources") or {}
    sources = sorted(by_source, key=lambda name: -(by_source[name] or 0))
    more = f" and {len(sources) - SOURCES_NAMED} more" if len(sources) > SOURCES_NAMED else ""
    return (
        Cell(str(arm.get("arm", "–")), _number(arm.get("arm"))),
        text_cell(", ".join(map(str, (arm.get("terms") or ())[:TERMS_SHOWN]))),
        text_cell(", ".join(sources[:SOURCES_NAMED]) + more),
        *(count_cell(arm.get(key)) for key in ("documents", "tokens")),
        number_cell(arm.get("pulls"), 1),
        count_cell(arm.get("scored")),
        *(significant_cell(arm.get(key)) for key in ("mean_reward", "ucb_score")),
        count_cell(arm.get("selected_tokens")),
    )


def _rank(arm: Mapping[str, Any]) -> float:
    reward = _number(arm.get("mean_reward"))
    return reward if np.isfinite(reward) else -np.inf


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _ratio(value: float | None, baseline: float | None) -> float | None:
    return value / baseline if value is not None and baseline else None
