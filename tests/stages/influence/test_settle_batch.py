"""Tokens of a batch where they are `auto`: measured once, recorded, and kept to wherever the run goes on."""

from types import SimpleNamespace

import pytest
import torch
from small_pool import small_config, stored

from flows.select_data import select_data
from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.stages.influence import settle_batch
from quad_tasks.storage.store import open_store


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration whose batches are `auto`, with calls that run here and a lease that is held."""
    settings = {"model__batch_tokens": "auto", "model__window_tokens": 64}
    monkeypatch.setattr(settle_batch, "map_tasks", lambda call, items, *_, **__: [call(*item) for item in items])
    monkeypatch.setattr(settle_batch, "check_run_lease", lambda store, run: None)
    return parse_config(small_config(tmp_path, str(tmp_path / "workspace"), **settings), "small")


def _on(device, monkeypatch, tokens=4096):
    """Let the checkpoint lie on a device; return what is measured there."""
    measured = []
    model = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(settle_batch, "load_checkpoint", lambda *_: (model, None))
    monkeypatch.setattr(settle_batch, "find_blocks", lambda *_: [SimpleNamespace(shape=(10, 20))])
    monkeypatch.setattr(settle_batch, "covariance_bytes", lambda *_: 5000)
    monkeypatch.setattr(settle_batch, "measure_batch_tokens", lambda *given: measured.append(given[2:]) or tokens)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    return measured


def test_on_a_cpu_it_is_a_stated_number(config, monkeypatch):
    _on("cpu", monkeypatch)
    assert settle_batch.settle_batch.fn(open_store(config.workspace), config, "model").model_use().batch_tokens == 2048


def test_on_a_gpu_it_is_measured_once_and_a_resume_elsewhere_keeps_to_it(config, monkeypatch):
    store = open_store(config.workspace)
    measured = _on("cuda", monkeypatch)
    settled = settle_batch.settle_batch.fn(store, config, "model")
    assert settled.model.batch_tokens == settled.model_use().batch_tokens == 4096
    sharing = config.compute.workers
    assert measured == [(5000 + 800, 64, sharing)]  # covariances and a direction of 200 numbers
    record = stored(store, f"runs/{config.run}/batch.json")
    assert (record["batch_tokens"], record["device"]) == (4096, "a GPU")
    for device in ("cpu", "cuda"):
        _on(device, monkeypatch, tokens=128)
        assert settle_batch.settle_batch.fn(store, config, "model") == settled


def test_a_configured_number_is_left_as_it_is(config, monkeypatch):
    store, configured = open_store(config.workspace), config.with_batch_tokens(512)
    assert settle_batch.settle_batch.fn(store, configured, "model") is configured
    assert not store.exists(f"runs/{config.run}/batch.json")


@pytest.mark.parametrize(("sets", "expected"), [(1, 5800), (3, 7200)])
def test_what_is_kept_beside_a_batch_is_the_larger_of_fit_and_scoring(sets, expected):
    """Covariances and a direction of 800 bytes, or three of each set's."""
    assert settle_batch.kept_bytes(5000, 800, sets) == expected


@pytest.mark.slow
def test_a_run_whose_batches_are_to_be_measured_selects_as_one_with_the_number_does(dask_client, corpus, tmp_path):
    """On a CPU, with the number that is stated for it; both are whole by their own verification."""
    parts = {}
    for tokens in (2048, "auto"):
        settings = {"model__batch_tokens": tokens, "training__stages": 1, "training__frontier": []}
        config = parse_config(small_config(corpus, str(tmp_path / str(tokens)), **settings), "small")
        select_data(config)
        assert verify_run(config)["balanced"]
        manifest = stored(open_store(config.workspace), "runs/small/selection/manifest.json")
        parts[tokens] = [part["sha256"] for part in manifest["parts"]]
    assert parts["auto"] == parts[2048]
    assert stored(open_store(str(tmp_path / "auto")), "runs/small/batch.json")["batch_tokens"] == 2048
