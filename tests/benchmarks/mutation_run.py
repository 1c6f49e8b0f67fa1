"""Change one place of storage, selection or the bandit, run the tests that run it; count how many changes they find.

A sample of `--mutants` changes (`mutants.py`) is tried in a copy of the tree. First every test is run once, and the
lines that it runs are noted. For a changed line only the tests that run it are run, those of the module's own file
first, the fastest first, until one fails or `--most-seconds` of others' computing have passed. A line that is run at
import is tried with all tests that run any line of its file. Each try is a process forked from this one, which has
loaded the libraries but nothing of the product. What is known is kept in `--folder`: a run that is begun again goes on,
and with `--again` it tries those once more that no test has found, after tests were added.

Prints, and writes with `--out`: `tested`; `killed`: a test failed, or the change made an endless loop (`timeouts` of
them); `survivors`: no test failed; `equivalent`: survivors that change nothing that may be relied upon, with the reason
(`configs/equivalent_mutants.json`); `score`: killed / (tested - equivalent). A change that keeps the module from being
imported is not counted but replaced by the next (`invalid`).
"""

import argparse
import ast
import hashlib
import importlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).resolve().parent)]

from covering import Chosen, Covering, run_tests
from mutants import Mutant, count_places, draw

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "storage": (("quad_tasks/storage/*.py",), ("tests/storage/test_*.py",)),
    "core": (
        (
            "quad_tasks/core/selection/*.py",
            "quad_tasks/core/bandit.py",
            "quad_tasks/core/contextual.py",
            "quad_tasks/core/carry_over.py",
        ),
        ("tests/core/selection/test_*.py", "tests/core/test_bandit*.py", "tests/core/test_contextual.py"),
    ),
    "stages": (
        ("quad_tasks/stages/selection/*.py", "quad_tasks/stages/bandit/*.py"),
        ("tests/stages/selection/test_*.py", "tests/stages/bandit/test_*.py"),
    ),
}
"""Files that are changed, and tests, which are first run in one process, as they share what is slow to make."""
EQUIVALENT = Path(__file__).parent / "configs" / "equivalent_mutants.json"
INVALID, KILLED, SURVIVED = 97, 1, 0
LONGEST_S = 1800
"""Of one process, however busy the machine: one that waits for what never comes."""
SPARE_CPU_S = 60.0


def main() -> None:
    arguments = _arguments()
    tree, began = arguments.folder / "tree", time.monotonic()
    copy_tree(tree)
    covered = cover(arguments.folder, tree, arguments.groups)
    record = arguments.folder / "mutants.jsonl"
    known = {one["key"]: one for one in map(json.loads, record.read_text().splitlines())} if record.exists() else {}
    paths = [path for sources, _ in GROUPS.values() for path in _paths(tree, sources)]
    wanted = {path for group in arguments.groups for path in _paths(tree, GROUPS[group][0])}
    sample: list[dict[str, Any]] = []
    for mutant in draw(tree, paths, arguments.seed):
        if sum(one["outcome"] != "invalid" for one in sample) == arguments.mutants:
            break
        found = known.get(mutant.key)
        if mutant.path not in wanted:
            found = {**mutant.record(), "outcome": "not tried", "tests": 0}
        if found is None or (arguments.again and found["outcome"] == "survived"):
            if time.monotonic() - began > arguments.seconds:
                break
            found = {**mutant.record(), **attempt(tree, mutant, covered, arguments.most_seconds, arguments.folder)}
            print(json.dumps(found), file=sys.stderr, flush=True)
            with record.open("a") as file:
                file.write(json.dumps(found) + "\n")
        sample.append(found)
    from bench_selection import describe_environment  # no earlier: it loads the product

    command = shlex.join(["python", "tests/benchmarks/mutation_run.py", *sys.argv[1:]])
    body = {"environment": describe_environment(command), "seed": arguments.seed, "places": count_places(tree, paths)}
    body |= summarize(sample, json.loads(EQUIVALENT.read_text()))
    print(
        json.dumps({name: value for name, value in body.items() if name not in ("survivors", "equivalent")}, indent=1)
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def copy_tree(tree: Path) -> None:
    """Copy what git tracks, or would, compiled, so that a change touches nobody's files."""
    shutil.rmtree(tree, ignore_errors=True)
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(tree)], check=True)
    os.environ["PYTHONDONTWRITEBYTECODE"], os.environ["PYTHONPATH"] = "1", str(tree)
    sys.dont_write_bytecode = True


