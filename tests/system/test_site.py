"""README and site as a reader meets them: links lead somewhere, commands parse, examples run, configurations load."""

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from markdown.extensions.toc import slugify
from typer.main import get_command

import quad_tasks
from flows.cli.app import app
from quad_tasks.commands.keys import list_keys
from quad_tasks.commands.schema import configuration_schema
from quad_tasks.config.load import load_config, parse_config
from quad_tasks.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README_WORDS = 1500
LEAST = {"pool": {"inputs": ["x"]}, "reference": {"inputs": ["x"]}, "selection": {"budget_tokens": 1}}
"""What a part of a configuration needs beside itself."""


def blocks(language):
    """Return the blocks of one language with the page they stand on."""
    return [
        pytest.param(block, id=f"{name}-{number}")
        for name, text in TEXTS.items()
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    ]


def command_lines():
    """Return every line of a bash block that calls `quad`."""
    lines = {line for block in blocks("bash") for line in block.values[0].splitlines() if line.startswith("quad ")}
    return sorted(lines)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= README_WORDS


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """Every link, anchor, picture and included file exists: a warning ends the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "site").rglob("index.html"))) == len(TEXTS) - 1
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    loaded = {
        url for page in pages for url in re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:[^\"]+)", page)
    }
    assert loaded == set()


def test_the_command_reference_is_the_command_lines():
    command = [sys.executable, "-m", "typer", "flows.cli.app", "utils", "docs", "--name", "quad", "--title", "Commands"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert TEXTS["docs/commands.md"].strip() == done.stdout.strip(), "make docs"


def test_every_link_of_the_readme_leads_to_a_file_and_a_heading():
    for path, anchor in re.findall(r"\]\(([\w./-]+)(?:#([\w-]+))?\)", TEXTS["README.md"]):
        assert (ROOT / path).exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in {slugify(heading.replace("`", ""), "-") for heading in headings}, f"{path}#{anchor}"


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line):
    words = shlex.split(line, comments=True)[1:]
    command = get_command(app)
    context = command.make_context("quad", words[:1], resilient_parsing=True)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_parser(context).parse_args(words)
    overrides = [value for option, value in itertools.pairwise(words) if option == "--set"]
    parse_config(json.loads(json.dumps(LEAST)), line, overrides)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_configuration_loads(block):
    body = yaml.safe_load(block)
    parse_config(LEAST | body, "page")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_says_how_it_is_used(path):
    load_config(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), configuration_schema())
    assert path.read_text().startswith("# ")
    assert path.relative_to(ROOT).as_posix() in TEXTS["docs/examples.md"]


@pytest.mark.parametrize(
    ("claim", "settings"),
    [
        ("gain", []),
        ("exchange", ["training.frontier=[0,0.25,0.5]"]),
        ("conditional_loss", ["bandit.scorer=conditional_loss"]),
    ],
)
def test_a_claim_of_a_whole_run_is_the_published_configuration(claim, settings):
    published = load_config(ROOT / "tests" / "benchmarks" / "configs" / "lambada.yaml", settings)
    found = load_config(ROOT / "examples" / "claims" / f"{claim}.yaml")
    assert found.model_copy(update={"run": published.run}) == published


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_example_runs_alone(block, capsys):
    exec(compile(block, "page", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_examples_use_every_public_function():
    used = "\n".join(block.values[0] for block in blocks("python"))
    assert all(re.search(rf"\b{name}\b", used) for name in quad_tasks.__all__ if name[0].islower())


def test_every_key_that_is_named_exists():
    known = {key.key for key in list_keys()}
    sections = "|".join(name for name in RunConfig.model_fields)
    for name, text in TEXTS.items():
        if name == "docs/changes.md":
            continue
        for key in re.findall(rf"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)\b(?!\()", text):
            assert any(f"{one}.".startswith(f"{key}.") for one in known), f"{name}: {key}"


def test_every_file_that_is_named_exists():
    for name, text in TEXTS.items():
        for path in re.findall(r"`((?:quad_tasks|flows|tests|infra|docs|examples)/[\w./-]*)[`,; ]", text):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_every_concept_has_its_picture():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pages = {path.stem for path in (ROOT / "docs/concepts").glob("*.md")} - {"index"}
    assert set(pictures.PICTURES) == pages == {path.stem for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert all(f"pictures/{name}.svg" in TEXTS[f"docs/concepts/{name}.md"] for name in pages)
