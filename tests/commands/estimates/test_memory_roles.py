"""The memory of each role, worked by hand from a basis of round numbers, and what each grows with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dask.utils import parse_bytes
from small_pool import small_config

from quad_tasks.commands.estimates.hardware import worker_memory
from quad_tasks.commands.estimates.memory_roles import REGRESSION_BYTES, role_memory
from quad_tasks.commands.estimates.pieces import count_pieces
from quad_tasks.commands.estimates.probe import Rates, Shape, WorkerRates
from quad_tasks.commands.estimates.scoring_cost import Choosing
from quad_tasks.commands.estimates.stage_rows import Basis, Volumes
from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.flops import ModelSize
from quad_tasks.stages.selection.training_memory import PROCESS_BYTES

INFRA = Path(__file__).resolve().parents[3] / "infra"
SIZE = ModelSize(maps=0, reached=0, tracked=0, head=0, attention=0, attention_reached=0)
SHAPE = Shape(
    parameters=10**6, forward_flops=2e6, factor_values=10**6, tracked=10**6, bytes_per_token=4.0, dimension=128,
    width=128, covariance_bytes=10**6, factor_groups=1, activation_bytes=1000, size=SIZE,
)  # fmt: skip
RATES = Rates(*[1.0] * 8, WorkerRates(*[1.0] * 8))


def basis(tmp_path, documents, shards=1000, scored=0, budget=500, workers=64, arms=1000, shape=SHAPE) -> Basis:
    changes = {"clustering__arms": arms, "compute__workers": workers, "selection__budget_tokens": budget}
    config = parse_config(small_config(tmp_path, str(tmp_path), **changes), "roles")
    volumes = Volumes(documents, 1400 * documents, 500 * documents, 500.0, 0.5, 100, 10**4, 10**4)
    choosing = Choosing(500 * scored, 500 * scored, 10, 0.0, 1.0, 1.0, 0.1, None, 1.0)
    pieces = count_pieces(documents, 1400 * documents, shards, arms)
    return Basis(config, volumes, RATES, shape, 64.0, 1e-9, choosing, {}, pieces)


def test_the_driver_of_a_small_choice_holds_the_ranges_and_sizes_of_a_layout(tmp_path):
    """24 bytes a range in a bundle, 24 an arm in each of 256 tasks, 16 a coordinate of the sums of arms and parts."""
    planned = basis(tmp_path, 10**9, shards=10_000, arms=10_000)
    sums = (10_000 + planned.pieces.parts) * 128 * 16
    layout = 24 * planned.pieces.bundles * planned.pieces.ranges + 24 * 256 * 10_000 + sums
    assert layout > REGRESSION_BYTES
    assert role_memory(planned)["driver"] == PROCESS_BYTES + layout


def test_what_is_scored_and_chosen_adds_its_features_and_signatures(tmp_path):
    """Five of ten million documents were scored, one was chosen: (300 + 16 values) bytes each of the scored."""
    planned = basis(tmp_path, 10**7, scored=5 * 10**6, budget=500 * 10**6)
    scored = 5 * 10**6 * (300 + 16 * SHAPE.document_values)
    chosen = 10**6 * (800 + 4 * 128 + 4 * 128)
    assert role_memory(planned)["driver"] == PROCESS_BYTES + REGRESSION_BYTES + scored + chosen


def test_the_layout_of_many_small_files_costs_the_driver_what_one_of_few_large_ones_does(tmp_path):
    few, many = (role_memory(basis(tmp_path, 10**8, shards=n))["driver"] for n in (1000, 100_000))
    assert many == pytest.approx(few, rel=0.05)


def test_the_driver_of_a_billion_documents_takes_a_few_gigabytes(tmp_path):
    assert role_memory(basis(tmp_path, 10**9, shards=10_000, arms=10_000))["driver"] < 2 * 10**9


def test_the_scheduler_holds_a_window_of_tasks_however_many_documents_there_are(tmp_path):
    one, more = (role_memory(basis(tmp_path, n, shards=n // 10**5)) for n in (10**7, 10**8))
    assert more["scheduler"] < 2 * one["scheduler"] < 2**30
    wide = role_memory(basis(tmp_path, 10**7, shards=100, workers=1024))
    assert wide["scheduler"] > one["scheduler"]


def test_a_worker_holds_a_task_or_its_model(tmp_path):
    task = role_memory(basis(tmp_path, 10**8))["worker"]
    assert task == role_memory(basis(tmp_path, 10**9, shards=10_000))["worker"]  # whatever the pool's size
    assert PROCESS_BYTES + 3 * 65_536 * 1400 < task < 2**31
    large = replace(SHAPE, parameters=10**9)
    planned = basis(tmp_path, 10**8, shape=large)
    assert role_memory(planned)["worker"] == PROCESS_BYTES + max(worker_memory(planned.config, large).values())


def test_shipped_containers_have_the_memory_that_a_hundred_million_documents_take(tmp_path):
    """With what docs/scaling.md recommends, half a per cent scored, a fiftieth chosen, a model of 10^8 parameters."""
    large = replace(SHAPE, parameters=10**8, tracked=10**8, covariance_bytes=10**9, activation_bytes=10**6)
    given = {"shards": 1000, "scored": 500_000, "budget": 500 * 2_000_000, "arms": 6_000, "shape": large}
    needed = role_memory(basis(tmp_path, 10**8, **given))
    objects = list(yaml.safe_load_all((INFRA / "kubernetes" / "dask.yaml").read_text()))
    limits = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for one in objects
        if one["kind"] == "Deployment"
    }
    assert len(limits) == 4
    for name, memory in limits.items():
        assert needed["scheduler" if name.endswith("scheduler") else "worker"] < parse_bytes(memory), name
    job = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    assert needed["driver"] < parse_bytes(job["variables"]["properties"]["memory"]["default"])


@pytest.mark.parametrize("documents", [1, 50])
def test_a_tiny_pool_has_memory_too(tmp_path, documents):
    assert all(size > 0 for size in role_memory(basis(tmp_path, documents, shards=1, arms=2)).values())
