"""Kill `quad run` at random moments, resume it every time with another number of workers, compare with a calm run.

Each attempt is a process group of its own (driver, Dask workers, ephemeral Prefect server) ended by SIGKILL. Moments
are random counts of objects in the workspace, spread over all stages, each followed by a random short delay, so that
kills fall between a write and the manifest that would commit it as well as inside computations.

Prints `kills`; `identical`: the selection's parts and manifest and every round's manifest have the calm run's digests,
and all documents are accounted for; `rescored_rounds`: rounds begun again although they were committed (0: nothing
but the one uncommitted round is scored twice); `restarted_rounds`: uncommitted rounds begun again, at most one a kill.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))

from small_pool import small_config, stored, write_corpus

from quad_tasks.commands.verify import verify_run
from quad_tasks.runtime.run import load_run
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store

RUN = "small"
WORKERS = (1, 2, 3)
POLL_S = 0.03
LONGEST_DELAY_S = 0.3
PROGRESS = ("models/", "references/", "pools/", "factors/", f"runs/{RUN}/")
NO_PROGRESS = ("/lease/", "/times/", "/events")


@dataclass(frozen=True)
class Outcome:
    """What became of one workspace: kills survived, digests, and rounds begun again."""

    kills: int
    digests: dict[str, str]
    restarted_rounds: int
    rescored_rounds: int
    killed_after: list[str]


def main() -> None:
    arguments = _arguments()
    started = time.monotonic()
    with TemporaryDirectory(prefix="quad-crash-") as temporary:
        directory = Path(arguments.directory or temporary)
        write_corpus(directory / "corpus")
        generator = random.Random(arguments.seed)
        live(directory, "calm", directory / "corpus", [], generator, WORKERS)
        calm = directory / "calm" / "workspace"
        body = disturb(directory, directory / "corpus", calm, arguments.kills, generator, WORKERS)
    body["seconds"] = round(time.monotonic() - started)
    print(json.dumps(body, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in body.items()))
    if not (body["identical"] and body["rescored_rounds"] == 0):
        sys.exit(1)


def disturb(
    directory: Path, corpus: Path, calm: Path, kills: int, generator: random.Random, workers: Sequence[int]
) -> dict[str, Any]:
    """Kill runs so often, as many as it takes, and compare what they end as with a calm run's workspace."""
    expected, n_objects = digests_of(calm), len(_keys(calm))
    disturbed: list[Outcome] = []
    while (left := kills - sum(o.kills for o in disturbed)) > 0:
        moments = sorted(generator.sample(range(n_objects), min(left, n_objects)))
        disturbed.append(live(directory, f"disturbed-{len(disturbed)}", corpus, moments, generator, workers))
    return {
        "kills": sum(o.kills for o in disturbed),
        "identical": all(o.digests == expected for o in disturbed),
        "rescored_rounds": sum(o.rescored_rounds for o in disturbed),
        "restarted_rounds": sum(o.restarted_rounds for o in disturbed),
        "runs": len(disturbed),
        "rounds": sum("/round-" in key for key in expected),
        "killed_after": [key for o in disturbed for key in o.killed_after],
    }


def live(
    directory: Path, name: str, corpus: Path, moments: list[int], generator: random.Random, numbers: Sequence[int]
) -> Outcome:
    """Run to the end in a workspace of its own, killed at each moment, with these numbers of workers in turn."""
    workspace, logs = directory / name / "workspace", directory / name / "log"
    config = directory / name / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(yaml.safe_dump(small_config(corpus, str(workspace))))
    environment = {**os.environ, "PREFECT_HOME": str(directory / name / "prefect"), "QUAD_WITHOUT_PREFECT": ""}
    seen: set[str] = set()
    killed_after: list[str] = []
    workers = itertools.cycle(numbers)
    pending: Iterator[int] = iter(moments)
    while True:
        moment = next(pending, None)
        process = start(config, next(workers), environment, logs)
        last = watch(process, workspace, seen, moment)
        if process.poll() is None:
            time.sleep(generator.uniform(0, LONGEST_DELAY_S))
        if process.poll() is not None:
            break
        kill_group(process)
        killed_after.append(last)
    if process.returncode != 0:
        raise SystemExit(f"quad run ended with {process.returncode}:\n{logs.read_text()[-4000:]}")
    restarted, rescored = rounds_begun_again(Path(environment["PREFECT_HOME"]), workspace)
    digests = digests_of(workspace)
    return Outcome(len(killed_after), digests, restarted, rescored, killed_after)


