"""Damage every file of a finished small run, each in four ways, and ask `quad verify` each time.

The ways: `flip` one bit in the middle, `cut` the second half, the file is `gone`, and `swap`: its bytes change places
with those of another file of its kind, in the same folder or the same place of another stage, round or run (a run over
the same pool with another seed lies beside it). Files that no manifest names are listed as `derived`, with how they
come again.

Prints, and writes with `--out`: `files` of the run and what it rests on; `damages` done; `found`: verification refused;
`named`: and its message names the file; `missed`: key and way of damages that it accepted. Exit code 1 if it missed
any.
"""

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from bench_selection import describe_environment
from chaos_run import QUIET, small_cluster
from small_pool import small_config, write_corpus

from flows.select_data import select_data
from quad_tasks.commands.verify import DERIVED, verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.storage.errors import StorageError

RUN, OTHER = "small", "other"
WAYS = ("flip", "cut", "gone", "swap")


def main() -> None:
    arguments = _arguments()
    os.environ.update(QUIET)
    began = time.monotonic()
    with TemporaryDirectory(prefix="quad-damage-") as folder:
        body = damage_all(*finish_runs(Path(folder)))
    command = shlex.join(["python", "tests/benchmarks/damage_files.py", *sys.argv[1:]])
    body = {"environment": describe_environment(command), "seconds": round(time.monotonic() - began), **body}
    print(json.dumps(body, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")
    sys.exit(1 if body["missed"] else 0)


def finish_runs(folder: Path) -> tuple[RunConfig, Path, list[str]]:
    """Finish two runs over one pool; return the first one's configuration, the workspace and what stood there then."""
    corpus, workspace = write_corpus(folder / "corpus"), folder / "workspace"
    config, other = (
        parse_config(small_config(corpus, str(workspace), run=run, seed=seed), run)
        for run, seed in ((RUN, 0), (OTHER, 1))
    )
    with small_cluster():
        select_data(config)
    own = _keys(workspace)
    with small_cluster():
        select_data(other)
    return config, workspace, own


def damage_all(config: RunConfig, workspace: Path, own: list[str]) -> dict[str, Any]:
    """Damage each file of a run's own in each way, one at a time, and put it back."""
    verify_run(config)
    keys = _keys(workspace)
    derived = {key: reason for key in own if (reason := _derived(key))}
    files = [key for key in own if key not in derived]
    done, found, named = Counter[str](), Counter[str](), Counter[str]()
    missed: list[tuple[str, str]] = []
    for key in files:
        path = workspace / key
        for way in WAYS:
            sibling = _sibling(key, keys, workspace) if way == "swap" else None
            whole = {one: one.read_bytes() for one in (path, sibling) if one}
            if not damage(path, way, sibling):
                continue
            message = refusal(config)
            for one, data in whole.items():
                one.write_bytes(data)
            done[way] += 1
            found[way] += message is not None
            named[way] += key in (message or "")
            missed += [(key, way)] if message is None else []
    verify_run(config)
    return {
        "files": len(files),
        "damages": dict(done),
        "found": dict(found),
        "named": dict(named),
        "missed": missed,
        "derived": {reason: sum(one == reason for one in derived.values()) for reason in sorted(set(derived.values()))},
    }


def damage(path: Path, way: str, sibling: Path | None) -> bool:
    """Damage a file; False where it cannot be in that way: it is empty, or has no other of its kind."""
    data = path.read_bytes()
    if way == "gone":
        path.unlink()
        return True
    if way == "swap":
        if sibling is None:
            return False
        path.write_bytes(sibling.read_bytes())
        sibling.write_bytes(data)
        return True
    middle = len(data) // 2
    path.write_bytes(
        data[:middle] + (bytes([data[middle] ^ 4]) + data[middle + 1 :] if way == "flip" and data else b"")
    )
    return bool(data)


def refusal(config: RunConfig) -> str | None:
    """Verify; return the message it refused with, None: it accepted."""
    try:
        verify_run(config)
    except StorageError as error:
        return str(error)
    return None


def _sibling(key: str, keys: list[str], workspace: Path) -> Path | None:
    """Return a file whose key differs in numbers, digests or the run's name alone, and whose bytes differ."""
    data = (workspace / key).read_bytes()
    of_kind = (one for one in keys if one != key and _kind(one) == _kind(key))
    return next((workspace / one for one in of_kind if (workspace / one).read_bytes() != data), None)


def _kind(key: str) -> str:
    return re.sub(r"\d+|[0-9a-f]{8,}", "#", key.replace(f"runs/{OTHER}/", f"runs/{RUN}/"))


def _keys(workspace: Path) -> list[str]:
    return sorted(path.relative_to(workspace).as_posix() for path in workspace.rglob("*") if path.is_file())


def _derived(key: str) -> str | None:
    parts = key.split("/")
    return next((f"{name}: {how}" for name, how in DERIVED.items() if name in parts), None)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
