"""Stage: train on what was chosen, beside a random control, and measure what it gained and what it cost.

Every training of a stage starts from the stage's checkpoint with its optimizer state, under one learning-rate schedule
over all stages. The model of the first seed is the checkpoint the next stage works on; the others show the interval.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quad_tasks.config.schema import RunConfig, TrainingConfig
from quad_tasks.core.lm import measurement, training
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.lm.training import Processes
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.manifests.influence import TrainingInfo
from quad_tasks.manifests.run import DocumentLosses, Losses
from quad_tasks.records import ModelUse, Stage
from quad_tasks.runtime.checkpoints import (
    keep_steps,
    load_checkpoint,
    read_checkpoint,
    read_checkpoint_manifest,
    restore_optimizer,
    resume_steps,
    save_checkpoint,
    weights_sha256,
)
from quad_tasks.runtime.events import record_event
from quad_tasks.runtime.processes.memory import SMALLER_TRAINING, release_freed_memory
from quad_tasks.runtime.processes.process_group import run_in_group
from quad_tasks.runtime.processes.worker_memory import renew_workers
from quad_tasks.runtime.progress import notice
from quad_tasks.runtime.reference_tables import read_reference, read_reference_table
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.stages.bandit.ledger import read_choice, read_choice_table, selected_key
from quad_tasks.stages.bandit.score_round import release_scoring
from quad_tasks.stages.pool.prepare_model import FRESH
from quad_tasks.stages.selection.random_control import draw_random_control
from quad_tasks.stages.selection.select_documents import StageSelection, select_mixture
from quad_tasks.stages.selection.train_by_command import train_by_command
from quad_tasks.stages.selection.training_memory import trainings_at_once
from quad_tasks.storage.keys import losses_key, manifest_key, steps_key, trained_key, trainer_log_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.row_groups import cut_rows
from quad_tasks.storage.store import Store

ReferencePart = Literal["reference", "measured", "heldout"]
TOKENIZED_ROWS, TOKENIZED_TOKENS = 2048, 2**21
"""Documents, and their tokens, whose texts are tokenized at once."""
FRESH_RATE, PRETRAINED_RATE = 1e-3, 1e-4
"""Peak learning rate where none is configured. A small fresh model learns by 1e-3; a checkpoint whose own rate has
decayed is thrown off by it."""
FIRST_SELECTED = "selected-0"
"""The training whose checkpoint the next stage goes on from."""


@dataclass(frozen=True)
class TrainingRun:
    """What every training of a stage has in common.

    Attributes:
        settings: the training's section of the configuration.
        peak_rate: the schedule's peak learning rate, configured or chosen.
        use: how the model reads documents; it is trained and measured with weights in float32, in bfloat16 products
            where that is its dtype and the device is faster at them.
        total_tokens: of the one schedule that runs through all stages.
        seed: of the run.
        processes: that share a training.
        workers: of the cluster.
        memory_limit: bytes that all processes may hold together; None: no limit.
    """

    settings: TrainingConfig
    peak_rate: float
    use: ModelUse
    total_tokens: int
    seed: int
    processes: int = 1
    workers: int = 1
    memory_limit: int | None = None

    @property
    def rounded(self) -> bool:
        """Whether products may be computed from bfloat16 factors."""
        return self.use.dtype == "bfloat16"


@dataclass(frozen=True)
class Training:
    """One training of a stage.

    Attributes:
        store: the workspace.
        stage: whose checkpoint is trained.
        reference: key of the reference tables.
        run: what all trainings have in common.
        max_targets: targets to train on.
        chosen: key of the choice of documents; None: the checkpoint is only measured.
        name: of the training among those of the stage.
        seed: beside the run's.
    """

    store: Store
    stage: Stage
    reference: str
    run: TrainingRun
    max_targets: int
    chosen: str | None
    name: str
    seed: int

    @property
    def key(self) -> str:
        """Key of what it makes."""
        return trained_key(self.stage.run, self.stage.number, self.name)


def training_run(config: RunConfig) -> TrainingRun:
    """Read what a run's trainings need from its configuration."""
    budget, compute = config.selection.budget_tokens, config.compute
    return TrainingRun(
        config.training,
        peak_rate(config),
        config.model_use(),
        budget,
        config.seed,
        compute.training_processes,
        compute.workers,
        compute.memory_limit,
    )


