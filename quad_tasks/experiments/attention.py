"""Experiment "attention": does influence foresee what training does, with attention as one block, three, or left out?

Two tests of each kind of curvature, from one checkpoint. The linear datamodelling score (Park et al. 2023, arXiv
2303.14186): random subsets are trained on, and the influence each sums to is ranked against the loss it leaves. One
step: a batch is trained on in a single step of AdamW, and its influence is ranked against the change of the loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quad_tasks.compute import spread
from quad_tasks.experiments import outcome
from quad_tasks.experiments.laboratory import SCORES, Laboratory, encode_windows, open_laboratory
from quad_tasks.experiments.outcome import continue_training, loss_per_token
from quad_tasks.experiments.trials import train_trials

Int64 = npt.NDArray[np.int64]

SUBSETS, STEPS = 60, 160
SUBSET_SHARE = 0.5
"""Of the documents the subsets are drawn from."""
DRAWN_DOCUMENTS = 1_024
STEP_DOCUMENTS = 8
STEP_RATE = 1e-3
LEEWAY = 0.01


def validate_influence(laboratory: Laboratory, subsets: int = SUBSETS, steps: int = STEPS) -> dict[str, Any]:
    """Retrain on subsets and take single steps; correlate with every kind's influence.

    Args:
        laboratory: where.
        subsets: how many are trained on.
        steps: how many single steps are taken.
    """
    generator = np.random.default_rng(2)
    n_drawn = min(DRAWN_DOCUMENTS, len(laboratory.documents) // 2)
    rows = generator.choice(len(laboratory.documents), n_drawn, replace=False)
    trained = [np.sort(generator.choice(rows, int(SUBSET_SHARE * n_drawn), replace=False)) for _ in range(subsets)]
    after = [m["reference_loss"] for m in train_trials(laboratory, [(subset, 0) for subset in trained])]
    stepped = [generator.choice(len(laboratory.documents), STEP_DOCUMENTS, replace=False) for _ in range(steps)]
    items = [(laboratory.workspace, laboratory.key, part.tolist()) for part in np.array_split(stepped, min(8, steps))]
    stepped_after = [loss for part in spread(step_losses, items, "step", "batches") for loss in part]
    lds = {kind: outcome.datamodelling_score(laboratory.influence[kind], trained, after) for kind in SCORES}
    one = {kind: outcome.datamodelling_score(laboratory.influence[kind], stepped, stepped_after) for kind in SCORES}
    return {
        "lds": {kind: found["mean"] for kind, found in lds.items()},
        "lds_interval": {kind: [found["low"], found["high"]] for kind, found in lds.items()},
        "one_step": {kind: found["mean"] for kind, found in one.items()},
        "one_step_interval": {kind: [found["low"], found["high"]] for kind, found in one.items()},
        "lds_subsets": subsets,
        "one_steps": steps,
        "time_s": {kind: laboratory.seconds.get(f"fit_{kind}", 0.0) + laboratory.seconds["score"] for kind in SCORES},
        "shows": _shows(laboratory, trained, after),
    }


def _shows(laboratory: Laboratory, trained: Sequence[Int64], after: Sequence[float]) -> list[dict[str, Any]]:
    def less(first: str, second: str) -> dict[str, float]:
        return outcome.datamodelling_difference(
            laboratory.influence[first], laboratory.influence[second], trained, after
        )

    return [
        outcome.claim("LDS, joint less split", less("joint", "split"), least=0.0),
        outcome.claim("LDS, split less MLP alone", less("split", "mlp"), least=-LEEWAY),
        *(outcome.claim(f"LDS, {kind} less identity", less(kind, "identity"), least=0.0) for kind in SCORES[:-1]),
    ]


def step_losses(workspace: str, key: str, batches: Sequence[Sequence[int]]) -> list[float]:
    """Take a single optimizer step on each batch of rows from the checkpoint, on a worker; the loss after each."""
    laboratory = open_laboratory(workspace, key)
    size = laboratory.size
    measured = encode_windows(laboratory.tokenizer, laboratory.texts.measured, size)
    losses = []
    for rows in batches:
        chosen = [laboratory.documents[row] for row in rows]
        batch_tokens = STEP_DOCUMENTS * size.window_tokens
        model = continue_training(laboratory.model, chosen, STEP_RATE, size.window_tokens, batch_tokens, 0, 0.0)
        losses.append(loss_per_token(model, measured, size.window_tokens, size.batch_tokens))
    return losses
