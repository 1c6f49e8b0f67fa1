"""The command line of a trainer of the user's: a template whose fields a run fills in, checked before anything runs."""

import shlex
from collections.abc import Mapping
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator

FIELDS = ("selection", "checkpoint", "output", "tokens", "seed")
REQUIRED = FIELDS[:3]
TRIED = {"selection": "", "checkpoint": "", "output": "", "tokens": 1, "seed": 1}
"""Values of the kinds that a run fills in: three paths, two whole numbers."""


def check_command(template: str) -> str:
    """Check that a template is a command line with the fields a trainer cannot do without, and return it.

    Raises:
        ValueError: it is not, or it has a field that is not known.
    """
    try:
        parts = [Formatter().parse(part) for part in shlex.split(template)]
        fields = {field for part in parts for _, field, _, _ in part if field is not None}
    except ValueError as error:
        raise ValueError(f"a command line, found one that cannot be read ({error})") from None
    if unknown := sorted(fields.difference(FIELDS)):
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"fields among {known}, found {{{unknown[0]}}} (braces of its own are doubled)")
    if missing := [name for name in REQUIRED if name not in fields]:
        raise ValueError(f"a command with {{{missing[0]}}} in it, found none")
    try:
        fill_command(template, TRIED)
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"fields that can be filled in, found one that cannot ({error}): write plain {{seed}}"
        ) from None
    return template


Command = Annotated[str, AfterValidator(check_command)]


def fill_command(template: str, values: Mapping[str, object]) -> list[str]:
    """Split a template into arguments and fill in its fields: a value is one argument, whatever it holds."""
    return [part.format(**values) for part in shlex.split(template)]
