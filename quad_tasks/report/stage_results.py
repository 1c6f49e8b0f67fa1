"""Collect what each stage of a finished run gave: its ranking, losses with and without it, its rounds."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from quad_tasks.manifests.run import GateTrial, RoundInfo
from quad_tasks.manifests.run import Losses as MeasuredLosses
from quad_tasks.report.finished_run import FinishedRun
from quad_tasks.report.model import Finding, FrontierPoint, Gain, Losses, Pilot, Prediction, Round, Stage
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.stages.bandit.ledger import read_choice, read_ranking
from quad_tasks.stages.selection.paired_gain import check_equal_steps, mean_loss, paired_gain
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_key, gate_key, losses_key, trained_key
from quad_tasks.storage.manifest import read_manifest


def collect_stage(run: FinishedRun, number: int) -> Stage:
    """Collect a stage's losses, mean over seeds with each seed's reference loss, and its rounds."""
    store, config = run.store, run.config
    opening = rounds.read_round(store, config.run, number, 0).info
    chosen = read_choice(store, choice_key(config.run, number, "selected"))
    ranking, gate = read_ranking(store, config.run, number), gate_key(config.run, number)
    seeds = tuple(range(config.training.seeds))
    control = {"random": _losses(run, number, [f"random-{seed}" for seed in seeds])} if config.training.control else {}
    return Stage(
        stage=number,
        direction=ranking.direction,
        threshold=ranking.threshold,
        refit_accepted=read_manifest(GateTrial, store, gate).accepted if store.exists(gate) else None,
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
    trained = [(run.config.selection.general_share, "selected-0")]
    trained += [(share, f"general-{share:g}") for share in training.frontier]
    named = [*sorted(trained), *([(1.0, "random-0")] if training.control else [])]
    measured = [(share, _read_losses(run, stage, name)) for share, name in named]
    check_equal_steps([losses.training for _, losses in measured if losses.training])
    points = []
    for share, losses in measured:
        others = [bits for domain, bits in losses.domains.items() if domain != run.config.heldout.reference_domain]
        mean = float(np.mean(others)) if others else None
        points.append(FrontierPoint(general_share=share, reference_loss=losses.reference_loss, other_domains=mean))
    return tuple(points)


def _read_losses(run: FinishedRun, stage: int, name: str) -> MeasuredLosses:
    return read_manifest(MeasuredLosses, run.store, losses_key(trained_key(run.config.run, stage, name)))
