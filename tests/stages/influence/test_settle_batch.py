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
    """Let the checkpoint, of 1,000 parameters, lie on a device; return what is measured there."""
    measured = []
    model = SimpleNamespace(device=torch.device(device), parameters=lambda: [torch.empty(1000)])
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


@pytest.mark.parametrize("named", ["configuration", "environment"])
def test_workers_of_another_cluster_are_taken_to_have_a_gpu_each(config, monkeypatch, named):
    assert settle_batch.sharing_workers(config.compute) == config.compute.workers == 2
    if named == "environment":
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://elsewhere:1")
    changed = {"dask_address": "tcp://elsewhere:1"} if named == "configuration" else {}
    measured = _on("cuda", monkeypatch)
    elsewhere = config.model_copy(update={"compute": config.compute.model_copy(update=changed)})
    settle_batch.settle_batch.fn(open_store(config.workspace), elsewhere, "model")
    assert [sharing for *_, sharing in measured] == [1]


@pytest.mark.parametrize(
    ("scorer", "sets", "expected"),
    [("exact", 1, 5800), ("exact", 3, 7200), ("conditional_loss", 1, 8000), ("conditional_loss", 3, 16_000)],
)
def test_what_is_kept_beside_a_batch_is_the_larger_of_fit_and_scoring(config, scorer, sets, expected):
    """Covariances and a direction of 800 bytes, or three of each set's; else 1,000 parameters in float32, each copy."""
    [one] = config.reference.named_sets().values()
    reference = config.reference.model_copy(update={"sets": dict.fromkeys("abc"[:sets], one)})
    bandit = config.bandit.model_copy(update={"scorer": scorer})
    asked = config.model_copy(update={"reference": reference, "bandit": bandit})
    assert settle_batch.kept_bytes(asked, 1000, 5000, 800) == expected


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
