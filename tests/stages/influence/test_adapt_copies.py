"""A run by the conditional loss: no factors, a copy of the checkpoint, scores worked anew from both models' losses."""

from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch
from small_pool import small_config

from flows.select_data import select_data
from quad_tasks.commands.verify import DamagedRun, verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.report.report_json import parse_report
from quad_tasks.runtime.checkpoints import read_checkpoint
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_scores
from quad_tasks.stages.influence.fit_direction import read_direction
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import open_store


@pytest.fixture(scope="module")
def config(dask_client, corpus, tmp_path_factory):
    """A finished run of two stages."""
    workspace = str(tmp_path_factory.mktemp("conditional"))
    settings = {"bandit__scorer": "conditional_loss", "training__stages": 2, "training__refit": "stage"}
    config = parse_config(small_config(corpus, workspace, **settings), "conditional")
    select_data(config)
    return config


def directions(config):
    store = open_store(config.workspace)
    return [read_direction(store, rounds.read_round(store, config.run, stage, 0).info.direction) for stage in (0, 1)]


def test_scores_are_the_checkpoints_losses_less_the_copys_by_transformers_own(config):
    store, made = open_store(config.workspace), directions(config)[0]
    first = rounds.read_round(store, config.run, 0, 0)
    scores = rounds.read_round_table(store, first, "scores")
    texts = read_positions(store, pinned_pool(store, config.run), scores["position"].to_numpy(), ["text"])["text"]
    keys = [made.checkpoint, *made.adapted.values()]
    models = [read_checkpoint(store, key, "float32", "cpu") for key in keys]
    window = config.model.window_tokens
    documents = encode(models[0][1], texts.to_pylist())
    for ids, influence in zip(documents, scores["influence"].to_pylist(), strict=True):
        tensor = torch.tensor([ids[:window]])
        with torch.no_grad():
            losses = [float(model(input_ids=tensor, labels=tensor).loss) for model, _ in models]
        if len(ids) <= window:
            assert influence == pytest.approx(losses[0] - losses[1], abs=2e-5)
    assert sum(len(ids) <= window for ids in documents) >= 4


def test_nothing_was_fitted_and_every_stage_has_a_copy_of_its_own_checkpoint(config):
    made = directions(config)
    assert [(one.factors, one.sha256, one.damping_scale) for one in made] == [(None, None, None)] * 2
    assert made[0].checkpoint != made[1].checkpoint
    assert set(made[0].adapted.values()).isdisjoint(made[1].adapted.values())
    assert not list(Path(config.workspace).rglob("factors.safetensors"))


def test_pilot_and_rounds_are_scored_and_charged_by_two_forward_passes(config):
    store = open_store(config.workspace)
    infos = [one.info for stage in (0, 1) for one in rounds.list_rounds(store, config.run, stage)]
    assert {info.scorer["scorer"] for info in infos} == {"conditional_loss"}
    assert all(info.calibration is None for info in infos)
    report = parse_report(store.get(f"runs/{config.run}/report/report.json"))
    assert all("adapted to the reference" in (stage.scored_by or "") for stage in report.stages)
    assert len(read_scores(store, config.run, 2)) > 20


def test_documents_like_the_reference_are_adapted_to_most(config):
    scores = read_scores(open_store(config.workspace), config.run, 1)
    means = scores.group_by("source").aggregate([("influence", "mean")])
    best = means["source"][pc.index(means["influence_mean"], pc.max(means["influence_mean"])).as_py()].as_py()
    assert best == "harbour"


def test_the_run_is_verified_and_a_damaged_copy_is_named(config):
    assert verify_run(config)["balanced"]
    key = next(iter(directions(config)[1].adapted.values()))
    path = Path(config.workspace, key, "model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedRun, match=f"{key}/model.safetensors"):
        verify_run(config)
    path.write_bytes(whole)
