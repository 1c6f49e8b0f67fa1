"""Experiment "end-to-end": run everything on 10,000 documents: clusters, influence, bandit, training, report.

The run is `select_data` itself (`flows.end_to_end`), ledger and report included, on a sample of the configured pool
(none: the demo's corpus), with three training seeds of the selection and of its random control.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel

from quad_tasks.config.model import FreshModelConfig, ModelConfig
from quad_tasks.config.schema import (
    FieldNames,
    HeldoutConfig,
    ReferenceConfig,
    RunConfig,
)
from quad_tasks.core.evaluation import statistics
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.experiment import Tables, claims_table, within
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size, Texts, demo_config, read_inputs
from quad_tasks.experiments.lab.evaluation import Claim, claim_most
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.store import Store, open_store

FULL = Size(documents=10_000, measured_documents=200, documents_per_domain=40, budget_tokens=200_000)
SMALL = replace(QUICK, documents=1_500, arms=40, budget_tokens=15_000)
SEEDS = 3
MODELS = {
    False: ModelConfig(fresh=FreshModelConfig(train_tokens=800_000)),
    True: ModelConfig(fresh=FreshModelConfig(width=96, layers=2, mlp_width=256, train_tokens=150_000)),
}
"""The fresh model by whether quick, where no configuration names one."""
MEASURED = "the reference"
"""The held-out domain whose loss is the reference loss."""
MOST_SCORED = 0.15
"""Share of documents that a run of default settings scores at most; its own limit is a tenth after the pilot."""
KINDS = ("before", "random", "selected")
"""Models of a stage: its checkpoint, and that trained on random and on selected tokens."""


@dataclass(frozen=True, slots=True)
class RunLosses:
    """Reference losses: of the checkpoint, and by training seed after random and after selected tokens."""

    before: float
    random: list[float]
    selected: list[float]


@dataclass(frozen=True)
class Result:
    """Result of the experiment.

    Attributes:
        run: its name.
        report: key of its report.
        documents: of the pool.
        tokens: of the pool.
        arms: clusters of the pool.
        scored_share: of the documents.
        selected_tokens: trained on.
        time_s: wall time by step.
        reference_loss: nats per token.
        domains: bits per byte of held-out domains, by model (`KINDS`).
        findings: signatures of what the report warns of.
        shows: the claims.
    """

    run: str
    report: str
    documents: int
    tokens: int
    arms: int
    scored_share: float
    selected_tokens: int
    time_s: dict[str, float]
    reference_loss: RunLosses
    domains: dict[str, dict[str, float]]
    findings: list[str]
    shows: list[Claim]


class _Pool(BaseModel):
    documents: int
    tokens: int
    arms: int


class _Scored(BaseModel):
    share: float


class _Selected(BaseModel):
    tokens: int


class _Model(BaseModel):
    reference_loss: float
    reference_loss_by_seed: list[float] = []
    domains: dict[str, float]


class _Stage(BaseModel):
    before: _Model
    random: _Model
    selected: _Model
    gain: Interval


class _Finding(BaseModel):
    signature: str


class _Report(BaseModel):
    """The part of a run's `report.json` that the experiment reads."""

    pool: _Pool
    scored: _Scored
    selected: _Selected
    time_s: dict[str, float]
    stages: list[_Stage]
    findings: list[_Finding]


def prepare(workspace: str, config: RunConfig | None, quick: bool) -> RunConfig:
    """Draw the sample, write it where the run reads it, and configure the run."""
    size = SMALL if quick else FULL
    if config is not None:
        return _settings(workspace, config, read_inputs(config, size), size)
    with TemporaryDirectory() as directory:
        base = demo_config(Path(directory))
        texts = read_inputs(base, size)
    return _settings(workspace, base.model_copy(update={"model": MODELS[quick]}), texts, size)


def describe(settings: RunConfig, report_key: str) -> Result:
    """Read the experiment's numbers from a run's report, and state the claims."""
    report_json = open_store(settings.workspace).get(report_key.replace("index.html", "report.json"))
    report = _Report.model_validate_json(report_json)
    stage = report.stages[-1]
    losses = RunLosses(
        stage.before.reference_loss, stage.random.reference_loss_by_seed, stage.selected.reference_loss_by_seed
    )
    return Result(
        run=settings.run,
        report=report_key,
        documents=report.pool.documents,
        tokens=report.pool.tokens,
        arms=report.pool.arms,
        scored_share=report.scored.share,
        selected_tokens=report.selected.tokens,
        time_s=report.time_s,
        reference_loss=losses,
        domains={
            "before": stage.before.domains,
            "random": stage.random.domains,
            "selected": stage.selected.domains,
        },
        findings=[finding.signature for finding in report.findings],
        shows=_claims(stage.gain, report.scored.share),
    )


