"""The second half of the report page: how the run went, what it looked at, and all that is needed to repeat it.

Owns the bandit's course over rounds, the distribution of influence, the map, the arms, the example texts, diversity,
findings, cost and provenance. Influence is per token; > 0: training on the document lowers the reference loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quad_tasks import report_arm_figures as arm_figures
from quad_tasks import report_figures as figures
from quad_tasks.report_arms import labelled_arms
from quad_tasks.report_blocks import (
    Absent,
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

EXAMPLES_SHOWN = 8
EXAMPLE_CHARS = 1200
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
    features = prediction.get("features")
    looked = f" Features kept by cross-validation: {', '.join(features)}." if features else ""
    return Paragraph(
        "A regression predicts the influence of held-back scored documents with Spearman correlation "
        f"{fixed(spearman)}; their arm's mean alone gives {fixed(baseline)}. It was {use}.{looked}"
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
    """Draw the documents on a plane, by arm, by influence and by selection."""
    x, y, influence, selected = (need(report, "map", key) for key in ("x", "y", "influence", "selected"))
    if not x:
        raise Absent("map.x")
    points_N2 = np.column_stack([x, y]).astype(np.float64)
    influence_N = np.array([_number(value) for value in influence])
    selected_N = np.array(selected, dtype=bool)
    scored = int(np.isfinite(influence_N).sum())
    panels = [
        figures.influence_map("map-influence", "Map of documents by influence.", points_N2, influence_N),
        figures.selection_map("map-selected", "Map of documents by selection.", points_N2, selected_N),
    ]
    captions = [
        f"Influence per token of the {count(scored)} scored ones; faint: not scored.",
        f"The {count(selected_N.sum())} selected ones.",
    ]
    if arms := report["map"].get("arm"):
        arm_N = np.array([-1 if arm is None else arm for arm in arms], dtype=np.int64)
        drawing = arm_figures.arm_map("map-arm", "Map of documents by arm.", points_N2, arm_N, labelled_arms(report))
        panels.insert(0, drawing)
        captions.insert(0, "A colour an arm; numbers: the most selected arms.")
    lettered = " ".join(f"({letter}) {caption}" for letter, caption in zip("abc", captions, strict=False))
    return Figure(
        "map",
        tuple(panels),
        f"{count(len(x))} documents projected from their embeddings onto two directions; near points are similar "
        f"texts, the axes have no unit. {lettered}",
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
    facts: dict[str, Any] = {
        **run,
        "pool": {
            key: pool[key] for key in ("name", "version", "documents", "tokens", "bytes", "inputs") if key in pool
        },
        "model": report.get("model"),
        "tokenizer": report.get("tokenizer"),
    }
    for key, traced in (report.get("provenance") or {}).items():
        known = facts.get(key)
        facts[key] = {**known, **traced} if isinstance(known, Mapping) and isinstance(traced, Mapping) else traced
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


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _ratio(value: float | None, baseline: float | None) -> float | None:
    return value / baseline if value is not None and baseline else None
