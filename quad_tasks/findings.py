"""What is done about findings (`core.diagnosis`): they are said once, and a run may be told to end at some of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quad_tasks.config import RunConfig
from quad_tasks.progress import notice

Findings = Sequence[Mapping[str, Any]]


class UnwantedFinding(RuntimeError):
    """A run has a finding its configuration does not accept."""


def announce_findings(where: str, findings: Findings, known: Iterable[str] = ()) -> None:
    """Say on the console what was found, and what to do, but for the signatures known before."""
    for finding in findings:
        if finding["signature"] not in known:
            notice(f"{where}: {describe_finding(finding)}")


def describe_finding(finding: Mapping[str, Any]) -> str:
    """Write a finding as one line: what was measured, and what to do."""
    measured = [
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in finding["evidence"].items()
    ]
    return f"{finding['signature']} ({finding['severity']}; {', '.join(measured)}): {finding['remedy']}"


def refuse_unwanted(config: RunConfig, findings: Findings) -> None:
    """End a run as failed where it has findings that `diagnosis.stop_on` lists.

    Raises:
        UnwantedFinding: it has; each is named with its remedy.
    """
    unwanted = [f for f in findings if f["signature"] in config.diagnosis.stop_on]
    if unwanted:
        named = "; ".join(f"{f['signature']} ({f['severity']}): {f['remedy']}" for f in unwanted)
        raise UnwantedFinding(f"run {config.run!r}: expected none of diagnosis.stop_on, found {named}")