def cover(folder: Path, tree: Path, groups: Sequence[str]) -> dict[str, Any]:
    """Return seconds and lines of each test, by name: those noted before where no file that they ran has changed."""
    store = folder / "covering.json"
    noted: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {"libraries": [], "files": {}}
    files = {str(tree / path): path for sources, _ in GROUPS.values() for path in _paths(tree, sources)}
    for group in groups:
        patterns = GROUPS[group][1]
        warm(noted)
        changed = [test for test in _paths(tree, patterns) if not _is_as_noted(tree, noted["files"].get(test))]
        if not changed:
            continue
        found = folder / "found.json"
        found.unlink(missing_ok=True)

        def note(changed: list[str] = changed, found: Path = found) -> int:
            environ, before = dict(os.environ), set(sys.modules)
            plugin = Covering(files)
            run_tests(tree, changed, folder / "tmp", plugin)
            set_there = {key: value for key, value in os.environ.items() if environ.get(key) != value}
            libraries = [name for name in sys.modules if name not in before]
            found.write_text(json.dumps([plugin.tests, sorted(plugin.failed), libraries, set_there]))
            return 0

        code = in_child(tree, note, folder / "log", cpu_s=LONGEST_S)
        if code != 0 or not found.exists():
            sys.exit(f"tests of {group}: ended with {code}: see {folder / 'log'}")
        tests, failed, libraries, set_there = json.loads(found.read_text())
        print(
            f"{group}: {len(tests)} tests of {len(changed)} files; left out, as skipped or failed: {failed}",
            file=sys.stderr,
            flush=True,
        )
        for test in changed:
            own = {name: of for name, of in tests.items() if name.split("::")[0] == test}
            sources = {path for _, lines in own.values() for path in lines} | {test}
            noted["files"][test] = {"sources": {path: _sha256(tree / path) for path in sources}, "tests": own}
        noted["libraries"] += [name for name in libraries if name not in noted["libraries"]]
        noted["environ"] = noted.get("environ", {}) | set_there
        store.write_text(json.dumps(noted))
    warm(noted)
    return {name: test for of in noted["files"].values() for name, test in of["tests"].items()}


def _is_as_noted(tree: Path, noted: dict[str, Any] | None) -> bool:
    return noted is not None and all(_sha256(tree / path) == sha256 for path, sha256 in noted["sources"].items())


def warm(noted: dict[str, Any]) -> None:
    """Load the libraries that the tests load, and nothing of the product or its tests."""
    os.environ.update({key: value for key, value in noted.get("environ", {}).items() if key != "PYTEST_CURRENT_TEST"})
    ours = {
        path.stem for folder in ("tests", "tests/core", "tests/benchmarks") for path in (ROOT / folder).glob("*.py")
    }
    ours |= {"quad_tasks", "flows", "tests", "toy_plugin"}
    for name in noted["libraries"]:
        if name not in sys.modules and name.split(".")[0] not in ours and "pytest" not in name:
            with suppress(Exception):  # a part that is loaded only beside another
                importlib.import_module(name)


def attempt(tree: Path, mutant: Mutant, covered: dict[str, Any], most_s: float, folder: Path) -> dict[str, Any]:
    """Try a mutant; return its outcome, how many tests were there for it, and seconds."""
    chosen = choose(tree, mutant, covered, most_s)
    path = tree / mutant.path
    whole, began = path.read_bytes(), time.monotonic()
    module = mutant.path.removesuffix(".py").replace("/", ".")

    def run() -> int:
        try:
            importlib.import_module(module)
        except Exception:
            return INVALID
        for files, names in chosen:
            if run_tests(tree, files, folder / "tmp", Chosen(names), "-x") != 0:
                return KILLED
        return SURVIVED

    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
    try:
        path.write_text(mutant.source)
        spent = sum(covered[name][0] for _, names in chosen for name in names)
        code = in_child(tree, run, folder / "log", cpu_s=SPARE_CPU_S + 5 * spent)
    finally:
        path.write_bytes(whole)
    outcome = {INVALID: "invalid", SURVIVED: "survived", None: "timeout"}.get(code, "killed")
    tests = sum(len(names) for _, names in chosen)
    return {"outcome": outcome, "tests": tests, "seconds": round(time.monotonic() - began, 1)}


