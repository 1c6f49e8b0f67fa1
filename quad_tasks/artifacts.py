"""What a run shows in Prefect's UI: Markdown and tables beside the tasks that made them.

Owns their wording. Nothing is read back from them: the ledger and the report hold the numbers. Outside a flow run
nothing is sent. An artifact's key names the run and what is shown, so that a run's rounds are versions of one artifact.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext

from quad_tasks.findings import Findings
from quad_tasks.records import Stage

BAR_CHARACTERS = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"


def show_round(stage: Stage, number: int, info: Mapping[str, Any], pulls: Sequence[Mapping[str, Any]]) -> None:
    """Show a committed round: what it cost and found, its pulls' rewards as bars, and a table of its arms.

    Args:
        stage: the round's stage.
        number: the round.
        info: of its manifest.
        pulls: rows of its pulls table.
    """
    title = f"Stage {stage.number}, round {number}" + (" (random pilot)" if info["kind"] == "pilot" else "")
    lines = [
        f"## {title}",
        f"{info['documents']:,} documents scored ({info['active_documents']:,} of them drawn for their predicted "
        f"influence), {info['tokens']:,} tokens; {info['accepted_documents']:,} are above τ = {info['threshold']:.4g}. "
        f"{info['arms']:,} arms pulled, {info['effective_arms']:.1f} effective arms so far.",
        "Mean influence of each pull, per token:",
        _bars({f"arm {pull['arm']}": pull["reward"] for pull in pulls if pull["n_targets"]}),
        _list(info["findings"]),
    ]
    _markdown(f"{stage.run}-rounds", lines, title)
    if TaskRunContext.get():
        description = f"Arms pulled in stage {stage.number}, round {number}."
        create_table_artifact([dict(pull) for pull in pulls], key=_key(f"{stage.run}-arms"), description=description)


def show_stage(stage: Stage, chosen: Mapping[str, Any]) -> None:
    """Show what a stage chose.

    Args:
        stage: the stage.
        chosen: its `selected.json`.
    """
    title = f"Stage {stage.number}: selection"
    lines = [
        f"## {title}",
        f"{chosen['documents']:,} documents, {chosen['tokens']:,} of {chosen['budget_tokens']:,} tokens; "
        f"{len(chosen['near_duplicates']):,} near-duplicates left out.",
    ]
    if "prediction" in chosen:
        quality = chosen["prediction"]
        lines.append(
            f"Influence of {quality['predicted_documents']:,} unscored documents was predicted; out of sample the rank "
            f"correlation is {quality['spearman']:.2f}, that of arm means {quality['baseline_spearman']:.2f}."
        )
    _markdown(f"{stage.run}-selection", [*lines, _list(chosen["findings"])], title)


def show_report(report: Mapping[str, Any], page: str) -> None:
    """Show a finished run: its outcome, where its page is, its findings.

    Args:
        report: `report.json`.
        page: URI of the page.
    """
    title = f"Run {report['run']}"
    rows = ["| stage | before | random | selected |", "| --- | --- | --- | --- |"]
    for stage in report["stages"]:
        losses = [stage.get(name, {}).get("reference_loss") for name in ("before", "random", "selected")]
        rows.append(f"| {stage['stage']} | " + " | ".join("–" if x is None else f"{x:.4f}" for x in losses) + " |")
    selected, scored = report["selected"], report["scored"]
    lines = [
        f"## {title}",
        f"{selected['documents']:,} documents selected, {selected['tokens']:,} tokens; {scored['share']:.1%} of the "
        "pool was scored. Reference loss, nats per token:",
        "\n".join(rows),
        f"Report: `{page}`",
        _list(report["findings"]),
    ]
    _markdown(f"{report['run']}-report", lines, title)


def _markdown(name: str, paragraphs: Iterable[str], description: str) -> None:
    if TaskRunContext.get():
        create_markdown_artifact("\n\n".join(p for p in paragraphs if p), key=_key(name), description=description)


def _key(name: str) -> str:
    """Make a key of lowercase letters, digits and dashes, which is all Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _list(findings: Findings) -> str:
    """List findings with their remedies as Markdown."""
    if not findings:
        return "No findings."
    return "\n".join(f"- **{f['signature']}** ({f['severity']}): {f['remedy']}" for f in findings)


def _bars(values: Mapping[str, float]) -> str:
    """Draw values as bars in a code block, left of zero for negative ones; the longest fills its side."""
    largest = max((abs(v) for v in values.values()), default=0.0) or 1.0
    width = max((len(name) for name in values), default=0)
    drawn = []
    for name, value in values.items():
        eighths = round(abs(value) / largest * BAR_CHARACTERS * 8)
        bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
        left, right = (bar[: eighths // 8 or 1], "") if value < 0 else ("", bar)
        drawn.append(f"{name:<{width}} {left:>{BAR_CHARACTERS}}|{right:<{BAR_CHARACTERS}} {value:+.4g}")
    return "\n".join(["```", *drawn, "```"])