def start(config: Path, workers: int, environment: dict[str, str], logs: Path) -> subprocess.Popen[bytes]:
    """Start `quad run` at the head of its own process group."""
    command = [str(Path(sys.executable).with_name("quad")), "run", str(config), "--set", f"compute.workers={workers}"]
    with logs.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def watch(process: subprocess.Popen[bytes], workspace: Path, seen: set[str], moment: int | None) -> str:
    """Wait until the workspace has held more than `moment` objects, or the process ended; return the last new key."""
    last = ""
    while process.poll() is None:
        for key in _keys(workspace) - seen:
            seen.add(key)
            last = key
        if moment is not None and len(seen) > moment:
            break
        time.sleep(POLL_S)
    seen |= _keys(workspace)
    return last


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the driver and all it started, and wait until every one of them is gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    if alive:
        raise SystemExit(f"expected the whole process group to be gone, found {alive}")


def digests_of(workspace: Path) -> dict[str, str]:
    """Return the digests of a finished run's rounds and selection, and its sum of documents."""
    store = open_store(str(workspace))
    config = load_run(str(workspace), RUN)
    selection = f"runs/{RUN}/selection"
    manifest = stored(store, f"{selection}/manifest.json")
    keys = [f"{selection}/{part['name']}" for part in manifest["parts"]]
    found = {key: hashlib.sha256(store.get(key)).hexdigest() for key in keys}
    found[selection] = manifest["digest"]
    for stage in range(config.training.stages):
        for committed in list_rounds(store, RUN, stage):
            key = f"runs/{RUN}/stage-{stage:02d}/round-{committed.round:05d}/manifest.json"
            found[key] = stored(store, key)["digest"]
    result = verify_run(config)
    found["verify"] = json.dumps({key: result[key] for key in ("balanced", "scored_once", "within_budget")})
    return found


def rounds_begun_again(prefect_home: Path, workspace: Path) -> tuple[int, int]:
    """Count from Prefect's own records the uncommitted rounds begun again, and the committed ones."""
    # A run killed between its creation and its naming, Prefect's next step, bears another name and has begun nothing.
    query = (
        "SELECT r.name, r.created FROM flow_run r JOIN flow f ON f.id = r.flow_id "
        "WHERE f.name = 'bandit-round' AND r.name LIKE 'stage % round %'"
    )
    with sqlite3.connect(prefect_home / "prefect.db") as database:
        begun = [(name, datetime.fromisoformat(created)) for name, created in database.execute(query)]
    times = Counter(name for name, _ in begun)
    late = sum(_at(created) > _committed_at(workspace, name) for name, created in begun)
    return sum(n - 1 for n in times.values()) - late, late


def _committed_at(workspace: Path, name: str) -> float:
    _, stage, _, number = name.split()
    manifest = f"runs/{RUN}/stage-{int(stage):02d}/round-{int(number):05d}/manifest.json"
    return (workspace / manifest).stat().st_mtime


def _at(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp() if moment.tzinfo is None else moment.timestamp()


def _keys(workspace: Path) -> set[str]:
    """List what a run has made so far; leases, times and events, which every attempt adds to, are left out."""
    found = (os.path.join(folder, name) for folder, _, names in os.walk(workspace) for name in names)
    keys = {os.path.relpath(path, workspace) for path in found if ".tmp-" not in path}
    return {key for key in keys if key.startswith(PROGRESS) and not any(part in key for part in NO_PROGRESS)}


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--directory", help="keep everything here instead of in a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
