"""What one training saved against another on the same measured documents, with its interval."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from quad_tasks.core.evaluation.statistics import Interval, gain_over_documents
from quad_tasks.manifests.influence import TrainingInfo
from quad_tasks.manifests.run import DocumentLosses

Float64 = npt.NDArray[np.float64]
BySet = Mapping[str, DocumentLosses]

STEPS_TOLERANCE = 0.01
"""Trainings whose optimizer steps differ by more than this share are not compared."""


class UnequalTrainings(RuntimeError):
    """Two trainings that were to be compared took different numbers of optimizer steps."""


def check_equal_steps(trainings: Sequence[TrainingInfo]) -> None:
    """Refuse to compare trainings of unequal length.

    Raises:
        UnequalTrainings: their optimizer steps differ by more than `STEPS_TOLERANCE`.
    """
    steps = [one.steps for one in trainings]
    if steps and max(steps) - min(steps) > STEPS_TOLERANCE * max(steps):
        raise UnequalTrainings(
            f"expected trainings of equally many optimizer steps, found {min(steps)} to {max(steps)}: "
            "their losses are not compared"
        )


def paired_gain(
    baseline_S: Sequence[BySet], method_S: Sequence[BySet], weights: Mapping[str, float]
) -> Interval | None:
    """Compute the mean reference loss saved, nats per target, with an interval over documents and repeats together.

    Args:
        baseline_S: [S] losses by reference set and document of each repeat of the baseline.
        method_S: [S] the same of the method, on the same documents, repeats paired.
        weights: of the reference sets; a set that is not named counts 1.

    Returns:
        The gain; None where a single document was measured, which gives no interval.
    """
    scales = _scales(baseline_S[0], weights)
    before_SN, after_SN = (
        np.stack([_joined(one, "nats", scales) for one in repeats]) for repeats in (baseline_S, method_S)
    )
    return gain_over_documents(before_SN, after_SN, _joined(baseline_S[0], "targets", scales))


def mean_loss(losses: BySet, weights: Mapping[str, float]) -> float:
    """Compute the mean loss of the reference sets by weight, nats per target."""
    return float(_joined(losses, "nats", _scales(losses, weights)).sum())


def _scales(losses: BySet, weights: Mapping[str, float]) -> dict[str, float]:
    """Return a factor for each set's nats and targets, so that all targets sum to 1 and each set's to its share."""
    total = sum(weights.get(name, 1.0) for name in losses)
    return {name: weights.get(name, 1.0) / total / sum(one.targets) for name, one in losses.items()}


def _joined(losses: BySet, field: str, scales: Mapping[str, float]) -> Float64:
    return np.concatenate([scales[name] * np.array(getattr(one, field), np.float64) for name, one in losses.items()])