def peak_rate(config: RunConfig) -> float:
    """Return the peak learning rate: the configured one, else that for a fresh or for a pretrained model."""
    chosen = FRESH_RATE if config.model.source == FRESH else PRETRAINED_RATE
    return config.training.learning_rate or chosen


@stage_task("train and measure")
def train_stage(store: Store, stage: Stage, reference: str, run: TrainingRun, how: StageSelection) -> str:
    """Train the selected and the random arms of a stage, measure them and the model before; return the next checkpoint.

    All are trained on as many target tokens, so that they take the same number of equal steps. Mixtures are ranked
    along the direction that the selection was, which a gate may have kept. Losses stand in `losses.json` under
    `<stage>/trained/`: `before`, `selected-<seed>`, `random-<seed>` and `general-<share>`.
    """
    seeds = range(run.settings.seeds)
    controls = [draw_random_control(store, stage, how, n) for n in seeds] if run.settings.control else []
    named: list[tuple[str, str, int]] = [(selected_key(stage), f"selected-{n}", n) for n in seeds]
    named += [(control, f"random-{n}", n) for n, control in enumerate(controls)]
    ranked = replace(stage, direction=read_choice(store, selected_key(stage)).direction or stage.direction)
    for share in run.settings.frontier:
        named.append((select_mixture(store, ranked, how, share), f"general-{share:g}", 0))
    max_targets = min(count_targets(store, choice) for choice in {choice for choice, _, _ in named})
    trainings = [Training(store, stage, reference, run, max_targets, *one) for one in named]
    renew_workers()
    if run.settings.command is not None:
        for one in trainings:
            _train_by_command(one, run.settings.command)
    before = Training(store, stage, reference, run, max_targets, None, "before", 0)
    parameters = read_checkpoint_manifest(store, stage.checkpoint).parameters
    at_once = trainings_at_once(run.memory_limit, run.workers, run.processes, parameters)
    items = [(one,) for one in [*trainings, before]]
    labels = ("train and measure", "models")
    map_tasks(train_and_measure, items, *labels, on_gpu=True, at_once=at_once, smaller=SMALLER_TRAINING)
    return trained_key(stage.run, stage.number, FIRST_SELECTED)


def _train_by_command(one: Training, command: str) -> None:
    """Train by the user's program and measure; keep the weights of the model alone that the next stage goes on from."""
    store, stage, run = one.store, one.stage, one.run
    if one.chosen is None or store.exists(losses_key(one.key)):
        return
    train_by_command(
        store,
        one.key,
        command,
        run.settings.command_timeout_s,
        stage.version,
        stage.checkpoint,
        one.chosen,
        one.max_targets,
        run.seed + one.seed,
    )
    map_tasks(train_and_measure, [(one,)], f"measure {one.name}", "models", on_gpu=True)
    if one.name != FIRST_SELECTED:
        for part in store.list(one.key):
            if part not in (losses_key(one.key), trainer_log_key(one.key)):
                store.delete(part)


def count_targets(store: Store, choice: str) -> int:
    """Count the target tokens of chosen documents: all tokens but each document's first."""
    n_tokens = read_choice_table(store, choice, ["n_tokens"])["n_tokens"].to_numpy()
    return int((n_tokens - 1).sum())


