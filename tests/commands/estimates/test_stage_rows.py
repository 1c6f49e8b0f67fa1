"""How long work on several workers takes: a file keeps one of them busy, and the last piece ends a stage."""

from types import SimpleNamespace

from small_pool import small_config

from quad_tasks.commands.estimates.probe import Rates, WorkerRates
from quad_tasks.commands.estimates.stage_rows import Volumes, makespan, one_process_seconds, workers_busy
from quad_tasks.config.load import parse_config


def test_a_file_keeps_one_worker_busy():
    assert workers_busy([8], 4) == 1
    assert workers_busy([1, 1, 1, 1], 4) == 4
    assert workers_busy([3, 1, 1, 1], 2) == 2  # 3 beside 1 + 1 + 1
    assert makespan([5, 5, 2], 2) == 7


def test_a_checkpoint_is_prepared_in_the_time_it_took_to_load_here(tmp_path):
    """A GGUF file of 135 million parameters takes half a minute, which no worker shares."""
    rates = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 34.0, 1.0, WorkerRates(*[1.0] * 8))
    volumes = Volumes(1000, 10**6, 250_000, 250.0, 0.5, 100, 10**4, 10**4)
    config = parse_config(small_config(tmp_path, str(tmp_path), model__source="model.gguf"), "plan")
    shape = SimpleNamespace(dimension=128, factor_groups=2)
    assert one_process_seconds(config, volumes, rates, shape)["model"] == 34.0
