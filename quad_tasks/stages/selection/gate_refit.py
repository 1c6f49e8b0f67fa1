"""Stage: whether a refitted direction may rank a stage's documents, by a short trial of both rankings.

Influence at a freshly trained checkpoint can mislead. From the stage's own checkpoint, optimizer and
schedule a copy is trained on the best that the new direction's ranking has left, another on the best of the last one
used. The new ranking is used where it leaves less loss on the direction's own reference documents, the whole paired
interval over them above 0; a single document gives no interval. The measured part of the reference has no say, so that
what a run reports stays unseen. The verdict is a manifest: `<stage>/gate.json`.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.core.lm import training
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.manifests.run import DocumentLosses, GateTrial
from quad_tasks.records import Stage
from quad_tasks.runtime.checkpoints import read_checkpoint_manifest
from quad_tasks.runtime.processes.memory import SMALLER_TRAINING, release_freed_memory
from quad_tasks.runtime.processes.worker_memory import renew_workers
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.runtime.run import check_run_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.bandit.ledger import read_choice, read_choice_table
from quad_tasks.stages.influence.fit_direction import read_direction
from quad_tasks.stages.selection.paired_gain import mean_loss, paired_gain
from quad_tasks.stages.selection.select_documents import StageSelection, try_choice
from quad_tasks.stages.selection.train import (
    TrainingRun,
    begin_training,
    document_losses,
    learning_schedule,
    measure_references,
    read_tokens,
)
from quad_tasks.storage.keys import choice_key, gate_key
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.store import Store

TRIAL_SHARE = 0.5
"""Of a stage's tokens, that each trial trains on."""


@stage_task("gate refit")
def gate_refit(store: Store, stage: Stage, run: TrainingRun, how: StageSelection) -> Stage:
    """Return the stage with the direction that is to rank its documents.

    That is its own, unless `training.refit` is `gated` and a trial spoke for the direction of the stage before.
    """
    if run.settings.refit != "gated" or stage.number == 0:
        return stage
    key = gate_key(stage.run, stage.number)
    if not store.exists(key):
        before = read_choice(store, choice_key(stage.run, stage.number - 1, "selected")).direction
        verdict = _try_both(store, stage, run, how, str(before))
        check_run_lease(store, stage.run)
        write_manifest(store, key, verdict)
    return replace(stage, direction=read_manifest(GateTrial, store, key).used)


def _try_both(store: Store, stage: Stage, run: TrainingRun, how: StageSelection, before: str) -> GateTrial:
    if before == stage.direction:
        return GateTrial(used=before, refitted_loss=None, earlier_loss=None, accepted=False)
    choices = {
        "refitted": try_choice(store, stage, how, "gate-refitted"),
        "earlier": try_choice(store, replace(stage, direction=before), how, "gate-earlier"),
    }
    tried = [read_trial(store, run, chosen) for chosen in choices.values()]
    targets = min(int((one["n_tokens"].to_numpy() - 1).sum()) for one in tried)
    items = [(store, stage, run, chosen, targets) for chosen in choices.values()]
    renew_workers()
    labels = ("try both rankings", "models")
    fresh, old = map_tasks(train_trial, items, *labels, on_gpu=True, smaller=SMALLER_TRAINING)
    weights = {one.name: one.weight for one in read_reference(store, _reference_of(store, stage)).reference.sets}
    gain = paired_gain([old], [fresh], weights)
    refitted_loss, earlier_loss = (mean_loss(trial, weights) for trial in (fresh, old))
    accepted = gain is not None and gain.low > 0
    notice(
        f"stage {stage.number}: {'the refitted' if accepted else 'the earlier'} ranking is used: after a trial the "
        f"reference's own loss is {earlier_loss - refitted_loss:+.4f} lower by the refitted "
        f"({_describe_interval(gain)})"
    )
    used = stage.direction if accepted else before
    return GateTrial(used=used, refitted_loss=refitted_loss, earlier_loss=earlier_loss, accepted=accepted)


def _describe_interval(gain: Interval | None) -> str:
    if gain is None:
        return "one document of it gives no interval, which the refitted ranking would need above 0"
    return f"95 % interval over its documents {gain.low:+.4f} to {gain.high:+.4f}"


def _reference_of(store: Store, stage: Stage) -> str:
    return read_direction(store, stage.direction).reference


def read_trial(store: Store, run: TrainingRun, chosen: str) -> pa.Table:
    """Read `position` and `n_tokens` of the best documents of a choice, as many tokens as a trial trains on."""
    table = read_choice_table(store, chosen, ["position", "n_tokens"])
    trial_tokens = int(TRIAL_SHARE * run.total_tokens / run.settings.stages)
    return table.take(fill_budget(np.arange(table.num_rows), table["n_tokens"].to_numpy(), trial_tokens))


def train_trial(store: Store, stage: Stage, run: TrainingRun, chosen: str, targets: int) -> dict[str, DocumentLosses]:
    """Train a copy of the stage's checkpoint on so many targets of the best of a choice, on a worker.

    Returns:
        The losses of the direction's own reference documents, by set.
    """
    model, tokenizer, optimizer = begin_training(store, stage.checkpoint, run)
    training.train(
        model,
        optimizer,
        read_tokens(store, stage.version, read_trial(store, run, chosen), tokenizer),
        learning_schedule(run),
        read_checkpoint_manifest(store, stage.checkpoint).trained_steps,
        run.use.window_tokens,
        run.settings.batch_tokens,
        run.use.batch_tokens,
        make_generator(run.seed, Stream.GATE_TRAINING, stage.number),
        targets,
        rounded=run.rounded,
        after_step=lambda _: release_freed_memory(),
    )
    limits = (run.use.window_tokens, run.use.batch_tokens)
    _, measured = measure_references(store, _reference_of(store, stage), "reference", model, tokenizer, limits)
    return document_losses(measured)
