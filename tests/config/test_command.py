"""A trainer's command line is refused before anything runs where it cannot work, and filled in without a shell."""

import pytest
from small_pool import small_config

from quad_tasks.config.command import check_command, fill_command
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError

FIELDS = "{selection} {checkpoint} {output} {tokens} {seed}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train {selection} {checkpoint}", r"training\.command: expected a command with \{output\} in it"),
        (f"train {FIELDS} {{device}}", r"training\.command: expected fields among .*found \{device\}"),
        (f"train '{FIELDS}", r"training\.command: expected a command line, found one that cannot be read"),
        (f"train {FIELDS} {{seed:{{x}}}}", r"training\.command: expected fields that can be filled in, found .*'x'"),
        (
            f"train {FIELDS} {{seed!z}}",
            r"training\.command: expected fields that can be filled in, found .*specifier z",
        ),
        (f"train {FIELDS} {{output:d}}", r"training\.command: expected fields that can be filled in, found .*'d'"),
        (f"train {FIELDS} {{", r"training\.command: expected a command line, found one that cannot be read"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_its_key(tmp_path, command, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(small_config(tmp_path, str(tmp_path), training__command=command), "command")


def test_a_field_may_say_how_its_kind_of_value_is_written():
    template = check_command("train {selection:>3} {checkpoint!r} {output} {tokens:,} {seed:03d}")
    values = {"selection": "s", "checkpoint": "c", "output": "o", "tokens": 1_000_000, "seed": 7}
    assert fill_command(template, values) == ["train", "  s", "'c'", "o", "1,000,000", "007"]


def test_a_value_is_one_argument_and_doubled_braces_are_the_trainer_s_own():
    template = check_command("train --to '{output}/here' {selection} {checkpoint} --json {{}} ';'")
    values = {"selection": "a b", "checkpoint": "$(c)", "output": "o 'p'"}
    assert fill_command(template, values) == ["train", "--to", "o 'p'/here", "a b", "$(c)", "--json", "{}", ";"]
