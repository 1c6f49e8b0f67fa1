"""Write `report.json` and read it back; one whose `format` is newer than this module is refused."""

import json

from quad_tasks.report.model import Report

FORMAT = 1
"""Of the reports written here. 0: written before formats were numbered; all its keys are those of format 1."""


class UnknownFormat(ValueError):
    """A report was written by a newer version, in a format that is not known here."""


def parse_report(body: bytes | str) -> Report:
    """Read `report.json`.

    Raises:
        UnknownFormat: it was written in a newer format.
        ValueError: it is no report.
    """
    content = json.loads(body)
    written = content.get("format", 0) if isinstance(content, dict) else 0
    if written > FORMAT:
        raise UnknownFormat(
            f"report.json: expected a format up to {FORMAT}, found {written}: a newer quad wrote it, read it with that"
        )
    return Report.model_validate(content)


def dump_report(report: Report) -> bytes:
    """Write `report.json`: every field that was set, also to None."""
    body = report.model_dump(mode="json", exclude_unset=True)
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()
