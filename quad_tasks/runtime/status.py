"""How far a run is, and what a stage's rounds and trainings came to, read from what was committed."""

from datetime import UTC, datetime
from typing import Any

from quad_tasks.config.schema import RunConfig, TrainingConfig
from quad_tasks.manifests.run import Choice, Losses
from quad_tasks.runtime.events import last_event_s
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.keys import (
    choice_key,
    choice_manifest_key,
    losses_key,
    manifest_key,
    report_key,
    run_folder,
    selection_folder,
    trained_key,
)
from quad_tasks.storage.lease import lease_holder
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import Store


def run_status(store: Store, config: RunConfig) -> dict[str, Any]:
    """Say how far a run is: its pool version, rounds and tokens of each stage, who drives it, whether it is done."""
    run, last = config.run, last_event_s(store, config.run)
    holder = lease_holder(store, run_folder(run))
    return {
        "run": run,
        "pool": pinned_pool(store, run),
        "stages": [_stage_status(store, run, number) for number in range(config.training.stages)],
        "published": store.exists(manifest_key(selection_folder(run))),
        "reported": store.exists(report_key(run)),
        "driven_by": str(holder) if holder else None,
        "last_event": datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds") if last is not None else None,
    }


def _stage_status(store: Store, run: str, number: int) -> dict[str, Any]:
    """Sum up a stage's rounds; shares are None where they are not known."""
    infos = [committed.info for committed in list_rounds(store, run, number)]
    left = [info.remaining.left for info in infos if info.remaining]
    return {
        "stage": number,
        "rounds": len(infos),
        "scored_documents": sum(info.documents for info in infos),
        "scored_tokens": sum(info.tokens for info in infos),
        "accepted_documents": sum(info.accepted_documents for info in infos),
        "accepted_tokens": sum(info.accepted_tokens for info in infos),
        "cost_share": infos[-1].cost.share if infos and infos[-1].cost else None,
        "gain_left": left[-1] if left else None,
        "selected": store.exists(choice_manifest_key(choice_key(run, number, "selected"))),
        "trained": store.exists(losses_key(trained_key(run, number, "selected-0"))),
    }


def trainings(training: TrainingConfig) -> list[str]:
    """Name what each stage trains and measures: `before`, `selected-<seed>`, `random-<seed>`, `general-<share>`."""
    kinds = ["selected", *(["random"] if training.control else [])]
    shares = [f"general-{share:g}" for share in training.frontier]
    return ["before", *(f"{kind}-{seed}" for kind in kinds for seed in range(training.seeds)), *shares]


def current_stage(store: Store, run: str, training: TrainingConfig) -> int:
    """Return the first stage that is not trained, the last one where all are."""
    last = training.stages - 1
    for number in range(last):
        if not all(store.exists(losses_key(trained_key(run, number, name))) for name in trainings(training)):
            return number
    return last


def stage_summary(store: Store, run: str, stage: int) -> dict[str, Any]:
    """Say what a stage's rounds cost and what they selected."""
    committed = list_rounds(store, run, stage)
    choice = read_manifest(Choice, store, choice_manifest_key(choice_key(run, stage, "selected")))
    return {
        "run": run,
        "stage": stage,
        "rounds": len(committed),
        "scored_documents": sum(r.info.documents for r in committed),
        "scored_tokens": sum(r.info.tokens for r in committed),
        "threshold": choice.threshold,
        "effective_arms": round(committed[-1].info.effective_arms, 1),
        "chosen_documents": choice.documents,
        "chosen_tokens": choice.tokens,
        "budget_tokens": choice.budget_tokens,
        "findings": [finding.signature for finding in choice.findings],
    }


def read_losses(store: Store, training: TrainingConfig, checkpoint: str) -> list[dict[str, Any]]:
    """Read what each training of a stage came to: reference loss, nats per token, and bits per byte by domain.

    Args:
        store: the workspace.
        training: says what each stage trains.
        checkpoint: key of one of the stage's checkpoints, `runs/<run>/stage-<NN>/trained/<name>`.
    """
    folder, rows = checkpoint.rpartition("/")[0], []
    for name in trainings(training):
        losses = read_manifest(Losses, store, losses_key(f"{folder}/{name}"))
        domains = {domain: round(bits, 4) for domain, bits in losses.domains.items()}
        rows.append({"trained_on": name, "reference_loss": round(losses.reference_loss, 4), **domains})
    return rows
