"""The gain of one training over another, with an interval that covers, and trainings that may not be compared."""

import pytest

from quad_tasks.manifests.influence import TrainingInfo
from quad_tasks.manifests.run import DocumentLosses
from quad_tasks.stages.selection.paired_gain import UnequalTrainings, check_equal_steps, mean_loss, paired_gain


def losses(nats, targets):
    return {"reference": DocumentLosses(nats=tuple(nats), targets=tuple(targets))}


def test_the_gain_is_the_difference_of_losses_per_target():
    gain = paired_gain([losses([30.0, 50.0], [10, 30])], [losses([20.0, 44.0], [10, 30])], {})
    assert gain.mean == pytest.approx((80 - 64) / 40)
    assert gain.low < gain.mean < gain.high


def test_one_measured_document_gives_no_interval():
    assert paired_gain([losses([30.0], [10])] * 2, [losses([20.0], [10])] * 2, {}) is None


def test_sets_count_by_their_weights():
    def two(first, second):
        one = DocumentLosses(nats=(first, first), targets=(10, 10))
        return {"a": one, "b": DocumentLosses(nats=(second, second), targets=(40, 40))}

    assert mean_loss(two(10.0, 80.0), {"a": 3.0, "b": 1.0}) == pytest.approx((3 * 1.0 + 2.0) / 4)
    gain = paired_gain([two(10.0, 80.0)], [two(5.0, 80.0)], {"a": 3.0, "b": 1.0})
    assert gain.mean == pytest.approx(0.75 * 0.5)


def test_one_training_against_itself_gains_nothing():
    gain = paired_gain([losses([3.0, 5.0, 8.0], [1, 2, 4])], [losses([3.0, 5.0, 8.0], [1, 2, 4])], {})
    assert (gain.mean, gain.low, gain.high) == (0.0, 0.0, 0.0)


def steps(n):
    return TrainingInfo(steps=n, target_tokens=n, padded_tokens=n)


def test_trainings_whose_steps_differ_by_more_than_a_hundredth_are_not_compared():
    check_equal_steps([steps(200), steps(202)])
    with pytest.raises(UnequalTrainings, match="found 200 to 203"):
        check_equal_steps([steps(200), steps(203)])
    check_equal_steps([])
