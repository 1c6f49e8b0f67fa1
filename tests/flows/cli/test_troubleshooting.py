"""The table and the page agree: anchors exist, headings are found by their own words, and what they say is raised."""

import ast
import re
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from flows.cli.troubleshooting import ANCHORS, PAGE, find_help

ROOT = Path(__file__).resolve().parents[3]
HEADINGS = re.findall(r"^#+ (.*)$", (ROOT / PAGE).read_text(), re.MULTILINE)
MESSAGES = [(part, heading) for heading in HEADINGS for part in re.findall(r"`([^`]+)`", heading)]


def anchor(heading):
    return slugify(heading.replace("`", ""), "-")


def test_every_anchor_is_a_heading_of_the_page():
    assert set(ANCHORS.values()) <= {anchor(heading) for heading in HEADINGS}


@pytest.mark.parametrize(("part", "heading"), MESSAGES)
def test_a_heading_that_is_a_message_is_found_by_it(part, heading):
    assert find_help(f"key 'x' in here: {part} and so on") == f"{PAGE}#{anchor(heading)}"


def test_every_message_stands_in_the_code():
    """A kind of compression is filled in; the message of an interrupted command is put together of two texts."""
    own = ROOT / "flows" / "cli" / "troubleshooting.py"
    paths = [path for folder in ("flows", "quad_tasks") for path in (ROOT / folder).rglob("*.py") if path != own]
    texts = "\n".join(text for path in paths for text in literals(path))
    for part in ANCHORS:
        said = re.sub("^(expected|interrupted;) ", "", re.sub("whole (gzip|zstd|bz2|xz)", "whole {}", part))
        assert said in texts, part


def literals(path):
    """Return the texts in a module, {} in place of what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_a_message_of_no_heading_has_no_help():
    assert find_help("the disk went away") is None


def test_a_manifest_of_other_content_is_no_damage():
    """Both messages speak of a digest."""
    other = find_help("'k' in s: expected digest a, got b: other content is committed")
    damage = find_help("'k' in s: expected digest a, got b")
    assert (other, damage) == (f"{PAGE}#other-content-is-committed", f"{PAGE}#{ANCHORS['expected digest']}")
