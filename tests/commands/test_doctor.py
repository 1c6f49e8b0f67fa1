"""`quad doctor` prints a line a check; the same checks refuse what a run could not make a result of."""

import json

import pytest
import yaml
from small_pool import small_config, topic_records, write_jsonl
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.doctor import _checks, _patterns, check_budget, check_reference, examine, refuse_unfit
from quad_tasks.commands.input_sample import Sample
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.lm.model import ModelError
from quad_tasks.storage.input_documents import InputError

ALIKE = [{"id": str(i), "text": "the same words"} for i in range(5)]


@pytest.fixture
def config(corpus, tmp_path):
    def make(**changes: object):
        return parse_config(small_config(corpus, str(tmp_path / "workspace"), **changes), "test")

    return make


def test_a_sound_configuration_passes_every_check_and_leaves_nothing(config, tmp_path):
    rows = examine(config())
    assert [row["check"] for row in rows if not row["ok"]] == []
    found = {row["check"]: row["found"] for row in rows}
    assert found["pool"] == "182 documents in 3 files, 2 to set aside"
    assert found["budget"] == "1,500 tokens over training.stages = 2, 1 optimizer steps a stage"
    assert not (tmp_path / "workspace").exists()


def test_without_a_configuration_the_machine_alone_is_examined():
    assert [row["check"] for row in examine(None)] == ["working directory", "home", "temporary files", "Prefect"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pool__inputs": ["/nowhere/*.jsonl"]}, InputError, r"/nowhere/\*\.jsonl"),
        ({"pool__fields": {"text": "body"}}, ConfigError, r"pool\.fields\.text: .*found none in 'body'"),
        ({"model__source": "/nowhere/model"}, ModelError, "/nowhere/model: expected a causal language model"),
        ({"heldout__reference_domain": "harbor"}, ConfigError, r"heldout\.reference_domain: expected one of"),
        (
            {"selection__budget_tokens": 1},
            ConfigError,
            "expected at least one document.s tokens, found 1 over",
        ),
        (
            {"selection__budget_tokens": 900},
            ConfigError,
            r"one optimizer step of .*batch_tokens = 512, found 900",
        ),
        ({"compute__device": "cuda"}, ConfigError, r"compute\.device: expected a GPU"),
    ],
)
def test_what_cannot_give_a_result_is_refused_with_its_key(config, monkeypatch, changes, error, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(error, match=message):
        refuse_unfit(config(**changes))


def test_documents_that_are_all_alike_are_refused(config, tmp_path):
    uri = str(write_jsonl(tmp_path / "alike.jsonl", ALIKE))
    with pytest.raises(ConfigError, match=r"pool\.inputs: expected documents that differ, found a single text"):
        refuse_unfit(config(pool__inputs=[uri]))


def test_of_a_part_of_the_files_documents_are_estimated(config, tmp_path):
    for i in range(60):
        write_jsonl(tmp_path / "many" / f"{i}.jsonl", topic_records("kitchen", 10, seed=i))
    many = config(pool__inputs=[f"{tmp_path}/many/*.jsonl"])
    assert dict(_checks(many))["pool"]() == "about 600 documents in 60 files"


def test_a_budget_is_refused_for_its_documents_only_where_all_were_looked_at(config):
    long = [{"text": "word " * 2000 + str(i)} for i in range(5)]  # of 1,250 tokens and more
    alike = [{"text": "the same words"}] * 5
    for records, message in ((long, "at least one document.s tokens"), (alike, "found a single text")):
        with pytest.raises(ConfigError, match=message):
            check_budget(config(), Sample(records=records, documents=5))
        unseen = (Sample(records=records, documents=500, exact=False), Sample(records=records, documents=10, every=2))
        assert {check_budget(config(), pool) for pool in unseen} == {
            "1,500 tokens over training.stages = 2, 1 optimizer steps a stage"
        }


def test_what_is_wrong_with_a_reference_set_stands_under_its_own_key(config, corpus, tmp_path):
    short = str(write_jsonl(tmp_path / "short.jsonl", [{"id": str(i), "text": "a"} for i in range(9)]))
    sets = {"good": {"inputs": [f"{corpus}/reference/*.jsonl"]}, "short": {"inputs": [short]}}
    several = config(reference={"sets": sets}, heldout={"overlap_words": None})
    assert set(_patterns(several)) >= {"reference.sets.good.inputs", "reference.sets.short.inputs"}
    with pytest.raises(
        ConfigError, match=r"reference\.sets\.short\.inputs: expected a measured document of two tokens"
    ):
        check_reference(several)
    with pytest.raises(ConfigError, match=r"reference\.inputs: expected a measured document of two tokens or more"):
        check_reference(config(reference={"inputs": [short]}, heldout={"overlap_words": None}))


def test_a_domain_without_a_token_to_predict_is_named(config, corpus, tmp_path):
    short = str(write_jsonl(tmp_path / "short.jsonl", [{"id": "s", "text": "a", "domain": "tiny"}]))
    inputs = [f"{corpus}/heldout/*.jsonl", short]
    with pytest.raises(
        ConfigError, match=r"heldout\.inputs: expected a measured document of two tokens or more in 'tiny'"
    ):
        refuse_unfit(config(heldout__inputs=inputs))


def test_a_reference_of_which_one_document_is_measured_is_said_to_give_no_interval(config, tmp_path):
    """Of seven documents a fifth is one."""
    few = str(write_jsonl(tmp_path / "few.jsonl", topic_records("harbour", 7, seed=2)))
    own = config(reference__inputs=[few], heldout__reference_domain=None)
    assert check_reference(own).startswith("6 documents for the direction, 1 measured (one document gives the gain no")
    assert "interval" not in check_reference(config(heldout__reference_domain=None))


def test_a_run_that_has_begun_needs_its_inputs_no_more(small_run, tmp_path):
    gone = small_run.pool.model_copy(update={"inputs": (f"{tmp_path}/gone.jsonl",)})
    refuse_unfit(small_run.model_copy(update={"pool": gone}))
    with pytest.raises(InputError, match=r"gone\.jsonl"):
        refuse_unfit(small_run.model_copy(update={"pool": gone, "run": "another"}))


@pytest.mark.parametrize("command", [["doctor"], ["run"], ["run", "--dry-run"], ["plan"]])
def test_every_command_that_begins_a_run_refuses_alike(corpus, tmp_path, command):
    body = small_config(corpus, str(tmp_path / "workspace"), model__source=str(tmp_path / "no-model"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(body))
    result = CliRunner().invoke(app, [command[0], str(path), *command[1:]])
    assert result.exit_code == 2, result.output
    assert f"{tmp_path}/no-model: expected a causal language model, found no such folder" in result.output
    assert "Traceback" not in result.output


def test_doctor_prints_a_line_a_check_or_json(corpus, tmp_path):
    write_jsonl(tmp_path / "pool.jsonl", topic_records("kitchen", 3, seed=0))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(corpus, str(tmp_path / "w"), pool__inputs=[f"{tmp_path}/none"])))
    shown = CliRunner().invoke(app, ["doctor", str(path)])
    assert shown.exit_code == 2
    lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    assert ["pool", "WRONG"] in [line[:2] for line in lines]
    assert ["workspace", "ok"] in [line[:2] for line in lines]
    assert ["budget", "WRONG", "not looked at: see pool"] in lines
    rows = json.loads(CliRunner().invoke(app, ["doctor", str(path), "--json"]).stdout)["checks"]
    assert len(rows) == len(lines) == 12
