"""README and reference are held to the code: every command, configuration field, deployment and docstring."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from typer.main import get_command

import flows
import quad_tasks
from flows.cli.app import app
from quad_tasks.commands.keys import list_keys, render_reference
from quad_tasks.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in (ROOT / "docs").rglob("*.md")}


def command_names() -> list[str]:
    group = get_command(app)
    names = []
    for name, command in group.commands.items():
        names += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    return names


def test_configuration_reference_is_the_models():
    assert (ROOT / "docs" / "configuration.md").read_text() == render_reference(), "make docs"
    assert "(docs/configuration.md)" in README


def test_no_figure_is_still_to_come():
    measured = README.partition("## What we measured")[2].partition("\n## ")[0]
    assert measured
    for text in (measured, PAGES["results.md"]):
        assert re.findall(r"\b[A-Z]{2,}_[A-Z_]+\b", text) == []
    for text in (README, *PAGES.values()):
        assert re.findall(r"\b(?:TBD|TODO|FIXME|XXX)\b|\?\?\?", text) == []


@pytest.mark.parametrize("name", command_names())
def test_every_command_is_documented_with_an_example(name):
    page = (
        PAGES["commands.md"].partition(f"\n## `quad {name}`\n")[2]
        or PAGES["commands.md"].partition(f" `quad {name}`\n")[2]
    )
    assert f"Example: quad {name}" in page.partition("**Usage**")[0]


def test_every_command_helps_with_an_example():
    for name in command_names():
        command = get_command(app)
        for part in name.split():
            command = command.commands[part]
        assert f"Example: quad {name}" in command.help


def test_every_deployment_is_documented_and_its_entrypoint_is_a_flow():
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert f"`{deployment['name']}`" in PAGES["guides/scheduled.md"]
        file, function = deployment["entrypoint"].split(":")
        parameter = "name: str" if function == "run_experiment" else "config: RunConfig"
        assert re.search(rf"@flow\(.*\)\ndef {function}\(\s*{parameter}", (ROOT / file).read_text())


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in (README, *PAGES.values()) for name in re.findall(r"`?make ([a-z0-9-]+)`", text)}
    assert named <= targets


def test_the_results_hold_what_the_selection_benchmark_found():
    assert '--8<-- "tests/benchmarks/results/selection.md"' in PAGES["results.md"]


def test_every_configuration_field_says_what_it_means_and_what_it_may_be():
    """A number has a bound, a text a pattern, a length or a list of choices, unless any value has a meaning."""
    unbounded = [name for name, field in fields() if _is_number(field) and not _bounded(field)]
    assert unbounded == ["bandit.threshold"]  # influence per token, of any sign and size
    assert [name for name, field in fields() if not (field.description or "").endswith(".")] == []


def test_every_range_is_said_and_a_list_of_choices_is_whole():
    keys = {key.key: key for key in list_keys()}
    assert [name for name, key in keys.items() if not key.range or "any" in key.range.split()] == []
    assert keys["selection.general_share"].range == "number ≥ 0, ≤ 1"
    assert keys["bandit.alpha"].range == "number ≥ 0 or null"
    assert keys["compute.memory_limit"].range == "a size such as `10GB` or integer > 0 or null"
    assert keys["factors.attention"].range == "`joint`, `split`, `none`"
    assert keys["selection.budget_tokens"].default == "required"


def fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _is_number(field: FieldInfo) -> bool:
    return bool({int, float} & set(_types(field.annotation)))


def _types(annotation: object) -> Iterator[object]:
    yield annotation
    if typing.get_origin(annotation) is not typing.Literal:
        for part in typing.get_args(annotation):
            yield from _types(part)


def _bounded(field: FieldInfo) -> bool:
    schema = json.dumps(TypeAdapter(typing.Annotated[field.annotation, field]).json_schema())
    return "inimum" in schema or "aximum" in schema


def public_functions() -> list[object]:
    """Return every public function and method of the two packages."""
    found = []
    for package in (quad_tasks, flows):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, value in vars(module).items():
                value = getattr(value, "fn", value)  # a Prefect task's or flow's own function
                value = inspect.unwrap(value) if callable(value) else value
                if inspect.isfunction(value) and value.__module__ == info.name and not name.startswith("_"):
                    found.append(value)
    return found


def test_every_docstring_section_is_true_of_its_function():
    """Args name parameters and all of them; Raises name errors; who returns nothing has no Returns."""
    wrong = []
    for function in public_functions():
        parts = sections(inspect.getdoc(function) or "")
        parameters = set(inspect.signature(function).parameters)
        if "Args" in parts and set(parts["Args"]) != parameters:
            wrong.append(f"{function.__module__}.{function.__name__}: Args {set(parts['Args']) ^ parameters}")
        if "Returns" in parts and inspect.signature(function).return_annotation in (None, "None"):
            wrong.append(f"{function.__module__}.{function.__name__}: returns nothing")
        if not all(name[0].isupper() for name in parts.get("Raises", [])):
            wrong.append(f"{function.__module__}.{function.__name__}: Raises {parts['Raises']}")
    assert wrong == []


def test_core_and_storage_name_the_errors_they_raise():
    """Every error constructed in a public function's own body stands in its docstring, or in the one it points to."""
    missing = []
    for function in public_functions():
        if not function.__module__.startswith(("quad_tasks.core", "quad_tasks.storage", "quad_tasks.api")):
            continue
        docstring = inspect.getdoc(function) or ""
        named = set(sections(docstring).get("Raises", []))
        left = {name for name in raised(function) if name[0].isupper()} - named
        if left and "errors as `" not in docstring:
            missing.append(f"{function.__module__}.{function.__name__}: {left}")
    assert missing == []


def raised(function: object) -> set[str]:
    """Return the names of the errors that a function's own body constructs and raises."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    left, names = list(ast.iter_child_nodes(body)), set()
    while left:
        node = left.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func).rpartition(".")[2])
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return names


def sections(docstring: str) -> dict[str, list[str]]:
    """Return the names each section of a Google-style docstring lists."""
    parts: dict[str, list[str]] = {}
    current = ""
    for line in docstring.splitlines():
        if heading := re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes):", line):
            current = heading[1]
            parts[current] = []
        elif current and (entry := re.match(r"    (\w+)(?:, (\w+))*:", line)):
            parts[current].append(entry[1])
    return parts
