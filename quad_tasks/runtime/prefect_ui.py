"""What a run shows in Prefect's UI: Markdown and tables beside the tasks that made them, and what it made, as assets.

Owns their wording. Nothing is read back from them: the ledger and the report hold the numbers. Outside a flow run
nothing is sent, and what cannot be sent is left. An artifact's key names the run and what is shown, so that a run's
rounds are versions of one artifact; an asset's key is where the thing stands in the workspace.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.manifests.run import Choice, RoundInfo
from quad_tasks.records import Finding, Stage
from quad_tasks.runtime.findings import describe_finding
from quad_tasks.runtime.prefect_plots import bars, history
from quad_tasks.runtime.prefect_runs import go_on_without, without_prefect
from quad_tasks.runtime.progress import notice
from quad_tasks.storage.errors import redact
from quad_tasks.storage.store import Store

MOST_BARS = 40
NOT_IN_ASSET_KEYS = re.compile(r"[\s\0#?&%\"'<>\[\]{}|\\^`]")
"""What Prefect refuses in an asset's key."""
ARM_COLUMNS = {
    "arm": "arm",
    "n_documents": "documents",
    "cursor": "drawn before",
    "n_targets": "target tokens",
    "reward": "mean influence",
    "reward_variance": "variance",
    "ucb_score": "UCB score",
}


def show_round(stage: Stage, number: int, info: RoundInfo, pulls: Sequence[Mapping[str, Any]]) -> None:
    """Show a committed round: what it cost and found, its pulls' rewards as a plot, and a table of its arms.

    Args:
        stage: the round's stage.
        number: the round.
        info: of its manifest.
        pulls: rows of its pulls table.
    """
    if not _is_shown():
        return
    title = f"Stage {stage.number}, round {number}" + (" (random pilot)" if info.kind == "pilot" else "")
    lines = [
        f"## {title}",
        f"{info.documents:,} documents scored ({info.active_documents:,} of them drawn for their predicted "
        f"influence), {info.tokens:,} tokens; {info.accepted_documents:,} are above τ = {info.threshold:.4g}. "
        f"{info.arms:,} arms pulled, {info.effective_arms:.1f} effective arms so far.{_cost(info)}",
        _remaining(info),
        _plot_pulls(pulls, info.threshold),
        _list(info.findings),
    ]
    _markdown(f"{stage.run}-rounds", lines, title)
    description = f"Arms pulled in stage {stage.number}, round {number}."
    rows = [{title: _cell(pull.get(name)) for name, title in ARM_COLUMNS.items()} for pull in _best_first(pulls)]
    _send(create_table_artifact, rows, f"{stage.run}-arms", description)


def _is_shown() -> bool:
    """Say whether there is a task beside which to show something: drawings cost more than a small round."""
    return TaskRunContext.get() is not None and not without_prefect()


def _remaining(info: RoundInfo) -> str:
    """Say what scoring everything would add, where it was estimated."""
    if (found := info.remaining) is None:
        return ""
    return (
        f"Scoring everything would add about {found.left:.0%} (95 % interval {found.low:.0%} to {found.high:.0%}) of "
        f"full scoring's gain over random; estimated from {found.held_out:,} documents held out of the regression."
    )


def _cost(info: RoundInfo) -> str:
    """Say what the run has cost so far, where it is known."""
    reason = f" Documents are {info.calibration.reason}." if info.calibration else ""
    return f" Cost so far: {info.cost.share:.2%} of scoring the whole pool exactly.{reason}" if info.cost else reason


def show_stage(stage: Stage, chosen: Choice, rounds: Sequence[RoundInfo]) -> None:
    """Show what a stage chose, and the history of its rounds.

    Args:
        stage: the stage.
        chosen: its `selected.json`.
        rounds: the info of its rounds' manifests, in order.
    """
    if not _is_shown():
        return
    title = f"Stage {stage.number}: selection"
    lines = [
        f"## {title}",
        f"{chosen.documents:,} documents, {chosen.tokens:,} of {chosen.budget_tokens:,} tokens; "
        f"{len(chosen.near_duplicates):,} near-duplicates left out.",
    ]
    if (quality := chosen.prediction) is not None:
        lines.append(
            f"Influence of {quality.predicted_documents:,} unscored documents was predicted; out of sample the rank "
            f"correlation is {quality.spearman:.2f}, that of arm means {quality.baseline_spearman:.2f}. Features "
            f"kept: {', '.join(quality.features)}."
        )
    lines += [
        history(
            "Mean influence of each round's pulls", [r.mean_reward for r in rounds], "round", "influence per token"
        ),
        history(
            "What was scored above τ so far",
            np.cumsum([r.accepted_tokens for r in rounds]).tolist(),
            "round",
            "tokens",
            ("budget", chosen.budget_tokens),
        ),
    ]
    _markdown(f"{stage.run}-selection", [*lines, _list(chosen.findings)], title)


