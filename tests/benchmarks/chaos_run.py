"""Let random faults strike small runs, one run after another, until so many have; compare each with a calm run.

Everything happens in this process, on one Dask worker of it, so that faults of one seed come in much the same places
(threads may change their order by a little). Prints, and writes with `--out`: `faults` by kind, `runs`, `attempts`,
`refused`: attempts that ended because an object was not as it had been committed; `taken_over`: pauses in which another
process drove the run, and `given_up`: attempts that ended when they found so; `unexplained`: attempts that ended by
anything else; `accepted`: damaged objects that neither a run nor its verification named; `identical`: runs whose rounds
and selection have the calm run's bytes. Exit code 1 if anything was accepted or unexplained, or a run is not identical.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import dask
from bench_selection import describe_environment
from chaos import Chaos, Outcome, draw_kinds, live
from distributed import Client, LocalCluster
from small_pool import digests_of, small_config, write_corpus

from flows.select_data import select_data
from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.runtime.prefect_runs import WITHOUT_PREFECT_VARIABLE

FAULTS_PER_RUN, GAP = 20, 60
QUIET = {"QUAD_QUIET": "1", WITHOUT_PREFECT_VARIABLE: "1"}


def main() -> None:
    arguments = _arguments()
    os.environ.update(QUIET)
    started = time.monotonic()
    with TemporaryDirectory(prefix="quad-chaos-") as folder:
        body = strike(Path(folder), arguments.faults, arguments.seed, arguments.seconds)
    command = shlex.join(["python", "tests/benchmarks/chaos_run.py", *sys.argv[1:]])
    body = {"environment": describe_environment(command), "seconds": round(time.monotonic() - started), **body}
    print(json.dumps(body, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")
    sys.exit(1 if body["accepted"] or body["unexplained"] or body["identical"] < body["runs"] else 0)


def strike(folder: Path, faults: int, seed: int, seconds: float) -> dict[str, Any]:
    """Let runs live through faults until `faults` have struck or `seconds` have passed."""
    began = time.monotonic()
    corpus = write_corpus(folder / "corpus")
    calm = parse_config(small_config(corpus, str(folder / "calm")), "calm")
    with small_cluster():
        select_data(calm)
    expected = digests_of(calm)
    generator = random.Random(seed)
    struck, outcomes, identical, operations, taken_over = Counter[str](), list[Outcome](), 0, 0, 0
    while struck.total() < faults and time.monotonic() - began < seconds:
        config = parse_config(small_config(corpus, str(folder / f"run-{len(outcomes)}")), "disturbed")
        kinds = draw_kinds(min(FAULTS_PER_RUN, faults - struck.total()), generator)
        chaos = Chaos(Path(config.workspace), generator, kinds, GAP)
        with small_cluster():
            outcomes.append(live(config, chaos))
        struck += chaos.struck
        operations += chaos.operations
        taken_over += chaos.taken_over
        verified = verify_run(config)
        identical += digests_of(config) == expected and bool(verified["balanced"] and verified["scored_once"])
        print(f"{struck.total()} faults, {len(outcomes)} runs", file=sys.stderr)
    return {
        "faults": dict(sorted(struck.items())),
        "total": struck.total(),
        "runs": len(outcomes),
        "identical": identical,
        "attempts": sum(one.attempts for one in outcomes),
        "operations": operations,
        "taken_over": taken_over,
        "given_up": sum(one.given_up for one in outcomes),
        "refused": sum(len(one.refused) for one in outcomes),
        "unexplained": [message for one in outcomes for message in one.unexplained],
        "accepted": [key for one in outcomes for key in one.accepted],
    }


@contextmanager
def small_cluster() -> Iterator[None]:
    """Open a cluster in this process: one for each run, so that no run waits for what another has left."""
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        yield


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no other run after so long")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
