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
from quad_tasks.manifests.run import Losses as MeasuredLosses
from quad_tasks.manifests.run import ReportManifest, RoundInfo
from quad_tasks.report import document_summaries
from quad_tasks.report.arm_summaries import describe_arms, history_of_pulls
from quad_tasks.report.finished_run import FinishedRun, read_random_draws, read_run
from quad_tasks.report.model import (
    Amount,
    Arm,
    Cost,
    Finding,
    FrontierPoint,
    Gain,
    Losses,
    Model,
    Pilot,
    Pool,
    Prediction,
    Reference,
    ReferenceSet,
    Report,
    Round,
    Scored,
    Selected,
    Stage,
    Tokenizer,
)
from quad_tasks.report.page import render_page
from quad_tasks.report.provenance import trace
from quad_tasks.report.report_json import FORMAT, dump_report, parse_report
from quad_tasks.runtime.events import read_peaks, read_times, record_event
from quad_tasks.runtime.findings import announce_findings
from quad_tasks.runtime.prefect_ui import show_asset, show_report
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.ledger import SET_COLUMN, read_choice
from quad_tasks.stages.bandit.round_settings import pull_sizes
from quad_tasks.stages.influence.find_overlap import count_overlap
from quad_tasks.stages.pool.count_amounts import sum_tokens
from quad_tasks.stages.selection.paired_gain import check_equal_steps, mean_loss, paired_gain
from quad_tasks.stages.selection.publish import count_documents
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import (
    choice_key,
    losses_key,
    manifest_key,
    report_folder,
    report_key,
    report_page_key,
    selection_folder,
    times_folder,
    trained_key,
)
from quad_tasks.storage.manifest import digest, encode_manifest, file_sha256, read_manifest
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
    stages = tuple(_stage(run, number) for number in range(config.training.stages))
    threshold = _opening_round(run, run.last_stage).threshold
    counts = count_documents(run.store, config.run, config.training.stages, version)
    drawn = read_random_draws(run)
    arms = describe_arms(run, drawn, threshold)
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
        threshold=threshold,
        stages=stages,
        arms=arms,
        pulls=history_of_pulls(run.store, config.run, config.training.stages),
        influence=document_summaries.histogram_of_influence(run, drawn),
        examples=document_summaries.example_documents(run, threshold),
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
    influence = run.scores.column(f"{SET_COLUMN}{one.name}").to_numpy()
    selected = influence[run.is_selected]
    mean_selected = float(selected.mean()) if len(selected) else None
    return one.model_copy(update={"mean_influence": float(influence.mean()), "mean_influence_selected": mean_selected})


def _stage(run: FinishedRun, number: int) -> Stage:
    """Collect a stage's losses, mean over seeds with each seed's reference loss, and its rounds."""
    store, config = run.store, run.config
    opening = _opening_round(run, number)
    chosen = read_choice(store, choice_key(config.run, number, "selected"))
    seeds = tuple(range(config.training.seeds))
    control = {"random": _losses(run, number, [f"random-{seed}" for seed in seeds])} if config.training.control else {}
    return Stage(
        stage=number,
        direction=opening.direction,
        threshold=opening.threshold,
        budget_tokens=chosen.budget_tokens,
        prediction=Prediction(**chosen.prediction.model_dump()) if chosen.prediction else None,
        seeds=seeds,
        before=_losses(run, number, ["before"]),
        selected=_losses(run, number, [f"selected-{seed}" for seed in seeds]),
        **control,
        gain=_gain(run, number, seeds) if control else None,
        frontier=_frontier(run, number),
        pilot=Pilot(**opening.pilot.model_dump()) if opening.pilot else None,
        scored_by=opening.scored_by,
        findings=tuple(Finding(**asdict(finding)) for finding in chosen.findings),
        rounds=tuple(
            _round(committed.round, committed.info) for committed in rounds.list_rounds(store, config.run, number)
        ),
    )


