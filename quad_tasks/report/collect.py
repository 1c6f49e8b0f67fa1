"""Stage: write the run's report, `report.json` with every number and `index.html` made from it alone.

Everything is read back from what the run committed; nothing is measured here but time and memory. Manifests of other
stages are read here, into the parts of `model.Report`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as package_version

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from quad_tasks import records
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.diagnosis import Measured, PullSize, diagnose
from quad_tasks.manifests.run import ReportManifest
from quad_tasks.report import document_summaries
from quad_tasks.report.arm_summaries import describe_arms, history_of_pulls
from quad_tasks.report.finished_run import FinishedRun, read_random_draws, read_run
from quad_tasks.report.model import (
    Amount,
    Arm,
    Cost,
    Finding,
    Model,
    Pool,
    Reference,
    ReferenceSet,
    Report,
    Scored,
    Selected,
    Stage,
    Tokenizer,
)
from quad_tasks.report.page import render_page
from quad_tasks.report.provenance import trace
from quad_tasks.report.report_json import FORMAT, dump_report, parse_report
from quad_tasks.report.stage_results import collect_stage
from quad_tasks.runtime.events import read_peaks, read_times, record_event
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_ui import show_asset, show_report
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.ledger import SET_COLUMN
from quad_tasks.stages.bandit.round_settings import pull_sizes
from quad_tasks.stages.influence.find_overlap import count_overlap
from quad_tasks.stages.pool.count_amounts import sum_tokens
from quad_tasks.stages.selection.publish import count_documents
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import (
    manifest_key,
    report_folder,
    report_key,
    report_page_key,
    selection_folder,
    times_folder,
)
from quad_tasks.storage.manifest import digest, encode_manifest, file_sha256
from quad_tasks.storage.store import Store


@stage_task("write report")
def write_report(store: Store, config: RunConfig, version: str, reference: str) -> str:
    """Write `report.json` and the page, and return the page's key."""
    key, page = report_key(config.run), report_page_key(config.run)
    with working("write report"):
        report = collect_report(store, config, version, reference)
        files = {key: dump_report(report), page: render_page(report).encode()}
        for name, data in files.items():
            store.put(name, data)
        _seal(store, config.run, files)
    record_event(store, config.run, "report_written", page=page)
    show_asset(store, "report", page, [selection_folder(config.run)], findings=len(report.findings or ()))
    announce_findings(f"run {config.run}", _as_records(report.findings))
    show_report(report.model_dump(mode="json", exclude_unset=True), f"{store.uri}/{page}")
    return page


def _seal(store: Store, run: str, files: dict[str, bytes]) -> None:
    """Write the manifest that names the report's files and the times it sums up, with their digests."""
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
    digests |= {key: file_sha256(store, key) for key in store.list(times_folder(run))}
    store.put(manifest_key(report_folder(run)), encode_manifest(ReportManifest(files=digests)))


def read_findings(store: Store, run: str) -> list[records.Finding]:
    """Read the findings of a reported run."""
    return _as_records(parse_report(store.get(report_key(run))).findings)


def collect_report(store: Store, config: RunConfig, version: str, reference: str) -> Report:
    """Gather every number of a finished run.

    Args:
        store: the workspace.
        config: the run's configuration.
        version: key of the pool version's manifest.
        reference: key prefix of the reference.
    """
    run = read_run(store, config, version, reference)
    stages = tuple(collect_stage(run, number) for number in range(config.training.stages))
    counts = count_documents(run.store, config.run, config.training.stages, version)
    drawn = read_random_draws(run)
    arms = describe_arms(run, drawn, run.ranking.threshold)
    profiles = document_summaries.measure_diversity(run)
    times = read_times(run.store, config.run)
    peak_bytes, gpu_peak_bytes = read_peaks(run.store, config.run)
    return Report(
        format=FORMAT,
        run=config.run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quad_version=package_version("quad-data"),
        config_digest=digest(config.identity()),
        config=config.model_dump(mode="json"),
        pool=_pool(run, counts.set_aside),
        scored=_scored(run),
        cost=_cost(run),
        rejected=counts.rejected,
        unpulled=counts.unpulled,
        selected=_selected(run),
        tokenizer=Tokenizer.model_validate(run.model.tokenizer.model_dump()),
        model=Model(
            source=run.model.name,
            architecture=run.model.architecture,
            parameters=run.model.parameters,
            dequantised=run.model.dequantised,
        ),
        reference=_reference(run),
        threshold=run.ranking.threshold,
        stages=stages,
        arms=arms,
        pulls=history_of_pulls(run.store, config.run, config.training.stages),
        influence=document_summaries.histogram_of_influence(run, drawn),
        examples=document_summaries.example_documents(run, run.ranking.threshold),
        map=document_summaries.map_documents(run),
        diversity=profiles,
        prediction=stages[-1].prediction,
        findings=_diagnose(run, drawn, arms, stages, profiles, times),
        provenance=trace(run),
        time_s=times,
        peak_memory_bytes=peak_bytes,
        peak_gpu_memory_bytes=gpu_peak_bytes,
    )


def _as_records(findings: Sequence[Finding] | None) -> list[records.Finding]:
    return [records.Finding(**finding.model_dump()) for finding in findings or ()]


def _pool(run: FinishedRun, set_aside: dict[str, int]) -> Pool:
    pool = run.pool
    return Pool(
        documents=pool.documents,
        tokens=pool.tokens,
        name=run.config.pool.name,
        version=run.version,
        bytes=pool.bytes,
        set_aside=set_aside,
        fields_dropped=pool.fields_dropped,
        arms=pool.arms,
        inputs=run.config.pool.inputs,
        sources=_by_source(run.amounts, "tokens", "documents"),
    )