def show_refresh(key: str, version: PoolVersion, before: PoolVersion | None) -> None:
    """Show what a refresh of a pool brought: its counts beside those of the version before.

    Args:
        key: of the version's manifest.
        version: that holds the inputs as they are now.
        before: the last version of its recipe; None: there was none.
    """
    if without_prefect() or FlowRunContext.get() is None:
        return
    name = Path(key).parent.name
    if version == before:
        news = f"Nothing is new: {name} holds the inputs as they are."
    elif before is None:
        news = f"{name} is the first version of these settings."
    else:
        new, gone = set(version.shards) - set(before.shards), set(before.shards) - set(version.shards)
        kept = "the arms stand" if version.clustering == before.clustering else "clustered anew"
        news = f"{name}: shards new {len(new):,}, gone or changed {len(gone):,}; {kept}."
    rows = ["| | before | now |", "| --- | --- | --- |"]
    for what in ("documents", "tokens", "arms"):
        rows.append(f"| {what} | {getattr(before, what, 0):,} | {getattr(version, what):,} |")
    rows.append(f"| shards | {len(before.shards if before else ()):,} | {len(version.shards):,} |")
    aside = ", ".join(f"{n:,} {reason}" for reason, n in sorted(version.set_aside.items())) or "none"
    drift = f"{version.drift.drift:.1%} of documents are new and far from their arm, or have moved between arms"
    laid_out = f"Laid out in {len(version.layers):,} layers." if len(version.layers) > 1 else "Laid out whole."
    lines = [f"## Pool {version.pool}", news, "\n".join(rows), f"Set aside: {aside}. Drift: {drift}. {laid_out}"]
    _markdown(f"pool-{version.pool}", lines, f"Pool {version.pool}: {news}")


def show_report(report: Mapping[str, Any], page: str) -> None:
    """Show a finished run: its outcome, where its page is, its findings.

    Args:
        report: `report.json`.
        page: URI of the page.
    """
    if not _is_shown():
        return
    title = f"Run {report['run']}"
    rows = ["| stage | before | random | selected |", "| --- | --- | --- | --- |"]
    for stage in report["stages"]:
        losses = [stage.get(name, {}).get("reference_loss") for name in ("before", "random", "selected")]
        rows.append(f"| {stage['stage']} | " + " | ".join("–" if x is None else f"{x:.4f}" for x in losses) + " |")
    selected, scored = report["selected"], report["scored"]
    lines = [
        f"## {title}",
        f"{selected['documents']:,} documents selected, {selected['tokens']:,} tokens; {scored['share']:.1%} of the "
        f"pool was scored{_share_of_cost(report)}. Reference loss, nats per token:",
        "\n".join(rows),
        _plot_losses(report["stages"][-1]),
        f"The whole report: [index.html]({page})" if "://" in page else f"The whole report: `{page}`",
        _list([Finding(**finding) for finding in report["findings"]]),
    ]
    _markdown(f"{report['run']}-report", lines, title)


def show_asset(store: Store, kind: str, key: str, made_from: Sequence[str], **facts: Any) -> None:
    """Show that something was made in the workspace, and from what: Prefect keeps its lineage.

    Args:
        store: the workspace.
        kind: what it is, in a word or two.
        key: its own in the workspace.
        made_from: keys of the assets it was made from.
        facts: numbers about it, by name.
    """
    if without_prefect() or FlowRunContext.get() is None:
        return
    description = f"{kind} {key}"
    try:
        asset = Asset(key=_asset_key(store, key), properties=AssetProperties(name=description))
        sources: list[str | Asset] = [Asset(key=_asset_key(store, source)) for source in made_from]
        task = materialize(
            asset,
            by="quad",
            name=f"asset: {kind}",
            asset_deps=sources,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(add_asset_metadata)
        task(asset, facts)
    except Exception as error:
        _left_out(error, description)


def _asset_key(store: Store, key: str) -> str:
    """Return the address of a key of the workspace, as far as Prefect takes it."""
    root = store.uri if "://" in store.uri else f"file://{Path(store.uri).absolute()}"
    return NOT_IN_ASSET_KEYS.sub("-", f"{root}/{key}")


def _share_of_cost(report: Mapping[str, Any]) -> str:
    share = report.get("cost", {}).get("share")
    return "" if share is None else f", at {share:.1%} of the model FLOPs of scoring all of it"


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
    _send(create_markdown_artifact, "\n\n".join(p for p in paragraphs if p), name, description)


def _send(create: Callable[..., Any], content: Any, name: str, description: str) -> None:
    """Create an artifact, or say that it could not be: nothing rests on it."""
    if without_prefect():
        return
    try:
        create(content, key=_key(name), description=description)
    except Exception as error:
        _left_out(error, description)


def _left_out(error: Exception, description: str) -> None:
    """Say what Prefect could not be told, unless it is away for good."""
    if not go_on_without(error):
        notice(f"Prefect's UI does not show {description!r}: {type(error).__name__}: {redact(str(error))}")


def _key(name: str) -> str:
    """Make a key of lowercase letters, digits and dashes, which is all Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _list(findings: Iterable[Finding]) -> str:
    """List findings with their remedies as Markdown."""
    if not findings:
        return "No findings."
    return "\n".join(f"- {describe_finding(finding)}" for finding in findings)
