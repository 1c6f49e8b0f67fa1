"""Train on selected documents from a testbed's checkpoint; measure what the reference gained and others lost.

Every trial is one item of work on a Dask worker: rows and a seed in, losses out. The workspace caches the losses, so
that a rerun, or another experiment in the same testbed, goes on from what was trained before.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.core.evaluation.diversity import diversity_profile
from quad_tasks.core.lm.token_bytes import target_bytes
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.testbed import Testbed, encode_windows, open_testbed
from quad_tasks.experiments.lab.train_choice import (
    Domain,
    HeldOut,
    Losses,
    TrainingSettings,
    begin,
    common_targets,
    one_pass,
    train_choice,
)

Int64 = npt.NDArray[np.int64]

CONTINUED_RATE = 1e-3
"""Peak learning rate of every training from a testbed's checkpoint."""
PROFILED_DOCUMENTS = 400
"""Diversity is compared on equal numbers of documents."""


def train_trials(testbed: Testbed, trials: Sequence[tuple[Int64, int]], short: bool = False) -> list[Losses]:
    """Train and measure, trial by trial, each on as many targets.

    Args:
        testbed: its checkpoint is trained.
        trials: rows to train on, and the seed of their order.
        short: whether selections may be far below the budget; all are then trained on as much as the least has.

    Raises:
        UnequalTrainings: a selection is far below the budget, and may not be.
    """
    targets = common_targets(testbed.size.budget_tokens, 2 * testbed.size.batch_tokens)
    if short:
        targets = min(targets, *(int((testbed.n_tokens[rows] - 1).sum()) for rows, _ in trials))
    items = [(testbed.workspace, testbed.key, np.sort(rows).tolist(), seed, targets) for rows, seed in trials]
    return map_cached(train_trial, items, "train", "models")


def train_trial(workspace: str, key: str, rows: Sequence[int], seed: int, targets: int) -> Losses:
    """Train on this many targets of some rows, on a worker; measure."""
    testbed = open_testbed(workspace, key)
    chosen, generator = testbed.token_ids(rows), np.random.default_rng(seed)
    settings = continued_settings(testbed, targets)
    _, losses = train_choice(begin(testbed.model), chosen, settings, generator, hold_out(testbed))
    return losses


def continued_settings(testbed: Testbed, targets: int) -> TrainingSettings:
    """Build the settings of a training on this many targets from a testbed's checkpoint."""
    size = testbed.size
    return one_pass(targets, CONTINUED_RATE, size.window_tokens, 2 * size.batch_tokens, size.batch_tokens)


def hold_out(testbed: Testbed) -> HeldOut:
    """Tokenize everything that a testbed measures models on."""
    domains = {}
    for name, texts in testbed.texts.others.items():
        documents = encode_windows(testbed.tokenizer, texts, testbed.size)
        n_bytes = sum(target_bytes(testbed.tokenizer, texts, testbed.size.window_tokens))
        domains[name] = Domain(documents, n_bytes)
    reference = hold_out_reference(testbed, testbed.texts.measured)
    return HeldOut(reference.reference, domains, reference.window_tokens, reference.batch_tokens)


def hold_out_reference(testbed: Testbed, texts: Sequence[str]) -> HeldOut:
    """Tokenize texts like the reference to measure the reference loss alone."""
    size = testbed.size
    return HeldOut(encode_windows(testbed.tokenizer, texts, size), {}, size.window_tokens, size.batch_tokens)


def profile(testbed: Testbed, rows: Int64) -> dict[str, float]:
    """Measure how diverse a selection is, on a random part of it (`core.evaluation.diversity`)."""
    n_arms = int(testbed.arm.max()) + 1
    drawn = np.random.default_rng(0).permutation(rows)[:PROFILED_DOCUMENTS]
    return diversity_profile(
        [testbed.texts.pool[row] for row in drawn],
        testbed.embedding[drawn],
        np.bincount(testbed.arm[rows], minlength=n_arms),
        np.bincount(testbed.arm, minlength=n_arms),
    )