def _scored(run: FinishedRun) -> Scored:
    scored, pool = run.scores.num_rows, run.pool.documents
    return Scored(documents=scored, tokens=_tokens(run.scores), share=scored / pool)


def _cost(run: FinishedRun) -> Cost:
    """Add up what choosing took of the model; empty where a round was committed before costs were counted."""
    stages = range(run.config.training.stages)
    costs = [one.info.cost for stage in stages for one in rounds.list_rounds(run.store, run.config.run, stage)]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs) or not known:
        return Cost()
    return Cost(
        reading=known[-1].reading,
        scoring=sum(cost.scoring for cost in known),
        calibration=sum(cost.calibration for cost in known),
        pool=known[-1].pool,
        share=known[-1].share,
    )


def _selected(run: FinishedRun) -> Selected:
    by_arm = {str(arm): tokens for arm, tokens in sorted(sum_tokens(run.chosen, "arm").items())}
    return Selected(
        documents=run.chosen.num_rows,
        tokens=_tokens(run.chosen),
        budget_tokens=run.config.selection.budget_tokens,
        by_arm=by_arm,
        by_source=_by_source(run.chosen),
    )


def _reference(run: FinishedRun) -> Reference:
    read = read_reference(run.store, run.reference).reference.sets
    sets = tuple(ReferenceSet(name=one.name, documents=one.documents, weight=one.weight) for one in read)
    if len(sets) > 1:
        sets = tuple(_with_influence(run, one) for one in sets)
    return Reference(key=run.reference, domain=run.config.heldout.reference_domain, sets=sets)


def _with_influence(run: FinishedRun, one: ReferenceSet) -> ReferenceSet:
    """Add the mean influence along a reference set of what was scored, and of what was selected of it."""
    influence = run.ranked.column(f"{SET_COLUMN}{one.name}").to_numpy()
    selected = influence[np.isin(run.ranked.column("position").to_numpy(), run.chosen.column("position").to_numpy())]
    mean_selected = float(selected.mean()) if len(selected) else None
    return one.model_copy(update={"mean_influence": float(influence.mean()), "mean_influence_selected": mean_selected})


def _diagnose(
    run: FinishedRun,
    drawn: pa.Table,
    arms: Sequence[Arm],
    stages: Sequence[Stage],
    profiles: dict[str, dict[str, float]],
    times: dict[str, float],
) -> tuple[Finding, ...]:
    """Judge the run by the failure signatures; influence is that of the ranked random draws."""
    config, start, before, after = run.config, stages[0].before, stages[-1].before, stages[-1].selected
    pulled, sizes = _pulled_arms(run), pull_sizes(config.bandit)
    others = [domain for domain in before.domains if domain != config.heldout.reference_domain]
    steps, gain = [stage.selected.steps for stage in stages if stage.selected.steps], stages[-1].gain
    measured = Measured(
        selected_tokens=_tokens(run.chosen),
        budget_tokens=config.selection.budget_tokens,
        pool_tokens=run.pool.tokens,
        scored_tokens=_tokens(run.scores),
        time_s=times,
        influence_N=drawn.column("influence").to_numpy(),
        arm_N=drawn.column("arm").to_numpy(),
        pull_arm_P=np.concatenate(pulled),
        pull_round_P=np.repeat(np.arange(len(pulled)), [len(arms) for arms in pulled]),
        n_arms=sum(1 for arm in arms if arm.documents),
        pull=PullSize(sizes.random_documents, sizes.documents_per_pull),
        selected=profiles["selected"],
        random=profiles["random"],
        reference_change=_change(before.reference_loss, after.reference_loss),
        heldout_changes={domain: after.domains[domain] / before.domains[domain] - 1 for domain in others},
        changes_from_start={domain: after.domains[domain] / bits - 1 for domain, bits in start.domains.items()},
        training=(min(steps), config.training.batch_tokens) if steps else None,
        gain=(gain.low, gain.high) if gain is not None and gain.low is not None and gain.high is not None else None,
        rescored=_rescored(run),
        overlap=count_overlap(run.store, config.run, run.reference),
    )
    return tuple(Finding(**asdict(finding)) for finding in diagnose(measured))


def _pulled_arms(run: FinishedRun) -> list[npt.NDArray[np.int64]]:
    """List the arms pulled in each round of the last stage, [P] each."""
    committed = rounds.list_rounds(run.store, run.config.run, run.last_stage)
    return [rounds.read_round_table(run.store, one, "pulls").column("arm").to_numpy() for one in committed]


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after / before - 1


def _rescored(run: FinishedRun) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Read influence old and new of what the last stage scored again, if it did."""
    pilot = rounds.read_round(run.store, run.config.run, run.last_stage, 0)
    if "rescored" not in pilot.tables:
        return None
    table = rounds.read_round_table(run.store, pilot, "rescored")
    return table.column("before").to_numpy(), table.column("influence").to_numpy()


def _tokens(table: pa.Table) -> int:
    return int(table.column("n_tokens").to_numpy().sum())


def _by_source(table: pa.Table, tokens: str = "n_tokens", documents: str | None = None) -> dict[str, Amount]:
    """Sum up documents, a row each or a column of them, and tokens by source, most tokens first."""
    number = (documents, "sum") if documents else (tokens, "count")
    grouped = table.group_by("source", use_threads=False).aggregate([(tokens, "sum"), number])
    columns = (grouped.column(name).to_pylist() for name in ("source", f"{tokens}_sum", "_".join(number)))
    rows = sorted(zip(*columns, strict=True), key=lambda row: -row[1])
    return {source: Amount(documents=documents, tokens=tokens) for source, tokens, documents in rows}
