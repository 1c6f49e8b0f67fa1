"""Pytest plugins of the mutation run: which tests run which lines, and a run of chosen tests, the fastest first.

A test counts as running the lines of its fixtures too: a run that many tests share is made in one of them. Times are of
the process's own computing, which another process does not lengthen.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

Lines = set[tuple[str, int]]


@dataclass(eq=False)
class Covering:
    """Notes for each test that passes the lines of some files it runs, and how long it computes.

    Attributes:
        files: path from the root by absolute path, of the files whose lines are of interest.
        tests: seconds, with those of shared fixtures, and lines by path, by the test's name.
    """

    files: dict[str, str]
    tests: dict[str, tuple[float, dict[str, list[int]]]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    now: Lines = field(default_factory=set)
    of_fixture: dict[str, tuple[float, Lines]] = field(default_factory=dict)
    setup_s: float = 0.0

    def pytest_sessionstart(self) -> None:
        threading.settrace(self.enter)
        sys.settrace(self.enter)

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Follow a function only where its lines are of interest."""
        return self.line if frame.f_code.co_filename in self.files else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.now.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope not in ("session", "module"):
            yield
            return
        before, self.now, began = self.now, set(), time.process_time()
        yield
        spent = time.process_time() - began
        self.of_fixture[fixturedef.argname] = (spent, self.now)
        self.setup_s += spent
        self.now = self.now | before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now, self.setup_s, began = set(), 0.0, time.process_time()
        yield
        shared = [self.of_fixture[name] for name in getattr(item, "fixturenames", ()) if name in self.of_fixture]
        lines = self.now.union(*(of for _, of in shared))
        by_path: dict[str, list[int]] = {}
        for name, line in sorted(lines):
            by_path.setdefault(self.files[name], []).append(line)
        if item.nodeid not in self.failed:
            own = time.process_time() - began - self.setup_s
            self.tests[item.nodeid] = (own + sum(spent for spent, _ in shared), by_path)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Leaves only these tests, in this order."""

    names: Sequence[str]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        place = {name: number for number, name in enumerate(self.names)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])


def run_tests(tree: Path, files: Sequence[str], temporary: Path, plugin: object, *more: str) -> int:
    """Run test files with a plugin in this process; return pytest's exit code."""
    options = ["-q", "--assert=plain", "--timeout=0", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    places = [f"--rootdir={tree}", f"--basetemp={temporary}", "-m", "not slow and not gpu"]
    return int(pytest.main([*options, *places, *more, *files], plugins=[plugin]))
