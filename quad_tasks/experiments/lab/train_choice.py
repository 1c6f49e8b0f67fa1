"""Train a model on chosen documents and measure its held-out losses: the one loop that every experiment trains with.

Owns the state a training goes on from, its settings, and the losses it ends with. Knows no testbed: it takes a model,
token ids, settings and a generator. A model that is handed over is never changed by `begin` or `branch`; `train` and
`train_choice` train the learner's own model in place.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from quad_tasks.core.lm import measurement, training
from quad_tasks.core.lm.training import Schedule
from quad_tasks.stages.selection.paired_gain import UnequalTrainings

Documents = Sequence[Sequence[int]]

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.05
"""Of a schedule's steps."""
LEAST_MEAN_TOKENS = 16
"""Of the documents of a selection, on average, for trainings on a budget of tokens to be as long."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training.

    Attributes:
        schedule: learning rate by optimizer steps.
        window_tokens: longest sequence.
        step_tokens: targets of an optimizer step.
        batch_tokens: tokens of one forward and backward pass, padding included.
        targets: to train on, neither more nor less; None: all that the documents have.
    """

    schedule: Schedule
    window_tokens: int
    step_tokens: int
    batch_tokens: int
    targets: int | None = None


@dataclass(frozen=True)
class Learner:
    """A model in training, with all that its next part goes on from.

    Attributes:
        model: trained in place.
        optimizer: of its parameters.
        trained_steps: optimizer steps so far under the schedule.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    trained_steps: int = 0


@dataclass(frozen=True)
class Domain:
    """A held-out domain: its documents' token ids, and the UTF-8 bytes that their targets stand for."""

    documents: Documents
    n_bytes: int


@dataclass(frozen=True)
class HeldOut:
    """Documents that losses are measured on.

    Attributes:
        reference: token ids of documents like the reference.
        domains: other domains by name; may be empty.
        window_tokens: longest sequence.
        batch_tokens: tokens of a batch, padding included.
    """

    reference: Documents
    domains: Mapping[str, Domain]
    window_tokens: int
    batch_tokens: int


@dataclass(frozen=True)
class Losses:
    """A model's losses on everything held out.

    Attributes:
        reference_loss: nats per target token of the reference.
        domains: bits per byte of each other domain.
        other_domains_bpb: mean of those, None where there is none.
        worst_domain_bpb: the highest of those, None where there is none.
    """

    reference_loss: float
    domains: dict[str, float]
    other_domains_bpb: float | None
    worst_domain_bpb: float | None


def one_pass(
    targets: int,
    peak: float,
    window_tokens: int,
    step_tokens: int,
    batch_tokens: int,
    warmup_share: float = WARMUP_SHARE,
) -> TrainingSettings:
    """Build settings whose schedule ends with one pass over documents of so many targets.

    Args:
        targets: to train on.
        peak: peak learning rate.
        window_tokens: longest sequence.
        step_tokens: targets of an optimizer step.
        batch_tokens: tokens of one forward and backward pass, padding included.
        warmup_share: of the steps.
    """
    n_steps = training.count_steps(targets, step_tokens)
    schedule = Schedule(peak, warmup_share * n_steps, n_steps)
    return TrainingSettings(schedule, window_tokens, step_tokens, batch_tokens, targets)


def common_targets(budget_tokens: int, step_tokens: int) -> int:
    """Count the targets that every training on a selection of a budget takes, so that all take the same steps.

    A document's first token is no target, so selections of equal tokens differ in targets by their documents' lengths.

    Args:
        budget_tokens: of a selection.
        step_tokens: targets of an optimizer step.

    Returns:
        As many whole steps as selections of documents of `LEAST_MEAN_TOKENS` on average fill; of a budget below one
        step three quarters, since a selection may end a document short of it.
    """
    targets = budget_tokens - budget_tokens // LEAST_MEAN_TOKENS
    return targets // step_tokens * step_tokens or 3 * budget_tokens // 4


def begin(model: PreTrainedModel) -> Learner:
    """Copy a model and give the copy a new optimizer."""
    copied = copy.deepcopy(model)
    return Learner(copied, training.make_optimizer(copied, WEIGHT_DECAY))


def restart(learner: Learner) -> Learner:
    """Give a learner's model a new optimizer, and count its steps from zero."""
    return Learner(learner.model, training.make_optimizer(learner.model, WEIGHT_DECAY))


def branch(learner: Learner) -> Learner:
    """Copy a learner with its optimizer's state, so that a trial leaves the learner as it was."""
    copied = begin(learner.model)
    copied.optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
    return Learner(copied.model, copied.optimizer, learner.trained_steps)


def train(
    learner: Learner, documents: Documents, settings: TrainingSettings, generator: np.random.Generator
) -> Learner:
    """Train one pass over documents, in place; return the learner with its steps counted.

    Args:
        learner: its model and optimizer are changed.
        documents: token ids.
        settings: schedule and sizes.
        generator: draws the order.

    Raises:
        UnequalTrainings: the documents have fewer targets than asked for.
    """
    record = training.train(
        learner.model,
        learner.optimizer,
        documents,
        settings.schedule,
        learner.trained_steps,
        settings.window_tokens,
        settings.step_tokens,
        settings.batch_tokens,
        generator,
        settings.targets,
    )
    if settings.targets is not None and record.target_tokens < settings.targets:
        raise UnequalTrainings(
            f"expected documents of {settings.targets} targets, found {record.target_tokens}: a training on fewer "
            "steps is compared with none"
        )
    return Learner(learner.model, learner.optimizer, record.schedule_steps)


def train_choice(
    learner: Learner,
    documents: Documents,
    settings: TrainingSettings,
    generator: np.random.Generator,
    held_out: HeldOut,
) -> tuple[Learner, Losses]:
    """Train one pass over chosen documents and measure; return the learner after it, and its losses.

    Args:
        learner: its model and optimizer are changed (`begin`, `branch`: a copy's).
        documents: token ids of the chosen documents.
        settings: schedule and sizes.
        generator: draws the order.
        held_out: what is measured on.
    """
    trained = train(learner, documents, settings, generator)
    return trained, measure_losses(trained.model, held_out)


def measure_losses(model: PreTrainedModel, held_out: HeldOut) -> Losses:
    """Measure a model on everything held out."""
    limits = (held_out.window_tokens, held_out.batch_tokens)
    domains = {}
    for name, domain in held_out.domains.items():
        nats, _ = measurement.measure(model, domain.documents, *limits)
        domains[name] = measurement.bits_per_byte(nats, domain.n_bytes)
    nats, n_targets = measurement.measure(model, held_out.reference, *limits)
    values = list(domains.values())
    return Losses(nats / n_targets, domains, float(np.mean(values)) if values else None, max(values, default=None))
