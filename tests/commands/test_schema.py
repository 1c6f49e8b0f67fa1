"""The JSON Schema takes what the models take, and refuses what they refuse."""

import json

import jsonschema
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.schema import SCHEMA_FILE, configuration_schema, write_schema
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError

WHOLE = {"pool": {"inputs": ["a.jsonl"]}, "reference": {"inputs": ["b.jsonl"]}, "selection": {"budget_tokens": 10}}


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"selection": {"budget_tokens": "1_000_000"}},
        {"bandit": {"alpha": None, "max_scored_share": 0.5}},
        {"training": {"frontier": [0, 0.5]}},
        {"reference": {"sets": {"code": {"inputs": ["a"], "weight": 2}}}},
    ],
)
def test_what_the_models_take_the_schema_takes(validator, part):
    parse_config(WHOLE | part, "test")
    validator.validate(WHOLE | part)


@pytest.mark.parametrize(
    "part",
    [
        {"selecton": {}},
        {"selection": {"budget_tokens": 0}},
        {"selection": {"budget_tokens": "ten"}},
        {"bandit": {"preset": "papers"}},
        {"training": {"frontier": [2]}},
        {"pool": {"inputs": []}},
    ],
)
def test_what_the_models_refuse_the_schema_refuses(validator, part):
    with pytest.raises(ConfigError, match="test: "):
        parse_config(WHOLE | part, "test")
    assert not validator.is_valid(WHOLE | part)


def test_every_key_has_its_meaning_in_the_schema():
    properties = configuration_schema()["$defs"]["BanditConfig"]["properties"]
    assert all(part["description"] for part in properties.values())


def test_a_users_file_of_the_schemas_name_is_left_alone(tmp_path):
    (tmp_path / SCHEMA_FILE).write_text('{"title": "mine"}')
    assert write_schema(tmp_path) == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    assert (tmp_path / SCHEMA_FILE).read_text() == '{"title": "mine"}'
    (tmp_path / SCHEMA_FILE).unlink()
    write_schema(tmp_path)
    written = (tmp_path / SCHEMA_FILE).read_text()
    write_schema(tmp_path)
    assert json.loads(written) == configuration_schema()