def _round(number: int, info: RoundInfo) -> Round:
    found = info.remaining
    return Round.model_validate(
        {
            **info.model_dump(),
            "round": number,
            "cost_share": info.cost.share if info.cost else None,
            "left": found.left if found else None,
            "left_low": found.low if found else None,
            "left_high": found.high if found else None,
        }
    )


def _opening_round(run: FinishedRun, stage: int) -> RoundInfo:
    """Read what a stage's first round, its pilot, noted."""
    return rounds.read_round(run.store, run.config.run, stage, 0).info


def _losses(run: FinishedRun, stage: int, names: Sequence[str]) -> Losses:
    """Average what trainings of several seeds were measured at."""
    measured = [_read_losses(run, stage, name) for name in names]
    by_seed = tuple(one.reference_loss for one in measured)
    trained = [one.training for one in measured if one.training]
    return Losses(
        steps=trained[0].steps if trained else None,
        peak_rate=trained[0].peak_rate if trained else None,
        target_tokens=trained[0].target_tokens if trained else None,
        reference_loss=float(np.mean(by_seed)),
        reference_loss_by_seed=by_seed,
        references={
            name: float(np.mean([one.references[name] for one in measured])) for name in measured[0].references
        },
        domains={name: float(np.mean([one.domains[name] for one in measured])) for name in measured[0].domains},
    )


def _gain(run: FinishedRun, stage: int, seeds: Sequence[int]) -> Gain:
    """Compare the trainings on selected and on random documents, paired by measured document and by seed.

    Raises:
        UnequalTrainings: they took numbers of optimizer steps that differ by more than `STEPS_TOLERANCE`.
    """
    selected, random = ([_read_losses(run, stage, f"{kind}-{n}") for n in seeds] for kind in ("selected", "random"))
    check_equal_steps([one.training for one in [*selected, *random] if one.training])
    weights = {one.name: one.weight for one in read_reference(run.store, run.reference).reference.sets}
    found = paired_gain([one.documents for one in random], [one.documents for one in selected], weights)
    n_documents = sum(len(one.nats) for one in selected[0].documents.values())
    if found is None:
        after_random, after_selected = (
            float(np.mean([mean_loss(one.documents, weights) for one in trained])) for trained in (random, selected)
        )
        return Gain(mean=after_random - after_selected, low=None, high=None, documents=n_documents, seeds=len(seeds))
    return Gain(**asdict(found), documents=n_documents, seeds=len(seeds))


def _frontier(run: FinishedRun, stage: int) -> tuple[FrontierPoint, ...]:
    """List what each trained share of the rest of the pool gave, random tokens last; errors as `_gain`."""
    training = run.config.training
    names = {run.config.selection.general_share: "selected-0", **({1.0: "random-0"} if training.control else {})}
    names |= {share: f"general-{share:g}" for share in training.frontier}
    measured = {share: _read_losses(run, stage, name) for share, name in sorted(names.items())}
    check_equal_steps([one.training for one in measured.values() if one.training])
    points = []
    for share, losses in measured.items():
        others = [bits for domain, bits in losses.domains.items() if domain != run.config.heldout.reference_domain]
        mean = float(np.mean(others)) if others else None
        points.append(FrontierPoint(general_share=share, reference_loss=losses.reference_loss, other_domains=mean))
    return tuple(points)


def _read_losses(run: FinishedRun, stage: int, name: str) -> MeasuredLosses:
    return read_manifest(MeasuredLosses, run.store, losses_key(trained_key(run.config.run, stage, name)))


def _diagnose(
    run: FinishedRun,
    drawn: pa.Table,
    arms: Sequence[Arm],
    stages: Sequence[Stage],
    profiles: dict[str, dict[str, float]],
    times: dict[str, float],
) -> tuple[Finding, ...]:
    """Judge the run by the failure signatures; influence is that of the last stage's random draws."""
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
