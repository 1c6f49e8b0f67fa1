"""How many trainings fit a limit, by hand; and that no more of them run at once."""

import pytest

from quad_tasks.core.lm.training import PASS_BYTES
from quad_tasks.stages.selection.training_memory import PROCESS_BYTES, training_bytes, trainings_at_once

BILLION = 10**9


def test_a_training_holds_weights_gradients_and_two_moments_beside_a_passs_activations():
    assert training_bytes(BILLION) == 16 * BILLION + PASS_BYTES
    assert training_bytes(BILLION, 5) == 16 * BILLION + 5


@pytest.mark.parametrize(("gigabytes", "expected"), [(1, 1), (38, 1), (39, 2), (55, 2), (56, 3)])
def test_what_driver_and_workers_leave_is_shared_by_trainings_one_at_least(gigabytes, expected):
    """Driver and eight workers take 5.66 GB, a training 16.54."""
    assert (round(9 * PROCESS_BYTES / 1e9, 2), round(training_bytes(BILLION) / 1e9, 2)) == (5.66, 16.54)
    assert trainings_at_once(gigabytes * BILLION, 8, 1, BILLION) == expected


def test_processes_that_share_a_training_hold_a_model_each():
    assert trainings_at_once(58 * BILLION, 8, 2, BILLION) == 1
    assert trainings_at_once(58 * BILLION, 8, 3, BILLION) == 1


def test_without_a_limit_nothing_is_held_back():
    assert trainings_at_once(None, 8, 1, BILLION) is None
