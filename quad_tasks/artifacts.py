"""What a run shows in Prefect's UI: Markdown and tables beside the tasks that made them.

Owns their wording. Nothing is read back from them: the ledger and the report hold the numbers. Outside a flow run
nothing is sent. An artifact's key names the run and what is shown, so that a run's rounds are versions of one artifact.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext

from quad_tasks.artifact_plots import bars, course
from quad_tasks.findings import Findings, describe_finding
from quad_tasks.records import Stage

MOST_BARS = 40
ARM_COLUMNS = {
    "arm": "arm",
    "n_documents": "documents",
    "cursor": "drawn before",
    "n_targets": "target tokens",
    "reward": "mean influence",
    "reward_variance": "variance",
    "ucb_score": "UCB score",
}


def show_round(stage: Stage, number: int, info: Mapping[str, Any], pulls: Sequence[Mapping[str, Any]]) -> None:
    """Show a committed round: what it cost and found, its pulls' rewards as a plot, and a table of its arms.

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
        _plot_pulls(pulls, info["threshold"]),
        _list(info["findings"]),
    ]
    _markdown(f"{stage.run}-rounds", lines, title)
    if TaskRunContext.get():
        description = f"Arms pulled in stage {stage.number}, round {number}."
        rows = [{title: _cell(pull.get(name)) for name, title in ARM_COLUMNS.items()} for pull in _best_first(pulls)]
        create_table_artifact(rows, key=_key(f"{stage.run}-arms"), description=description)


def show_stage(stage: Stage, chosen: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> None:
    """Show what a stage chose, and the course of its rounds.

    Args:
        stage: the stage.
        chosen: its `selected.json`.
        rounds: the info of its rounds' manifests, in order.
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
            f"correlation is {quality['spearman']:.2f}, that of arm means {quality['baseline_spearman']:.2f}. Features "
            f"kept: {', '.join(quality['features'])}."
        )
    lines += [
        course(
            "Mean influence of each round's pulls", [r["mean_reward"] for r in rounds], "round", "influence per token"
        ),
        course(
            "What was scored above τ so far",
            np.cumsum([r["accepted_tokens"] for r in rounds]).tolist(),
            "round",
            "tokens",
            ("budget", chosen["budget_tokens"]),
        ),
    ]
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
        _plot_losses(report["stages"][-1]),
        f"The whole report: [index.html]({page})" if "://" in page else f"The whole report: `{page}`",
        _list(report["findings"]),
    ]
    _markdown(f"{report['run']}-report", lines, title)


def _best_first(pulls: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pulls, key=lambda pull: -pull["reward"])


def _cell(value: Any) -> Any:
    """Cut a number to what a table shows well."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _plot_pulls(pulls: Sequence[Mapping[str, Any]], threshold: float) -> str:
    """Draw the pulls' mean influence, the best and the worst where there are many."""
    scored = _best_first([pull for pull in pulls if pull["n_targets"]])
    shown = scored if len(scored) <= MOST_BARS else [*scored[: MOST_BARS // 2], *scored[-MOST_BARS // 2 :]]
    if not shown:
        return ""
    which = "each pull" if len(shown) == len(scored) else f"the {MOST_BARS // 2} best and worst of {len(scored)} pulls"
    values = {f"arm {pull['arm']}": pull["reward"] for pull in shown}
    return bars(f"Mean influence of {which}", values, "influence per token", ("τ", threshold))


def _plot_losses(stage: Mapping[str, Any]) -> str:
    """Draw what training brought: the reference loss less than before, at random and as selected."""
    before = stage.get("before", {}).get("reference_loss")
    after = {name: stage[name]["reference_loss"] for name in ("random", "selected") if name in stage}
    if before is None or not after:
        return ""
    falls = {name: before - loss for name, loss in after.items()}
    return bars("What training took off the reference loss", falls, "nats per token")


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
    return "\n".join(f"- {describe_finding(finding)}" for finding in findings)
