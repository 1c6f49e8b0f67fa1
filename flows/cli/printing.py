"""How the longer results look on a terminal: a plan, a first configuration, a document's story, a run's headline."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flows.cli.terminal import FILE_COLUMNS, print_body, print_rows
from quad_tasks.runtime.progress import duration

if TYPE_CHECKING:
    from quad_tasks.report.model import Report

LEFT_OUT_SHOWN = 5
UNITS = ("", "k", "M", "G", "T", "P", "E")


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan, a line a stage."""
    console = Console()
    _print_work(console, plan)
    console.print(_stage_table(plan))
    _print_machine(console, plan)


def _print_work(console: Console, plan: Mapping[str, Any]) -> None:
    """Print what there is to choose from, what is trained, and what choosing costs."""
    pool, model, scored, cost, training = (plan[part] for part in ("pool", "model", "scored", "cost", "training"))
    how = "counted" if pool["counted"] else "estimated from a sample"
    if pool["sample_documents"] is not None:
        how = f"of which {pool['sample_documents']:,} at hand are the sample"
    console.print(
        f"pool: {pool['files']} files, {pool['documents']:,} documents, about {pool['tokens']:,} tokens ({how})"
    )
    if pool["set_aside"]:
        console.print(f"set aside: {_left_out(pool['set_aside'], 'records seen')}")
    console.print(f"model: {model['source']}, {model['parameters']:,} parameters")
    if model["slow_dtype"]:
        console.print("model.dtype bfloat16 saves memory here, not time: this processor multiplies float32 faster")
    fresh = "a fresh model" if model["source"] == "fresh" else "a pretrained checkpoint"
    chosen = "configured" if training["configured"] else f"chosen for {fresh}; training.learning_rate sets another"
    console.print(f"training: peak learning rate {training['learning_rate']:g} ({chosen})")
    console.print(
        f"scored: about {scored['tokens']:,} tokens in {scored['rounds']} rounds after the pilot, "
        f"at most {scored['tokens_at_most']:,}"
    )
    most = "" if cost["most_share"] is None else f" (at most {cost['most_share']:.1%})"
    choosing = cost["reading"] + cost["scoring"]
    console.print(
        f"choosing: {_short(choosing)} model FLOPs, {cost['share']:.1%} of scoring the whole pool exactly{most}; "
        f"{choosing / cost['training']:.2g} times what training on the budget once takes ({_short(cost['training'])})"
    )