def _claims(gain: Interval, scored_share: float) -> list[Claim]:
    less = Interval(-gain.mean, -gain.high, -gain.low)  # over measured documents and seeds, as the report has it
    scored = Interval(scored_share, scored_share, scored_share)
    return [
        claim_most("reference loss after selected tokens less after as many random ones", less, 0.0),
        claim_most("share of the documents that was scored", scored, MOST_SCORED),
    ]


def _settings(workspace: str, base: RunConfig, texts: Texts, size: Size) -> RunConfig:
    """Write the texts into the workspace; configure a run, named by all that determines its result."""
    store = open_store(workspace)
    prefix = f"experiments/end-to-end/inputs-{digest(asdict(texts))[:12]}"
    heldout = [{"text": text, "domain": MEASURED} for text in texts.measured]
    heldout += [{"text": text, "domain": domain} for domain, own in texts.others.items() for text in own]
    pool = [{"text": text, "source": source} for text, source in zip(texts.pool, texts.source, strict=True)]
    pool_uri = _write_lines(store, f"{prefix}/pool.jsonl", pool)
    reference_uri = _write_lines(store, f"{prefix}/reference.jsonl", [{"text": text} for text in texts.reference])
    heldout_uri = _write_lines(store, f"{prefix}/heldout.jsonl", heldout)
    settings = base.model_copy(
        update={
            "run": "end-to-end",
            "workspace": workspace,
            "pool": base.pool.model_copy(update={"name": "end-to-end", "inputs": (pool_uri,), "fields": FieldNames()}),
            "reference": ReferenceConfig(inputs=(reference_uri,)),
            "heldout": HeldoutConfig(inputs=(heldout_uri,), reference_domain=MEASURED, documents_per_domain=1000),
            "clustering": base.clustering.model_copy(update={"arms": size.arms}),
            "selection": base.selection.model_copy(update={"budget_tokens": size.budget_tokens}),
            "training": base.training.model_copy(update={"stages": 1, "seeds": SEEDS, "control": True, "frontier": ()}),
        }
    )
    name = f"end-to-end-{digest(settings.identity())[:12]}"
    return settings.model_copy(update={"run": name, "pool": settings.pool.model_copy(update={"name": name})})


def _write_lines(store: Store, key: str, records: Iterable[Mapping[str, Any]]) -> str:
    """Write records as JSON lines, each named by its place; return the file's path or URI."""
    lines = (json.dumps({"id": f"{number:07d}", **record}) for number, record in enumerate(records))
    store.put(key, ("\n".join(lines) + "\n").encode())
    return str(store.local_path(key) or f"{store.uri}/{key}")


def lay_out(result: Result) -> Tables:
    """Lay out losses, time by step, and what it shows."""
    loss = result.reference_loss
    losses = {
        "before": f"{loss.before:.3f}",
        "random": within(statistics.interval(loss.random)),
        "selected": within(statistics.interval(loss.selected)),
    }
    rows = [
        {"model": kind, "reference loss": losses[kind], "other domains, bits per byte": _others(result.domains[kind])}
        for kind in KINDS
    ]
    times = [{"step": step, "time": f"{seconds:.0f} s"} for step, seconds in _longest_first(result.time_s)]
    title = (
        f"{result.selected_tokens:,} of {result.tokens:,} tokens selected from {result.documents:,} documents "
        f"in {result.arms} arms, {result.scored_share:.1%} of them scored"
    )
    return {title: rows, "Time": times, **claims_table(result.shows)}


def _others(domains: Mapping[str, float]) -> str:
    values = [bits for name, bits in domains.items() if name != MEASURED]
    return f"{np.mean(values):.3f}" if values else ""


def _longest_first(time_s: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(time_s.items(), key=lambda step: -step[1])


def draw(result: Result) -> dict[str, Figure]:
    """Draw time by step, and the reference loss of selected and random tokens."""
    figure, (left, right) = plots.page_figure(2.4, columns=2)
    steps, seconds = zip(*_longest_first(result.time_s), strict=True)
    places = list(range(len(steps)))[::-1]
    left.barh(places, seconds, height=0.6, color=plots.BLUE)
    left.set_yticks(places, steps, fontsize=plots.TICK_PT)
    plots.label(left, "wall time (s)", title="Where the time goes")
    loss = result.reference_loss
    found = [statistics.interval(losses) for losses in (loss.random, loss.selected)]
    plots.draw_bars(right, ["random", "selected"], found, [plots.GREY, plots.RED])
    right.axvline(loss.before, color=plots.BLACK, linewidth=0.9, linestyle=":")
    plots.label(right, "reference loss (nats per token)", title="After equal tokens (dotted: before)")
    return {"end-to-end": figure}
