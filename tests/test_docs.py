"""The README is held to the code: every command, configuration field and deployment, and its figures' commands."""

import re
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from flows.cli import app
from quad_tasks.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def config_rows(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Return the README's table rows for every field of a configuration model."""
    rows = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += config_rows(annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else f"`{_shown(field.default)}`"
            rows.append(f"| `{prefix}{name}` | {default} | {_choices(annotation)}{field.description} |")
    return rows


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else f"{value:_}" if isinstance(value, int) and value > 9999 else str(value)


def _choices(annotation: object) -> str:
    options = [a for part in (annotation, *typing.get_args(annotation)) for a in _literals(part)]
    return f"{', '.join(f'`{o}`' for o in dict.fromkeys(options))}. " if options else ""


def _literals(annotation: object) -> tuple[object, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def command_names() -> list[str]:
    group = get_command(app)
    names = []
    for name, command in group.commands.items():
        names += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    return names


def test_configuration_reference_is_the_models():
    missing = [row for row in config_rows() if row not in README]
    assert missing == [], "\n".join(config_rows())


@pytest.mark.parametrize("name", command_names())
def test_every_command_is_documented_with_an_example(name):
    assert f"quad {name}" in README


def test_every_command_helps_with_an_example():
    for name in command_names():
        command = get_command(app)
        for part in name.split():
            command = command.commands[part]
        assert f"Example: quad {name}" in command.help


def test_every_deployment_is_documented_and_its_entrypoint_is_a_flow():
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert f"`{deployment['name']}`" in README
        file, function = deployment["entrypoint"].split(":")
        parameter = "name: str" if function == "run_experiment" else "config: RunConfig"
        assert re.search(rf"@flow\(.*\)\ndef {function}\({parameter}", (ROOT / file).read_text())


def test_every_make_target_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_every_file_the_readme_names_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path