def _stage_table(plan: Mapping[str, Any]) -> Table:
    """Lay out a plan's stages and their sum; prices only where there are some."""
    total = plan["total"]
    priced = total["money"] is not None
    names = ["documents", "tokens", "FLOPs", "bytes", "requests", "time"] + ["money"] * priced
    table = Table("stage", *names, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in [*plan["stages"], {"stage": "total", "documents": None, "tokens": None, **total}]:
        cells = [_short(stage[name]) for name in ("documents", "tokens", "flops", "size_bytes")]
        cells.append(_short(stage["reads"] + stage["writes"]))
        money = [f"{stage['money']:,.2f}"] if priced else []
        table.add_row(stage["stage"], *cells, duration(stage["seconds"]), *money)
    return table


def _print_machine(console: Console, plan: Mapping[str, Any]) -> None:
    """Print the memory that is needed, and what the times are of: a GPU of the table, this machine, its workers."""
    memory, machine, batch = plan["memory"], plan["machine"], plan["model"]["batch_tokens"]
    if batch["basis"] != "configured":
        console.print(f"model.batch_tokens: auto, {batch['value']:,} ({batch['basis']})")
    needed = ", ".join(f"{name} {_short(memory[name])}B" for name in ("fit", "bandit", "train"))
    here = "" if machine["elsewhere"] else f"; this machine has {_short(memory['machine'])}B"
    console.print(f"memory at most, all processes: {needed}{here}")
    roles = ", ".join(f"{role} {_short(size)}B" for role, size in memory["roles"].items())
    kept, peak = (_short(plan["storage"][name]) for name in ("kept", "peak"))
    console.print(f"memory of one process: {roles}; storage: {kept}B in the end, {peak}B at most")
    if memory["most"] > memory["machine"] and not machine["elsewhere"]:
        console.print(
            "that is more than there is: lower compute.workers or model.batch_tokens, use model.dtype bfloat16, or "
            "set factors.max_factor_width",
            style="bold",
        )
    if device := plan["device"]:
        shares = ", ".join(
            f"{kind} {share['value']:.0%} ({share['basis']})" for kind, share in device["share_of_data_sheet"].items()
        )
        sheet = _short(device["bfloat16_flops"]["value"])
        console.print(
            f"the model's work is planned for one {device['name']} a worker: of {sheet}FLOP/s by its data sheet, "
            f"{shares}; all else, and decomposing factors, as measured here"
        )
    alone = sum(plan["one_process_s"].values())
    console.print(
        f"on {machine['cores']} cores with {machine['workers']} workers; {duration(alone)} of it runs in one process, "
        "the rest is shared by the workers (compute.workers)"
        if not machine["elsewhere"]
        else f"with {machine['workers']:,} workers, as fast as those measured on {machine['cores']} cores here; "
        f"{duration(alone)} of it runs in one process, the rest is shared by the workers"
    )
    if plan["request_s"]:
        console.print(f"requests wait {1000 * plan['request_s']:.0f} ms each (assumed)")
    for line in plan["advice"]:
        console.print(f"advice: {line}", markup=False)


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


@contextmanager
def status_view(as_json: bool, watch: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what shows a run's status: in place on a terminal that is watched, else printed where it has changed."""
    last: list[str] = []

    def show(status: dict[str, Any]) -> None:
        if last[-1:] != [written := json.dumps(status)]:
            last.append(written)
            if as_json:
                print(written if watch else json.dumps(status, indent=1), flush=True)
            else:
                console.print(_status(status))

    console = Console(width=None if sys.stdout.isatty() else FILE_COLUMNS)
    if not (watch and console.is_terminal) or as_json:
        yield show
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda status: live.update(_status(status), refresh=True)


def _status(status: dict[str, Any]) -> Table:
    """Lay out a status: a line a fact, and below it a line a stage."""
    facts = Table(show_header=False, box=None)
    driven = status["driven_by"] or f"nobody; `quad resume {status['run']}` goes on with it"
    facts.add_row("run", escape(status["run"]))
    facts.add_row("pool", escape(status["pool"] or "not there yet"))
    facts.add_row("driven by", escape("nobody: it is finished" if status["reported"] else driven))
    facts.add_row("last event", status["last_event"] or "none")
    facts.add_row("published", "yes" if status["published"] else "no")
    facts.add_row("reported", "yes" if status["reported"] else "no")
    counted = ("rounds", "scored", "tokens", "above τ", "tokens")
    stages = Table("stage", *counted, "cost", "left to gain", "selected", "trained", box=None)
    for stage in status["stages"]:
        counts = ("rounds", "scored_documents", "scored_tokens", "accepted_documents", "accepted_tokens")
        shares = ("–" if stage[name] is None else f"{stage[name]:.1%}" for name in ("cost_share", "gain_left"))
        done = ("yes" if stage[name] else "no" for name in ("selected", "trained"))
        stages.add_row(str(stage["stage"]), *(f"{stage[name]:,}" for name in counts), *shares, *done)
    both = Table.grid()
    both.add_row(facts)
    both.add_row(stages)
    return both


def by_kind(cleaned: dict[str, Any]) -> dict[str, Any]:
    """Give each kind of leftovers a line, and their sum the last one."""
    rows = {kind: f"{n['objects']:,} ({n['size_bytes']:,} bytes)" for kind, n in cleaned["leftovers"].items()}
    verb = "would be removed" if cleaned["dry_run"] else "removed"
    total = {verb: f"{cleaned['objects']:,} ({cleaned['size_bytes']:,} bytes)"}
    young = {"written within the last hour, so they stay": cleaned["too_young"]} if cleaned["too_young"] else {}
    return {**rows, **total, **young}


def print_report(config: Any, as_json: bool) -> None:
    """Print a finished run's headline, or all of its report as JSON."""
    from quad_tasks.report.report_json import parse_report
    from quad_tasks.storage.errors import StoreKeyError
    from quad_tasks.storage.store import open_store

    store = open_store(config.workspace)
    key = f"runs/{config.run}/report"
    if not store.exists(f"{key}/report.json"):
        raise StoreKeyError(
            f"run {config.run!r} in {store.uri}: expected a report, found none yet "
            f"(`quad status {config.run}` says how far it is, `quad resume {config.run}` goes on with it)"
        )
    body = store.get(f"{key}/report.json")
    if as_json:
        print(json.dumps(json.loads(body)))
        return
    page = store.local_path(f"{key}/index.html") or f"{store.uri}/{key}/index.html"
    print_body({**_headline(parse_report(body)), "report": page}, False)


def _headline(report: "Report") -> dict[str, str]:
    """Write what a reader wants of a report first, a line a number: gain, cost, what other domains lost, findings."""
    from quad_tasks.report.numbers import count, duration, percent, size

    pool, scored, selected = report.pool, report.scored, report.selected
    return {
        "run": report.run,
        **_gain(report),
        **_cost(report),
        "scored": f"{count(scored.documents)} documents ({percent(scored.share)}), {count(scored.tokens)} tokens",
        "pool": f"{count(pool.documents)} documents, {count(pool.tokens)} tokens",
        "set aside": _left_out(pool.set_aside or {}, "documents"),
        **({"fields dropped": _left_out(pool.fields_dropped, "values")} if pool.fields_dropped else {}),
        "selected": f"{count(selected.documents)} documents, {count(selected.tokens)} tokens "
        f"(budget {count(selected.budget_tokens)})",
        "findings": ", ".join(finding.signature for finding in report.findings or ()) or "none",
        "time": duration(sum(report.time_s.values())),
        "memory": f"{size(report.peak_memory_bytes)}, peaks of all processes added up",
    }


def _left_out(counts: Mapping[str, int], what: str) -> str:
    """Write what was left out, the most frequent reasons or fields first."""
    parts = [f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    shown = ", ".join(parts[:LEFT_OUT_SHOWN]) + (", ..." if len(parts) > LEFT_OUT_SHOWN else "")
    return f"{sum(counts.values()):,} {what} ({shown})" if counts else f"0 {what}"


def _cost(report: "Report") -> dict[str, str]:
    """Write what choosing took of the model, beside scoring the whole pool exactly."""
    from quad_tasks.report.numbers import percent

    cost = report.cost
    if cost.share is None or not cost.pool:
        return {}
    parts = {"states and embeddings": cost.reading, "scoring": cost.scoring, "calibration": cost.calibration}
    estimates = [one for stage in report.stages[-1:] for one in stage.rounds if one.left is not None]
    left = {}
    if estimates:
        last = estimates[-1]
        ends = f"95 % interval {percent(last.left_low)} to {percent(last.left_high)}"
        left = {"left to gain": f"about {percent(last.left)} of full scoring's gain ({ends})"}
    named = ", ".join(f"{name} {percent(part / cost.pool)}" for name, part in parts.items() if part)
    return {"cost": f"{percent(cost.share)} of the model FLOPs of scoring the whole pool exactly ({named})", **left}


def _gain(report: "Report") -> dict[str, str]:
    """Write the reference loss and what it and other domains' are against random tokens; below 0 is better."""
    from quad_tasks.report.numbers import fixed
    from quad_tasks.report.outcome import measure_outcome

    outcome, last = measure_outcome(report), report.stages[-1]
    losses = {"before": last.before, "selected": last.selected, "random": last.random}
    rows = {
        "reference loss": ", ".join(f"{fixed(one.reference_loss, 4)} {kind}" for kind, one in losses.items() if one)
    }
    if outcome.last:
        note = outcome.last.without_interval
        if outcome.last.interval:
            low, high = (fixed(-end, 3, sign=True) for end in reversed(outcome.last.interval))
            note = f"95 % interval {low} to {high} over {outcome.last.interval_over}"
        rows["reference loss against random"] = f"{fixed(-outcome.last.gain, 3, sign=True)} nats per token ({note})"
    if outcome.others:
        worse = sum(domain.loss_increase > 0 for domain in outcome.others)
        rows["other domains against random"] = (
            f"{fixed(outcome.mean_loss_increase, 3, sign=True)} bits per byte "
            f"({worse} of {len(outcome.others)} are worse off than after random tokens)"
        )
    return rows


def _short(n: float | None) -> str:
    """Write a count with three digits and a unit."""
    if n is None:
        return ""
    size, unit = float(n), 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{UNITS[unit]}"


def print_experiment(workspace: str, key: str, as_json: bool) -> list[str]:
    """Print an experiment's tables and where its result and drawings are; return its checks that fail."""
    from flows.run_experiment import find_experiment
    from quad_tasks.manifests.run import ExperimentRecord
    from quad_tasks.storage.manifest import read_manifest
    from quad_tasks.storage.store import open_store

    store = open_store(workspace)
    result = read_manifest(ExperimentRecord, store, key).model_dump()
    experiment, place = find_experiment(result["experiment"]), str(store.local_path(key) or f"{store.uri}/{key}")
    if as_json:
        print_body({**result, "result": place}, as_json)
        return experiment.failed(result)
    for title, rows in experiment.tables(result).items():
        Console().print(f"\n{title}")
        print_rows(rows)
    print(f"\n{place}")
    return experiment.failed(result)
