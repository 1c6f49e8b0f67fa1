"""Processes that share a training: all end if one does, and none starts without a device of its own."""

import pytest
import torch
from process_calls import fail_in_second

from quad_tasks.runtime.processes import process_group
from quad_tasks.runtime.processes.child_process import ChildFailed
from quad_tasks.runtime.processes.process_group import run_in_group


@pytest.fixture(autouse=True)
def _helpers_are_found(monkeypatch, request):
    """The processes import what they call by its name."""
    root = request.config.rootpath
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'tests'}")


@pytest.mark.slow
def test_one_that_fails_ends_them_all_by_its_message():
    with pytest.raises(ChildFailed, match=r"compute\.training_processes, 2 processes on cpu") as failed:
        run_in_group(fail_in_second, "no such shard", 2, "cpu", lambda line: None)
    assert "no such shard" in str(failed.value)


def test_more_processes_than_devices_are_refused_before_they_start(monkeypatch):
    monkeypatch.setattr(process_group, "pick_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"expected as many CUDA devices as processes, 2, found 1"):
        run_in_group(fail_in_second, "", 2, "auto", lambda line: None)