def choose(tree: Path, mutant: Mutant, covered: dict[str, Any], most_s: float) -> list[tuple[list[str], list[str]]]:
    """Choose the tests that run a mutant's line, of the module's own files, then of others: files and names of each."""
    lines = _statement((tree / mutant.path).read_text(), mutant.line)
    folder, _, name = mutant.path.removeprefix("quad_tasks/").rpartition("/")
    own = f"tests/{folder}/test_{name.removesuffix('.py')}"
    found: list[tuple[bool, bool, str, float, str]] = []  # short ones first, those of a file together
    for test, (seconds, by_path) in covered.items():
        if mutant.path in by_path and (lines is None or not lines.isdisjoint(by_path[mutant.path])):
            found.append((not test.startswith(own), seconds > 2, test.split("::")[0], seconds, test))
    groups: dict[bool, list[str]] = {}
    spent = 0.0
    for other, _, _, seconds, test in sorted(found):
        if spent <= most_s or not other:
            groups.setdefault(other, []).append(test)
            spent += seconds
    return [(sorted({name.split("::")[0] for name in names}), names) for _, names in sorted(groups.items())]


def _statement(source: str, line: int) -> set[int] | None:
    """Return the lines of the statement that a line is part of, without its body; None: it is run at import."""
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    if not any(_first_line(one.body[0]) <= line <= (one.end_lineno or 0) for one in functions):
        return None
    spans = (_span(node) for node in nodes if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)))
    return set(min((span for span in spans if line in span), key=len))


def _span(node: Any) -> range:
    body, first = getattr(node, "body", None), _first_line(node)
    return range(first, max(first, _first_line(body[0]) - 1 if body else node.end_lineno) + 1)


def _first_line(node: Any) -> int:
    lines = [one.lineno for one in getattr(node, "decorator_list", [])]
    return min([*lines, node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno])


def in_child(tree: Path, task: Callable[[], int], log: Path, cpu_s: float) -> int | None:
    """Run a task in a forked process at the head of a group of its own; return its exit code, None: it never ended."""
    pid = os.fork()
    if pid == 0:
        code = 98
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 5))
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(tree)
            sys.path[:] = [str(tree), *(one for one in sys.path if not Path(one or ".").resolve().is_relative_to(ROOT))]
            code = task()
        finally:
            os._exit(code)
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _end_group(pid)
            return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else _signalled(os.WTERMSIG(status))
        time.sleep(0.05)
    _end_group(pid)
    os.waitpid(pid, 0)
    return None


def _signalled(number: int) -> int | None:
    return None if number in (signal.SIGXCPU, signal.SIGKILL) else -number


def _end_group(pid: int) -> None:
    """End what a process has started and left."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def summarize(sample: list[dict[str, Any]], reasons: dict[str, str]) -> dict[str, Any]:
    """Count outcomes, and list what survived: with a reason as equivalent, otherwise as found by no test."""
    tested = [one for one in sample if one["outcome"] not in ("invalid", "not tried")]
    survived = [one for one in tested if one["outcome"] == "survived"]
    shown = [{name: one[name] for name in ("path", "line", "before", "after", "key", "tests")} for one in survived]
    equivalent = [{**one, "reason": reasons[one["key"]]} for one in shown if one["key"] in reasons]
    survivors = [one for one in shown if one["key"] not in reasons]
    found = len(tested) - len(survived)
    return {
        "tested": len(tested),
        "invalid": sum(one["outcome"] == "invalid" for one in sample),
        "not_tried": sum(one["outcome"] == "not tried" for one in sample),
        "killed": found,
        "timeouts": sum(one["outcome"] == "timeout" for one in tested),
        "score": round(found / max(1, len(tested) - len(equivalent)), 3),
        "score_without_leave": round(found / max(1, len(tested)), 3),
        "by_group": {name: _counts(tested, sources) for name, (sources, _) in GROUPS.items()},
        "survivors": survivors,
        "equivalent": equivalent,
    }


def _counts(tested: list[dict[str, Any]], patterns: Iterable[str]) -> dict[str, int]:
    own = [one for one in tested if any(Path(one["path"]).match(pattern) for pattern in patterns)]
    return {"tested": len(own), "killed": sum(one["outcome"] != "survived" for one in own)}


def _paths(tree: Path, patterns: Iterable[str]) -> list[str]:
    found = [path for pattern in patterns for path in sorted(tree.glob(pattern)) if path.name != "__init__.py"]
    return [path.relative_to(tree).as_posix() for path in found]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="of the sample, these")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/quad-mutants"), help="what is known, to go on from")
    parser.add_argument("--again", action="store_true", help="try those once more that no test has found")
    parser.add_argument("--most-seconds", type=float, default=10.0, help="of other files' tests for a mutant")
    parser.add_argument("--seconds", type=float, default=7200.0, help="begin nothing more after so long")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
