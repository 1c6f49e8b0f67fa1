"""Announce findings (`core.evaluation.diagnosis`) once, and end a run at those it was told to stop on."""

import logging
from collections.abc import Container, Iterable

from quad_tasks.records import Finding
from quad_tasks.runtime.progress import notice


class UnwantedFinding(RuntimeError):
    """A run has a finding its configuration does not accept."""


def announce_findings(where: str, findings: Iterable[Finding], known: Container[str] = ()) -> None:
    """Say on the console, and as warnings in the run's log, what was found and what to do, but for what was known."""
    for finding in findings:
        if finding.signature not in known:
            notice(f"{where}: {describe_finding(finding)}", logging.WARNING)


def describe_finding(finding: Finding) -> str:
    """Write a finding as one line: what was measured, and what to do."""
    measured = [
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in finding.evidence.items()
    ]
    return f"{finding.signature} ({finding.severity}; {', '.join(measured)}): {finding.remedy}"


def refuse_unwanted(run: str, findings: Iterable[Finding], stop_on: Container[str]) -> None:
    """End a run as failed where it has findings that `diagnosis.stop_on` lists.

    Raises:
        UnwantedFinding: it has; each is named with its remedy.
    """
    unwanted = [finding for finding in findings if finding.signature in stop_on]
    if unwanted:
        named = "; ".join(f"{f.signature} ({f.severity}): {f.remedy}" for f in unwanted)
        raise UnwantedFinding(f"run {run!r}: expected none of diagnosis.stop_on, found {named}")
