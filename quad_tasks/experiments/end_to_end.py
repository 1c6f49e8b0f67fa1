"""Experiment "end-to-end": a whole run on 10,000 documents: clusters, influence, bandit, training, and what came out.

The run is `select_data` itself (`flows.end_to_end`), ledger and report included, on a sample of the configured pool
(none: the demo's corpus), with three training seeds of the selection and of its random control.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from quad_tasks.config import (
    FieldNames,
    FreshModelConfig,
    HeldoutConfig,
    ModelConfig,
    ReferenceConfig,
    RunConfig,
)
from quad_tasks.experiments import drawing, outcome
from quad_tasks.experiments.experiment import Rows, shows_table, within
from quad_tasks.experiments.sample import QUICK, Size, Texts, demo_config, read_inputs
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.store import Store, open_store

FULL = Size(documents=10_000, measured_documents=200, documents_per_domain=40, budget_tokens=200_000)
SMALL = replace(QUICK, documents=1_500)
SEEDS = 3
MODELS = {
    False: ModelConfig(fresh=FreshModelConfig(train_tokens=800_000)),
    True: ModelConfig(fresh=FreshModelConfig(width=96, layers=2, mlp_width=256, train_tokens=150_000)),
}
"""By whether quick, where no configuration names a model."""
MEASURED = "the reference"
"""The held-out domain whose loss is the reference loss."""
LEAST_SPARED = 0.15
"""Share of documents that a run of default settings scores at most; its own limit is a tenth after the pilot."""


def prepare(workspace: str, config: RunConfig | None, quick: bool) -> RunConfig:
    """Draw the sample, write it where the run reads it, and configure the run."""
    size = SMALL if quick else FULL
    if config is not None:
        return _settings(workspace, config, read_inputs(config, size), size)
    with TemporaryDirectory() as directory:
        base = demo_config(Path(directory))
        texts = read_inputs(base, size)
    return _settings(workspace, base.model_copy(update={"model": MODELS[quick]}), texts, size)


def describe(settings: RunConfig, report_key: str) -> dict[str, Any]:
    """Take from a run's report what the experiment is about, and say what it shows."""
    report = json.loads(open_store(settings.workspace).get(report_key.replace("index.html", "report.json")))
    stage = report["stages"][-1]
    body = {
        "run": settings.run,
        "report": report_key,
        "documents": report["pool"]["documents"],
        "tokens": report["pool"]["tokens"],
        "arms": report["pool"]["arms"],
        "scored_share": report["scored"]["share"],
        "selected_tokens": report["selected"]["tokens"],
        "time_s": report["time_s"],
        "reference_loss": {
            "before": stage["before"]["reference_loss"],
            "random": stage["random"]["reference_loss_by_seed"],
            "selected": stage["selected"]["reference_loss_by_seed"],
        },
        "domains": {kind: stage[kind]["domains"] for kind in ("before", "random", "selected")},
        "findings": [finding["signature"] for finding in report["findings"]],
    }
    return {**body, "shows": _shows(body)}


def _settings(workspace: str, base: RunConfig, texts: Texts, size: Size) -> RunConfig:
    store = open_store(workspace)
    name = digest([texts.pool, texts.reference, texts.measured, base.model.model_dump(mode="json")])[:12]
    prefix = f"experiments/end-to-end/inputs-{name}"
    heldout = [{"text": text, "domain": MEASURED} for text in texts.measured]
    heldout += [{"text": text, "domain": domain} for domain, own in texts.others.items() for text in own]
    pool = [{"text": text, "source": source} for text, source in zip(texts.pool, texts.source, strict=True)]
    inputs = {
        "pool": _write_lines(store, f"{prefix}/pool.jsonl", pool),
        "reference": _write_lines(store, f"{prefix}/reference.jsonl", [{"text": text} for text in texts.reference]),
        "heldout": _write_lines(store, f"{prefix}/heldout.jsonl", heldout),
    }
    return base.model_copy(
        update={
            "run": f"end-to-end-{name}",
            "workspace": workspace,
            "pool": base.pool.model_copy(
                update={"name": f"end-to-end-{name}", "inputs": (inputs["pool"],), "fields": FieldNames()}
            ),
            "reference": ReferenceConfig(inputs=(inputs["reference"],)),
            "heldout": HeldoutConfig(inputs=(inputs["heldout"],), reference_domain=MEASURED, documents_per_domain=1000),
            "clustering": base.clustering.model_copy(update={"arms": size.arms}),
            "selection": base.selection.model_copy(update={"budget_tokens": size.budget_tokens}),
            "training": base.training.model_copy(update={"stages": 1, "seeds": SEEDS, "control": True, "frontier": ()}),
        }
    )


def _write_lines(store: Store, key: str, records: Iterable[Mapping[str, Any]]) -> str:
    """Write records as JSON lines, each named by its place; return the file's path or URI."""
    lines = (json.dumps({"id": f"{number:07d}", **record}) for number, record in enumerate(records))
    store.put(key, ("\n".join(lines) + "\n").encode())
    return str(store.local_path(key) or f"{store.uri}/{key}")


def _shows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    loss = body["reference_loss"]
    less = outcome.compare(loss["selected"], loss["random"])
    scored = {end: body["scored_share"] for end in ("mean", "low", "high")}
    return [
        outcome.claim("reference loss after selected tokens less after as many random ones", less, most=0.0),
        outcome.claim("share of the documents that was scored", scored, most=LEAST_SPARED),
    ]


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out losses, time by step, and what it shows."""
    loss, domains = result["reference_loss"], result["domains"]
    rows = [
        {
            "model": kind,
            "reference loss": f"{loss[kind]:.3f}"
            if kind == "before"
            else within(outcome.interval(np.array(loss[kind]))),
            "other domains, bits per byte": _others(domains[kind]),
        }
        for kind in ("before", "random", "selected")
    ]
    times = [{"step": step, "time": f"{seconds:.0f} s"} for step, seconds in _longest_first(result["time_s"])]
    title = (
        f"{result['selected_tokens']:,} of {result['tokens']:,} tokens selected from {result['documents']:,} documents "
        f"in {result['arms']} arms, {result['scored_share']:.1%} of them scored"
    )
    return {title: rows, "Time": times, **shows_table(result["shows"])}


def _others(domains: Mapping[str, float]) -> str:
    values = [bits for name, bits in domains.items() if name != MEASURED]
    return f"{np.mean(values):.3f}" if values else ""


def _longest_first(time_s: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(time_s.items(), key=lambda step: -step[1])


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw time by step, and the reference loss of selected and random tokens."""
    figure, (left, right) = drawing.page_figure(2.4, columns=2)
    steps, seconds = zip(*_longest_first(result["time_s"]), strict=True)
    places = list(range(len(steps)))[::-1]
    left.barh(places, seconds, height=0.6, color=drawing.BLUE)
    left.set_yticks(places, steps, fontsize=drawing.TICK_PT)
    drawing.label(left, "wall time (s)", title="Where the time goes")
    loss = result["reference_loss"]
    found = [outcome.interval(np.array(loss[kind])) for kind in ("random", "selected")]
    drawing.draw_bars(right, ["random", "selected"], found, [drawing.GREY, drawing.RED])
    right.axvline(loss["before"], color=drawing.BLACK, linewidth=0.9, linestyle=":")
    drawing.label(right, "reference loss (nats per token)", title="After equal tokens (dotted: before)")
    return {"end-to-end": figure}
