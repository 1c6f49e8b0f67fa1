"""Rank documents by rivals that read the whole pool with a model: representations, gradients, an adapted copy's losses.

Each function returns an order of the pool's rows, best first, to be cut at a token budget
(`core.selection.fill_budget`). What each reads is counted by `diversity_methods`.

- Representation similarity: cosine of mean hidden states to the reference's.
- Gradient similarity: cosine of a document's gradient to the reference's (LESS, Xia et al. 2024, arXiv 2402.04333, by
  plain gradients, not projected).
- Conditional loss: how much less the loss of a copy adapted to the reference is than the checkpoint's (CoLoR-Filter,
  Brandfonbrener et al. 2024, arXiv 2406.10670). The loss drop divides that by the checkpoint's loss (arXiv 2605.09404).

Shape suffixes: N documents of the pool, M of the reference, H hidden state.
"""

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.influence import gradient_sums
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.conditional_loss import adapt
from quad_tasks.core.lm.hidden_states import losses_and_states
from quad_tasks.core.lm.measurement import document_losses
from quad_tasks.experiments.lab.baselines import similarity_order
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.testbed import Testbed, encode_windows, open_testbed
from quad_tasks.experiments.lab.train_choice import Documents

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ADAPTED_PASSES = 4
ADAPTED_RATE = 1e-3
"""Passes over the reference by which a copy of the checkpoint is adapted, and the peak learning rate: chosen in two
replicates of other seeds, where 2 to 8 passes, and three times the rate, did as well."""


def representation_order(testbed: Testbed) -> Int64:
    """Order by the mean cosine of a document's mean hidden state to those of the reference's documents."""
    batches, owner = make_batches(_reference(testbed), testbed.size.window_tokens, testbed.size.batch_tokens)
    _, hidden_MH = losses_and_states(testbed.model, batches)
    return similarity_order(_unit(testbed.hidden), _unit(hidden_MH[np.argsort(owner.numpy())]))


def gradient_order(testbed: Testbed) -> Int64:
    """Order by the cosine of a document's gradient to the reference gradient, over the blocks that are scored."""
    return np.argsort(-testbed.influence["identity"] / gradient_norms(testbed), kind="stable")


def gradient_norms(testbed: Testbed) -> Float64:
    """Compute the norm of every document's gradient, summed over its targets, in all joint blocks, [N]."""
    blocks, norms = find_blocks(testbed.model), []
    for ids in testbed.documents:
        batches, _ = make_batches([ids], testbed.size.window_tokens, testbed.size.batch_tokens)
        sums, _ = gradient_sums(testbed.model, batches, blocks)
        norms.append(math.sqrt(sum(float(sum_OI.double().square().sum()) for sum_OI in sums.values())))
    return np.array(norms)


def conditional_loss_order(testbed: Testbed) -> Int64:
    """Order by the checkpoint's loss per target less the adapted copy's, largest first."""
    return np.argsort(-conditional_losses(testbed), kind="stable")


def conditional_losses(testbed: Testbed) -> Float64:
    """Compute the checkpoint's loss per target less the adapted copy's, [N]; > 0: adapting lowered it."""
    conditional_N: Float64 = testbed.loss - np.array(find_adapted(testbed).loss)
    return conditional_N


def loss_drop_order(testbed: Testbed) -> Int64:
    """Order by the share of the checkpoint's loss per target that adapting to the reference takes off."""
    return np.argsort(np.array(find_adapted(testbed).loss) / testbed.loss, kind="stable")


@dataclass(frozen=True)
class Adapted:
    """What a copy of the checkpoint that is adapted to the reference was measured at.

    Attributes:
        loss: of every document of the pool, nats per target.
        train_s: seconds of adapting, on one core.
        read_s: seconds of reading the pool by the copy.
    """

    loss: list[float]
    train_s: float
    read_s: float


def find_adapted(testbed: Testbed) -> Adapted:
    """Read what the testbed's adapted copy was measured at; adapt one, on a worker, where no experiment has."""
    return map_cached(adapt_copy, [(testbed.workspace, testbed.key)], "adapt to the reference", "testbeds")[0]


def adapt_copy(workspace: str, key: str) -> Adapted:
    """Adapt a copy of a testbed's checkpoint to the reference; measure it on every document, on a worker."""
    testbed, started = open_testbed(workspace, key), time.process_time()
    size, copied = testbed.size, copy.deepcopy(testbed.model)
    limits = (size.window_tokens, 2 * size.batch_tokens, size.batch_tokens)
    adapt(copied, _reference(testbed), ADAPTED_PASSES, ADAPTED_RATE, *limits, np.random.default_rng(0))
    trained = time.process_time()
    nats_N, targets_N = document_losses(copied, testbed.documents, size.window_tokens, size.batch_tokens)
    return Adapted((nats_N / targets_N).tolist(), trained - started, time.process_time() - trained)


def _reference(testbed: Testbed) -> Documents:
    """Tokenize the reference; a document of one token has no target."""
    return [ids for ids in encode_windows(testbed.tokenizer, testbed.texts.reference, testbed.size) if len(ids) > 1]


def _unit(rows_NH: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit_NH: npt.NDArray[np.float32] = rows_NH / np.linalg.norm(rows_NH, axis=1, keepdims=True)
    return unit_NH
