"""How long work on several workers takes: a file keeps one of them busy, and the last piece ends a stage."""

from quad_tasks.commands.estimates.stage_rows import makespan, workers_busy


def test_a_file_keeps_one_worker_busy():
    assert workers_busy([8], 4) == 1
    assert workers_busy([1, 1, 1, 1], 4) == 4
    assert workers_busy([3, 1, 1, 1], 2) == 2  # 3 beside 1 + 1 + 1
    assert makespan([5, 5, 2], 2) == 7