def train_and_measure(one: Training) -> str:
    """Train a copy of the stage's checkpoint on chosen documents (none: leave it as it is), measure it, commit."""
    store, key, run = one.store, one.key, one.run
    if store.exists(losses_key(key)):
        return key
    release_scoring()
    if store.exists(manifest_key(key)):  # of an attempt that ended before it was measured
        model, tokenizer = load_checkpoint(store, key, "float32", run.use.device)
        _measure(one, model, tokenizer, read_checkpoint_manifest(store, key).training)
    elif one.chosen is None:
        _measure(one, *load_checkpoint(store, one.stage.checkpoint, "float32", run.use.device), None)
    elif run.processes == 1:
        train_in_process(one, Processes())
    else:
        run_in_group(train_in_process, one, run.processes, run.use.device, notice)
    return key


def train_in_process(one: Training, processes: Processes) -> None:
    """Train in one of the processes that share it; the first of them keeps what comes of it, measures and commits."""
    model, tokenizer, trained = _train(one, processes)
    if processes.rank == 0:
        _measure(one, model, tokenizer, trained)


def _measure(
    one: Training, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, trained: TrainingInfo | None
) -> None:
    """Measure a trained model and commit its losses; the training's own states are no longer needed."""
    store, key = one.store, one.key
    losses = measure_model(store, one.reference, model, tokenizer, one.run.use)
    write_manifest(store, losses_key(key), losses.model_copy(update={"training": trained}))
    store.delete(steps_key(key))
    event = {"stage": one.stage.number, "trained_on": one.name, "reference_loss": losses.reference_loss}
    record_event(store, one.stage.run, "model_measured", **event)


def _train(one: Training, processes: Processes) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, TrainingInfo]:
    """Train a copy of the stage's checkpoint; keep the one that the next stage goes on from."""
    store, stage, run, key, first = one.store, one.stage, one.run, one.key, processes.rank == 0
    model, tokenizer, optimizer = begin_training(store, stage.checkpoint, run)
    start = read_checkpoint_manifest(store, stage.checkpoint)
    assert one.chosen is not None
    rows = read_choice_table(store, one.chosen, ["position", "n_tokens"])
    resumed = resume_steps(store, key, model, optimizer)
    keep = keep_steps(store, key, model, optimizer, run.settings.checkpoint_every_s)

    def after_step(record: training.TrainingRecord) -> None:
        release_freed_memory()
        if first:
            keep(record)

    record = training.train(
        model,
        optimizer,
        read_tokens(store, stage.version, rows, tokenizer),
        learning_schedule(run),
        start.trained_steps,
        run.use.window_tokens,
        run.settings.batch_tokens,
        run.use.batch_tokens,
        make_generator(run.seed, Stream.TRAINING, stage.number, one.seed),
        max_targets=one.max_targets,
        rounded=run.rounded,
        resumed=resumed,
        after_step=after_step,
        processes=processes,
    )
    trained = TrainingInfo(
        steps=record.steps,
        target_tokens=record.target_tokens,
        padded_tokens=record.padded_tokens,
        peak_rate=run.peak_rate,
    )
    if one.name == FIRST_SELECTED and first:
        changed = {
            "training": trained,
            "trained_steps": record.schedule_steps,
            "trained_tokens": start.trained_tokens + record.target_tokens,
            "weights_sha256": weights_sha256(model),
            "source": None,
            "bfloat16_sha256": None,
        }
        described = start.model_copy(update=changed)
        save_checkpoint(store, key, model, tokenizer, described, optimizer)
    return model, tokenizer, trained


def begin_training(
    store: Store, checkpoint: str, run: TrainingRun
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, AdamW]:
    """Load a copy of a checkpoint to train, its tokenizer, and an optimizer in the state it was left in.

    What this process kept for scoring it lets go: a training needs the memory.
    """
    release_scoring()
    model, tokenizer = read_checkpoint(store, checkpoint, "float32", run.use.device)
    optimizer = training.make_optimizer(model, run.settings.weight_decay)
    restore_optimizer(store, checkpoint, optimizer)
    return model, tokenizer, optimizer


