"""Calibrate scorers in a testbed as a run does on its pilot: the cheapest that ranks right, and what it costs.

Methods are then charged for the scores that this scorer would give, and read those of exact scoring, which rank alike.

Shape suffixes: N documents.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import BanditConfig
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.influence import score_documents
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.experiments.lab.testbed import Testbed, load_direction, open_testbed
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.stages.bandit.pilot import TRIED_SHARE
from quad_tasks.storage.store import open_store

Float64 = npt.NDArray[np.float64]
ScorerName = Literal["auto", "exact", "low_rank", "forward_only"]


@dataclass(frozen=True)
class ScorerCost:
    """How documents are scored after a pilot.

    Attributes:
        scorer: the cheapest that was accepted; `exact` where none was.
        spearman: its rank correlation with exact scoring on the pilot's documents.
        cost: FLOPs of scoring by it, as a share of exact scoring's.
        trial_cost: FLOPs of trying scorers, as a share of scoring the whole pool exactly.
    """

    scorer: str
    spearman: float
    cost: float
    trial_cost: float


EXACT = ScorerCost("exact", 1.0, 1.0, 0.0)


def find_scorer(
    workspace: str,
    key: str,
    cost_share: float,
    scorer: ScorerName = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> ScorerCost:
    """Try scorers on a testbed's first documents, which stand in random order, as a run does on its pilot's.

    Args:
        workspace: of the testbed.
        key: of the testbed.
        cost_share: FLOPs that scoring may take, as a share of scoring the whole pool exactly.
        scorer: as `bandit.scorer`.
        dtype: of the model. In bfloat16 its own exact scores are what a scorer must rank like.
    """
    testbed, settings, store = open_testbed(workspace, key), BanditConfig(), open_store(workspace)
    size, rows = testbed.size, range(min(settings.calibration_documents, len(testbed.documents)))
    pilot_share = min(settings.pilot_documents / len(testbed.documents), cost_share / 2)
    batches, owner = make_batches(testbed.token_ids(rows), size.window_tokens, size.batch_tokens)
    model, whole = load_checkpoint(store, f"{key}/checkpoint", dtype, "cpu")[0], pool_flops(testbed)
    direction = load_direction(store, key, "joint")
    exact = score_documents(model, batches, direction)
    found = calibrate(
        model,
        batches,
        owner,
        {"reference": direction},
        scorer,
        settings.scorer_floor,
        exact_N=(exact.influence / exact.n_tokens)[np.argsort(owner.numpy())],
        most_flops=TRIED_SHARE * (cost_share - pilot_share) * whole,
    )
    if not found.accepted or found.scorer == "exact":
        return ScorerCost("exact", 1.0, 1.0, found.flops / whole)
    return ScorerCost(found.scorer, found.spearman, found.cost, found.flops / whole)


def document_costs(testbed: Testbed) -> Float64:
    """Compute what scoring each document exactly takes, as a share of scoring all, [N]."""
    flops_N = _document_flops(testbed, flops.exact_flops(_model_size(testbed)))
    costs: Float64 = flops_N / flops_N.sum()
    return costs


def pool_flops(testbed: Testbed) -> float:
    """Count the FLOPs of scoring a testbed's whole pool exactly."""
    return float(_document_flops(testbed, flops.exact_flops(_model_size(testbed))).sum())


def reading_cost(testbed: Testbed) -> float:
    """Compute the FLOPs of a forward pass over the whole pool, as a share of scoring it exactly."""
    forward = _document_flops(testbed, flops.forward_flops(_model_size(testbed))).sum()
    return float(forward) / pool_flops(testbed)


def _document_flops(testbed: Testbed, way: flops.PassFlops) -> Float64:
    return flops.document_flops(way, testbed.n_tokens, testbed.size.window_tokens)


def _model_size(testbed: Testbed) -> flops.ModelSize:
    return flops.model_size(testbed.model, find_blocks(testbed.model))
