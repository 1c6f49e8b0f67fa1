"""The command line: what it prints, its exit codes, one message for bad input and nothing left to trust."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from small_pool import small_config, topic_records, write_jsonl
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.terminal import session
from quad_tasks.runtime.run import list_runs, load_run
from quad_tasks.storage.store import open_store


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def config_file(corpus, tmp_path):
    """Write a run's configuration with changes and return its path."""

    def write(**changes: object) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(small_config(corpus, str(tmp_path / "workspace"), **changes)))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bandit.alhpa=1", r"config.yaml: bandit.alhpa: unknown key; did you mean alpha"),
        ("bandit.alpha=high", r"config.yaml: bandit.alpha: expected a valid number, .*found 'high'"),
        ("selection.budget_tokens=-5", r"config.yaml: selection.budget_tokens: expected greater than 0, found -5"),
        ("bandit.alpha=.inf", r"config.yaml: bandit.alpha: expected a finite number, found inf"),
        (
            "training.learning_rate=1e-12",
            r"config.yaml: training.learning_rate: expected greater than or equal to 0.00000001",
        ),
        (
            "training.learning_rate=50",
            r"config.yaml: training.learning_rate: expected less than or equal to 1, found 50",
        ),
        ("selection.budget_tokens", r"--set selection.budget_tokens: expected key=value"),
        ("workspace=s3://key:secret@bucket/x", r"config.yaml: workspace: expected a URI without credentials"),
        ("pool.inputs=zip://a::https://u:secret@h/b.zip", r"pool.inputs.0: expected a URI without credentials .*user"),
        ("pool.inputs=https://h/a.jsonl?X-Amz-Signature=secret", r"pool.inputs.0: .*found the parameter 'X-Amz-Sig"),
        ("reference.inputs=https://h/a.jsonl?sv=1&sig=secret", r"reference.inputs.0: .*found the parameter 'sig'"),
        ("model.source=https://ada:secret@h/model", r"model.source: expected a URI without credentials"),
        ("compute.dask_address=tls://ada:secret@h:8786", r"compute.dask_address: expected a URI without credentials"),
        ("run=../up", r"config.yaml: run: expected .*pattern.*found '../up'"),
    ],
)
def test_a_bad_configuration_is_one_message_naming_file_and_key(config_file, override, message):
    result = invoke("run", config_file(), "--set", override)
    assert result.exit_code == 2, result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert re.search(message, result.stderr)
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool__inputs": ["/nowhere/*.jsonl"]}, "/nowhere/*.jsonl"),
        ({"selection__budget_tokens": 10**9}, "selection.budget_tokens: expected at most the pool's"),
        ({"model__source": "/nowhere/model"}, "/nowhere/model: expected a causal language model"),
        ({"heldout__reference_domain": "harbor"}, "heldout.reference_domain: expected one of"),
    ],
)
def test_an_input_that_cannot_work_is_one_message_and_no_pool_version(
    prefect_server, dask_client, config_file, tmp_path, changes, message
):
    result = invoke("run", config_file(**changes), "--quiet")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not [key for key in open_store(str(tmp_path / "workspace")).list() if key.endswith("v0001/manifest.json")]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("pool", "pool.fields.text: expected a field that holds text, found none in 'text' (id, other)"),
        ("reference", "reference.inputs: expected documents"),
    ],
)
def test_inputs_without_a_usable_document_are_named(dask_client, config_file, tmp_path, which, message):
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"id": "a", "other": "no text"}])
    result = invoke("run", config_file(**{f"{which}__inputs": [str(empty)]}), "--quiet")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr


def test_an_unreadable_file_is_named(dask_client, config_file, tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 not gzip")
    result = invoke("run", config_file(pool__inputs=[str(tmp_path / "cut.jsonl.gz")]), "--quiet")
    assert result.exit_code == 2, result.stderr
    assert "cut.jsonl.gz" in result.stderr


def test_a_model_without_supported_blocks_is_named(dask_client, config_file, tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    from quad_tasks.core.lm.tokenizer import train_tokenizer

    texts = [str(record["text"]) for record in topic_records("harbour", 20, seed=9)]
    tokenizer = train_tokenizer(texts, 300)
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "bloom"
    )
    tokenizer.save_pretrained(tmp_path / "bloom")
    result = invoke("run", config_file(model__source=str(tmp_path / "bloom")), "--quiet")
    assert result.exit_code == 2, result.stderr
    assert "bloom" in result.stderr.lower()
    assert "supported" in result.stderr


def test_a_resume_takes_other_workers_but_no_other_configuration(small_run):
    for override, code in (("compute.workers=5", 0), ("bandit.alpha=0.123", 2), ("compute.workers=none", 2)):
        result = invoke("resume", "small", "--workspace", small_run.workspace, "--set", override)
        assert result.exit_code == code, result.stderr
    assert load_run(small_run.workspace, "small", ["compute.workers=5"]).compute.workers == 5


@pytest.mark.parametrize("command", [["doctor"], ["experiment", "bandit"]])
def test_what_a_command_would_ignore_is_refused(command):
    result = invoke(*command, "--set", "seed=1")
    assert result.exit_code == 2
    assert "--set seed=1: expected a configuration whose key it overrides" in result.stderr


def test_a_dry_run_prints_the_plan_and_spends_nothing(config_file, tmp_path, one_process):
    result = invoke("run", config_file(), "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert {stage["stage"] for stage in json.loads(result.stdout)["stages"]} >= {"model", "bandit", "train"}
    assert not (tmp_path / "workspace").exists()


def test_a_plan_of_a_larger_pool_says_memory_by_role_requests_and_advice(config_file, one_process):
    given = ("--documents", "1e8", "--workers", "64", "--device", "h100", "--price-per-hour", "100", "--quiet")
    result = invoke("plan", config_file(), *given)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "100,000,000 documents" in said
    assert re.search(r"memory of one process: driver [\d.]+\w?B, scheduler [\d.]+\w?B, worker [\d.]+\w?B", said)
    assert re.search(r"stage documents tokens FLOPs bytes requests time money", said)
    assert "advice: clustering.arms: about 5,774 suit" in said
    assert "this machine has" not in said


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--documents", "many", "--documents: expected a whole number above 0, such as 1e9, found 'many'"),
        ("--documents", "5", "--documents: expected at least the 182 of pool.inputs, its sample, found 5"),
    ],
)
def test_numbers_that_no_pool_has_are_refused_in_a_line(config_file, one_process, option, value, message):
    result = invoke("plan", config_file(), option, value, "--quiet")
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines() == [f"quad: {message}"]


def test_a_plan_needs_a_worker(config_file):
    result = invoke("plan", config_file(), "--workers", "0")
    assert result.exit_code == 2
    assert "'--workers'" in result.stderr


def test_init_writes_a_configuration_that_plans(corpus, tmp_path, one_process):
    out = str(tmp_path / "config.yaml")
    result = invoke("init", f"{corpus}/pool/*.jsonl", "--reference", f"{corpus}/reference/*.jsonl", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "bad records, which a run sets aside: 1 invalid_json" in result.stdout
    assert invoke("init", f"{corpus}/pool/*.jsonl", "--out", out).exit_code == 2
    planned = invoke("plan", out, "--price-per-hour", "2")
    assert planned.exit_code == 0, planned.stderr
    assert "money" in planned.stdout


def test_names_of_runs_complete_from_the_workspace(small_run, tmp_path):
    environment = {"_QUAD_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
    words = {"COMP_WORDS": f"quad status --workspace {small_run.workspace} s"}
    result = CliRunner().invoke(app, [], env=environment | words, prog_name="quad")
    assert "small" in result.stdout
    assert list_runs(str(tmp_path / "nowhere")) == []


def test_sigterm_ends_a_command_as_an_interrupt_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended, session(True, False):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "quad: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_keys_are_listed_and_an_unknown_one_names_the_sections():
    result = invoke("keys", "bandit", "--json")
    assert result.exit_code == 0, result.stderr
    rows = {row["key"]: row for row in json.loads(result.stdout)["keys"]}
    assert rows["bandit.alpha"]["range"] == "number ≥ 0 or null"
    assert all(key.startswith("bandit.") for key in rows)
    assert invoke("keys", "bandits").exit_code == 2


def test_a_pool_is_shown_with_what_was_set_aside_and_its_arms(small_run):
    where = ("--workspace", small_run.workspace)
    result = invoke("pool", "show", *where, "--arms", "3", "--json")
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert [version["version"] for version in shown["versions"]] == ["v0001"]
    assert {row["reason"]: row["documents"] for row in shown["set_aside"]}["invalid_json"] == 1
    assert sum(row["documents"] for row in shown["sources"]) == shown["versions"][-1]["documents"]
    assert len(shown["arms"]) == 3
    assert "invalid_json" in invoke("pool", "show", *where).stdout
    absent = invoke("pool", "show", "absent", *where)
    assert absent.exit_code == 2
    assert "quad pool refresh" in absent.stderr


@pytest.mark.slow
def test_a_run_may_be_made_in_parts_and_ends_as_a_whole_one(dask_client, config_file, small_run, tmp_path):
    path = config_file()
    fitted = json.loads(invoke("influence", "fit", path, "--json", "--quiet").stdout)
    assert fitted["direction"].startswith("factors/")
    chosen = json.loads(invoke("bandit", "run", path, "--json", "--quiet").stdout)
    assert chosen["stage"] == 0
    assert 0 < chosen["chosen_tokens"] <= chosen["budget_tokens"]
    assert json.loads(invoke("bandit", "run", path, "--json", "--quiet").stdout) == chosen
    trained = json.loads(invoke("train", path, "--json", "--quiet").stdout)["trained"]
    assert [row["trained_on"] for row in trained] == ["before", "selected-0", "random-0", "general-0.5"]
    assert json.loads(invoke("bandit", "run", path, "--json", "--quiet").stdout)["stage"] == 1
    whole = invoke("run", path, "--json", "--quiet")
    assert whole.exit_code == 0, whole.stderr
    ours, theirs = (
        json.loads(open_store(workspace).get("runs/small/selection/manifest.json"))["parts"]
        for workspace in (str(tmp_path / "workspace"), small_run.workspace)
    )
    assert ours == theirs


def test_a_plan_is_refused_before_what_makes_it_is_imported(tmp_path):
    """As a process: this one has imported all."""
    (tmp_path / "config.yaml").write_text(
        "run: r\nworkspace: s3://\npool: {inputs: [a.jsonl]}\nreference: {inputs: [a.jsonl]}\n"
        "selection: {budget_tokens: 1000}\n"
    )
    script = """
import sys
from typer.testing import CliRunner
from flows.cli.app import app
if __name__ == "__main__":
    result = CliRunner().invoke(app, ["plan", "config.yaml"])
    print(result.exit_code, result.output, "quad_tasks.commands.plan" in sys.modules, "torch" in sys.modules)
"""
    (tmp_path / "script.py").write_text(script)
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=280)
    assert done.stdout.startswith("2 quad: workspace: expected a bucket's name"), done.stdout + done.stderr
    assert done.stdout.split()[-2:] == ["False", "False"]