def read_tokens(
    store: Store, version: str, chosen: pa.Table, tokenizer: PreTrainedTokenizerFast
) -> list[npt.NDArray[np.int32]]:
    """Read chosen documents in arm order and tokenize them, with no more than a block of their texts in memory.

    Args:
        store: the workspace.
        version: key of the pool version.
        chosen: `position` and `n_tokens` of the documents.
        tokenizer: the model's own.

    Returns:
        Token ids of each document: 4 bytes a token, where Python's own lists take about 40.
    """
    chosen = chosen.sort_by("position")
    positions, documents = chosen["position"].to_numpy(), list[npt.NDArray[np.int32]]()
    bounds = cut_rows(chosen["n_tokens"].to_numpy(), TOKENIZED_ROWS, TOKENIZED_TOKENS)
    for first, end in itertools.pairwise(bounds):
        texts = read_positions(store, version, positions[first:end], ["text"])["text"].to_pylist()
        documents += [np.array(ids, dtype=np.int32) for ids in encode(tokenizer, texts)]
    return documents


def learning_schedule(run: TrainingRun) -> training.Schedule:
    """Build the one schedule that runs through all stages: each takes the steps of its share of the budget."""
    settings = run.settings
    total = settings.stages * training.count_steps(run.total_tokens / settings.stages, settings.batch_tokens)
    return training.Schedule(run.peak_rate, settings.warmup_share * total, total)


def measure_model(store: Store, reference: str, model: Any, tokenizer: Any, use: ModelUse) -> Losses:
    """Measure the held-out reference loss, nats per target token, and bits per byte of every held-out domain.

    Of several reference sets the loss is the mean by their weights; `references` then holds each one's. `left_out`
    counts the texts in which nothing is predicted, having one token: of the reference, and of each domain.
    """
    limits = (use.window_tokens, use.batch_tokens)
    loss, sets = measure_references(store, reference, "measured", model, tokenizer, limits)
    domains = {
        domain: measurement.measure_texts(model, tokenizer, texts, *limits, name=f"held-out domain {domain!r}")
        for domain, texts in sorted(_texts_by_domain(store, reference, "heldout").items())
    }
    return Losses(
        reference_loss=loss,
        references={name: one.loss for name, one in sets.items()} if len(sets) > 1 else {},
        domains={name: one.bits_per_byte for name, one in domains.items()},
        left_out=sum(one.left_out for one in [*sets.values(), *domains.values()]),
        documents=document_losses(sets),
    )


def document_losses(measured: dict[str, measurement.Measurement]) -> dict[str, DocumentLosses]:
    """Keep what was measured of each document, by set."""
    return {
        name: DocumentLosses(nats=tuple(one.nats_N.tolist()), targets=tuple(one.targets_N.tolist()))
        for name, one in measured.items()
    }


def measure_references(
    store: Store, reference: str, part: ReferencePart, model: Any, tokenizer: Any, limits: tuple[int, int]
) -> tuple[float, dict[str, measurement.Measurement]]:
    """Measure the loss on a part of the reference, nats per target: the mean of its sets by weight, and each set.

    Args:
        store: of the workspace.
        reference: key of the reference tables.
        part: `measured`, what is held out; or `reference`, what the direction is made from.
        model: measured.
        tokenizer: its own.
        limits: tokens of a window and of a batch.

    Raises:
        ValueError: no text of a set has two tokens.
    """
    found = {
        name: measurement.measure_texts(model, tokenizer, texts, *limits, name=f"reference set {name!r}")
        for name, texts in _texts_by_domain(store, reference, part).items()
    }
    weight = {one.name: one.weight for one in read_reference(store, reference).reference.sets}
    weights = [weight.get(name, 1.0) for name in found]
    return float(np.average([one.loss for one in found.values()], weights=weights)), found


def _texts_by_domain(store: Store, reference: str, part: ReferencePart) -> dict[str, list[str]]:
    rows = read_reference_table(store, reference, part, ["text", "domain"])
    texts: dict[str, list[str]] = {}
    for text, domain in zip(rows["text"].to_pylist(), rows["domain"].to_pylist(), strict=True):
        texts.setdefault(domain, []).append(text)
    return texts
