"""How the longer results look on a terminal: a plan, a first configuration, a document's story, a run's headline."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.terminal import print_body, print_rows

UNITS = ("", "k", "M", "G", "T", "P", "E")


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan, a line a stage."""
    console = Console()
    pool, scored, total = plan["pool"], plan["scored"], plan["total"]
    how = "counted" if pool["counted"] else "estimated from a sample"
    console.print(
        f"pool: {pool['files']} files, {pool['documents']:,} documents, about {pool['tokens']:,} tokens ({how})"
    )
    console.print(f"model: {plan['model']['source']}, {plan['model']['parameters']:,} parameters")
    console.print(
        f"scored: about {scored['tokens']:,} tokens in {scored['rounds']} rounds after the pilot, "
        f"at most {scored['tokens_at_most']:,}"
    )
    priced = total["money"] is not None
    table = Table("stage", *(["documents", "tokens", "FLOPs", "bytes", "time"] + ["money"] * priced), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in [*plan["stages"], {"stage": "total", "documents": None, "tokens": None, **total}]:
        cells = [
            _short(stage["documents"]),
            _short(stage["tokens"]),
            _short(stage["flops"]),
            _short(stage["size_bytes"]),
        ]
        money = [f"{stage['money']:,.2f}"] if priced else []
        table.add_row(stage["stage"], *cells, _duration(stage["seconds"]), *money)
    console.print(table)
    alone = sum(plan["one_process_s"].values())
    machine = plan["machine"]
    console.print(
        f"on {machine['cores']} cores with {machine['workers']} workers; {_duration(alone)} of it runs in one process, "
        "the rest is shared by the workers (compute.workers)"
    )


def print_first_config(result: Mapping[str, Any]) -> None:
    """Print what was seen of somebody's files, what was decided and what could not be."""
    console = Console(soft_wrap=True)
    pool = result["pool"]
    console.print(f"{pool['files']} files, {pool['documents']:,} documents, about {pool['tokens']:,} tokens")
    table = Table("field", "holds", "in records", "distinct", "mean length", "taken for", box=None)
    taken = {theirs: ours for ours, theirs in result["fields"].items()}
    for c in pool["columns"]:
        shares = (f"{c['present']:.0%}", f"{c['distinct']:.0%}", f"{c['characters']:,.0f}")
        table.add_row(c["name"], "/".join(c["kinds"]), *shares, taken.get(c["name"], ""))
    console.print(table)
    for reason, n in result["bad"].items():
        console.print(f"bad records, which a run sets aside: {n} {reason}")
    for why in result["broken"].values():
        console.print(f"left out: {why}", markup=False)
    for note in result["undecided"]:
        console.print(f"to decide: {note}", markup=False)
    console.print(f"wrote {result['config']}; next: quad plan {result['config']}")


def print_story(story: Mapping[str, Any]) -> None:
    """Print one document's story."""
    console = Console(highlight=False)
    where = story["where"]
    place = f"{where['input']}:{where['line']}"
    console.print(f"{story['id']}: {story['verdict']}", style="bold", markup=False)
    console.print(story["reason"], markup=False)
    rows = Table(show_header=False, box=None)
    rows.add_row(
        "where", f"{escape(place)}, shard {where['shard']}" + (f" row {where['row']:,}" if "row" in where else "")
    )
    if "arm" in story:
        arm = story["arm"]
        rows.add_row("source", f"{escape(story['source'])}, {story['n_tokens']:,} tokens")
        rows.add_row("arm", f"{arm['arm']}, {arm['documents']:,} documents: {', '.join(arm['terms'])}")
        for other in arm["nearest_arms"]:
            rows.add_row("", f"near arm {other['arm']} at {other['distance']}: {', '.join(other['terms'])}")
        for other in story["nearest_documents"]:
            rows.add_row("like", f"{escape(other['id'])} (cosine {other['cosine']})")
        for pull in story["rounds"]:
            text = f"{pull['n_documents']} documents, mean influence {pull['reward']:.4g}"
            rows.add_row("arm pulled", f"stage {pull['stage']} round {pull['round']} ({pull['kind']}): {text}")
        for score in story["scores"]:
            rows.add_row("influence", f"{score['influence']:.4g} in stage {score['stage']} round {score['round']}")
            for name, value in score.get("by_reference", {}).items():
                rows.add_row("", f"{value:.4g} along reference {escape(name)}")
        if story["predicted_influence"] is not None:
            rows.add_row("predicted", f"{story['predicted_influence']:.4g}")
        rows.add_row("text", escape(story["excerpt"]))
    console.print(rows)


def by_kind(cleaned: dict[str, Any]) -> dict[str, Any]:
    """Give each kind of leftovers a line, and their sum the last one."""
    rows = {kind: f"{n['objects']:,} ({n['size_bytes']:,} bytes)" for kind, n in cleaned["leftovers"].items()}
    verb = "would be removed" if cleaned["dry_run"] else "removed"
    return {**rows, verb: f"{cleaned['objects']:,} ({cleaned['size_bytes']:,} bytes)"}


def print_report(config: Any, as_json: bool) -> None:
    """Print a finished run's headline, or all of its report as JSON."""
    from quad_tasks.report_stats import show_figures
    from quad_tasks.storage.faults import StoreKeyError
    from quad_tasks.storage.store import open_store

    store = open_store(config.workspace)
    key = f"runs/{config.run}/report"
    if not store.exists(f"{key}/report.json"):
        raise StoreKeyError(
            f"run {config.run!r} in {store.uri}: expected a report, found none yet "
            f"(`quad status {config.run}` says how far it is, `quad resume {config.run}` goes on with it)"
        )
    body = json.loads(store.get(f"{key}/report.json"))
    if as_json:
        print(json.dumps(body))
        return
    last, against_random = body["stages"][-1], {}
    for text, number, note in show_figures(body).items:
        what, comma, unit = text.partition(", ")
        if comma:
            against_random[what] = f"{number} {unit} ({note})"
    rows: dict[str, Any] = {
        "run": body["run"],
        "pool": f"{body['pool']['documents']:,} documents, {body['pool']['tokens']:,} tokens",
        "scored": f"{body['scored']['documents']:,} documents ({body['scored']['share']:.1%})",
        "selected": f"{body['selected']['documents']:,} documents, {body['selected']['tokens']:,} tokens"
        f" (budget {body['selected']['budget_tokens']:,})",
        "reference loss": ", ".join(
            f"{last[kind]['reference_loss']:.4f} {kind}" for kind in ("before", "selected", "random") if kind in last
        ),
        **against_random,
        "findings": ", ".join(f["signature"] for f in body["findings"]) or "none",
        "time": f"{sum(body['time_s'].values()):.0f} s",
        "peak memory": f"{body['peak_memory_bytes'] / 2**30:.2f} GiB",
        "report": store.local_path(f"{key}/index.html") or f"{store.uri}/{key}/index.html",
    }
    print_body(rows, False)


def _short(n: float | None) -> str:
    """Write a count with three digits and a unit."""
    if n is None:
        return ""
    size, unit = float(n), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{UNITS[unit]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def print_experiment(workspace: str, key: str, as_json: bool) -> None:
    """Print an experiment's tables and where its result and drawings are."""
    from flows.run_experiment import find_experiment
    from quad_tasks.storage.manifest import read_manifest
    from quad_tasks.storage.store import open_store

    store = open_store(workspace)
    result = read_manifest(store, key)
    place = str(store.local_path(key) or f"{store.uri}/{key}")
    if as_json:
        print_body({**result, "result": place}, as_json)
        return
    for title, rows in find_experiment(result["experiment"]).tables(result).items():
        Console().print(f"\n{title}")
        print_rows(rows)
    print(f"\n{place}")
