"""The experiment is a run: its numbers are the report's, its inputs lie in the workspace."""

import json
from dataclasses import replace

from experiments.conftest import TINY
from typer.testing import CliRunner

from flows.cli.app import EXPERIMENTS as NAMED
from flows.cli.app import app
from flows.run_experiment import EXPERIMENTS
from quad_tasks.config.model import FreshModelConfig, ModelConfig
from quad_tasks.experiments import end_to_end
from quad_tasks.experiments.lab.corpus_sample import read_inputs
from quad_tasks.storage.store import open_store

MODEL = ModelConfig(
    fresh=FreshModelConfig(
        vocabulary=300, width=16, layers=1, heads=2, key_value_heads=2, mlp_width=32, train_tokens=2000
    )
)


def test_the_command_names_every_experiment():
    for name in EXPERIMENTS:
        assert name in NAMED
    assert list(EXPERIMENTS) == NAMED.removesuffix(".").replace(" or ", ", ").split(", ")


def test_a_configured_pool_is_run_and_reported(tiny_config, dask_client, tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "SMALL", TINY)
    config = tmp_path / "config.yaml"
    settings = tiny_config.model_copy(update={"model": MODEL, "workspace": str(tmp_path / "workspace")})
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    command = ["experiment", "end-to-end", "--config", str(config), "--quick", "--quiet"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    body = json.loads(result.stdout)
    store = open_store(settings.workspace)
    report = json.loads(store.get(body["report"].replace("index.html", "report.json")))
    assert body["documents"] == report["pool"]["documents"] == TINY.documents
    assert body["reference_loss"]["selected"] == report["stages"][0]["selected"]["reference_loss_by_seed"]
    assert len(body["reference_loss"]["random"]) == end_to_end.SEEDS
    assert 0 < body["selected_tokens"] <= TINY.budget_tokens
    gain, claim = report["stages"][0]["gain"], body["shows"][0]
    assert (claim["measured"], claim["low"], claim["high"]) == (-gain["mean"], -gain["high"], -gain["low"])
    printed = CliRunner().invoke(app, command).stdout
    assert "What it shows" in printed


def test_a_run_is_named_by_all_that_determines_its_result(tiny_config, tmp_path):
    """A rerun goes on with it; what only says where it computes changes nothing, any other key makes another run."""
    texts = read_inputs(tiny_config, TINY)

    def name(config, size=TINY):
        settings = end_to_end._settings(str(tmp_path), config, texts, size)
        assert settings.pool.name == settings.run
        return settings.run

    cluster = tiny_config.compute.model_copy(update={"workers": 7})
    bandit = tiny_config.bandit.model_copy(update={"alpha": 0.5})
    training = tiny_config.training.model_copy(update={"learning_rate": 0.5})
    own = name(tiny_config)
    assert name(tiny_config) == name(tiny_config.model_copy(update={"compute": cluster})) == own
    changes = [{"bandit": bandit}, {"training": training}, {"seed": 9}, {"model": MODEL}]
    others = [name(tiny_config.model_copy(update=change)) for change in changes]
    others.append(name(tiny_config, replace(TINY, budget_tokens=200)))
    assert len({own, *others}) == 6
