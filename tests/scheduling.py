"""Which tests a quick run leaves out, and which worker runs which tests in what order.

A file's tests stay on one worker, as with `--dist loadfile`. Files that ask for the same expensive session fixture stay
together too, so that one worker builds it; whatever takes long is begun first, so that workers end together.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
TESTBED = "tiny_testbed"
SERVER = "prefect_server"
LEAKING = "leaking_run"
DEAR = {SERVER, TESTBED, LEAKING}
"""Session fixtures that a quick run does without."""
BENCHMARKS = "benchmarks"
"""The folder of which a quick run may leave out everything."""
SHARED = (SERVER, LEAKING, "small_run", TESTBED)
"""Session fixtures of many seconds each; a file is of the first that it asks for."""


class LoadFileOrFixture(LoadScopeScheduling):
    """Hands out files, and all files of a shared fixture as one."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Return the shared fixture that a test's file asks for, else the file."""
    return _scope_of_file(nodeid.partition("::")[0])


@cache
def _scope_of_file(file: str) -> str:
    text = (ROOT / file).read_text()
    return next((fixture for fixture in SHARED if re.search(rf"[(\s]{fixture}[,)]", text)), file)


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Order tests by their scope: with a slow test, of a shared fixture, then by the number of tests."""
    scopes = [scope_of(item.nodeid) for item in items]
    size = Counter(scopes)
    slow = {scope for item, scope in zip(items, scopes, strict=True) if item.get_closest_marker("slow")}
    order = sorted(set(scopes), key=lambda scope: (scope not in slow, scope not in SHARED, -size[scope], scope))
    rank = {scope: number for number, scope in enumerate(order)}
    return [item for _, item in sorted(zip(scopes, items, strict=True), key=lambda pair: rank[pair[0]])]


def quick(items: list[pytest.Function]) -> list[pytest.Function]:
    """Return the tests that are neither slow nor of a dear fixture; of a parametrized one the first and the last case.

    Raises:
        pytest.UsageError: a folder of tests would be left out as a whole.
    """
    cases: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if not item.get_closest_marker("slow") and DEAR.isdisjoint(item.fixturenames):
            cases.setdefault((item.path, item.originalname), []).append(item)
    kept = [item for found in cases.values() for item in (found[:1] + found[-1:] if len(found) > 1 else found)]
    asked = {str(item.path.parent) for item in items if item.path.parent.name != BENCHMARKS}
    if missing := asked - {str(item.path.parent) for item in kept}:
        raise pytest.UsageError(f"--quick: expected a test of every folder, left out all of {sorted(missing)}")
    chosen = {item.nodeid for item in kept}
    return [item for item in items if item.nodeid in chosen]
