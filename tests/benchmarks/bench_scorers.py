"""How much influence does a budget of FLOPs buy by each scorer? The share of the achievable influence by scorer.

In the testbeds of `bench_selection.py`, some of each reference. A scorer is tried on 64 documents as a run does on its
pilot, in float32 and in bfloat16. Where it ranks as exact scoring does (.999), scores after the pilot are charged at
its cost, else at exact scoring's; the trial is paid in any case. A run is simulated for every budget, without a general
share, which ignores influence. Scores are the exact ones in float32, which what is accepted ranks alike.

    python tests/benchmarks/bench_scorers.py --out tests/benchmarks/results [--part PART ...] [--size SIZE]
        [--testbeds N]

Testbeds and selections are stored in the workspace: a run that was stopped goes on.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench_selection import REFERENCES, SEED, SIZES, configure, describe_environment
from prefect import flow

from flows.dask_cluster import dask_cluster
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.core.evaluation.statistics import interval
from quad_tasks.experiments.experiment import within
from quad_tasks.experiments.lab import simulation
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.scorer_cost import ScorerName, document_costs, find_scorer
from quad_tasks.experiments.lab.testbed import build_testbeds, open_testbed, prediction_features

SHARES = (0.05, 0.10, 0.15)
SCORERS: tuple[ScorerName, ...] = ("exact", "low_rank", "forward_only", "auto")
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Spent:
    """A simulated run.

    Attributes:
        used: scorer after the pilot.
        cost: of a score by it, as a share of an exact one's.
        spearman: its rank correlation with exact scoring on the pilot.
        scored_share: of the pool's documents.
        cost_share: FLOPs, as a share of scoring the whole pool exactly.
        influence_share: of the achievable influence.
    """

    used: str
    cost: float
    spearman: float
    scored_share: float
    cost_share: float
    influence_share: float


def spend(workspace: str, key: str, scorer: ScorerName, dtype: Literal["float32", "bfloat16"], share: float) -> Spent:
    """Spend a share of the FLOPs of scoring everything in a testbed by one scorer, on a worker."""
    testbed = open_testbed(workspace, key)
    found = find_scorer(workspace, key, share, scorer, dtype)
    pool = simulation.pool_of(testbed, prediction_features(testbed), cost_N=document_costs(testbed))
    rules = simulation.Rules(cost_share=share, scorer_cost=found.cost, trial_cost=found.trial_cost, general_share=0.0)
    selected = simulation.simulate_selection(testbed.per_token(), pool, rules)
    return Spent(
        used=found.scorer,
        cost=found.cost,
        spearman=found.spearman,
        scored_share=float(selected.scored.mean()),
        cost_share=selected.cost_share,
        influence_share=simulation.share_reached_in(testbed, selected.rows),
    )


@flow
def measure(workspace: str, parts: Sequence[str], size: str, testbeds: int) -> dict[str, list[dict[str, Any]]]:
    """Spend every share by every scorer in every testbed; return what came of it by part."""
    body: dict[str, list[dict[str, Any]]] = {}
    with dask_cluster(ComputeConfig()):
        for part in parts:
            keys = build_testbeds(workspace, configure(REFERENCES[part], SEED), SIZES[size], testbeds)
            items = [(workspace, *of) for of in itertools.product(keys, SCORERS, DTYPES, SHARES)]
            found = map_cached(spend, items, "spend", "runs")
            names = ("testbed", "scorer", "dtype", "share")
            body[part] = [
                dict(zip(names, item[1:], strict=True)) | asdict(one) for item, one in zip(items, found, strict=True)
            ]
    return body


def report(body: Mapping[str, Any]) -> str:
    """Lay out a row a scorer and precision, over all testbeds of a reference."""
    environment = body["environment"]
    lines = [
        f"**Share of the achievable influence by scorer**: `{environment['command']}`, {environment['date']}, "
        f"commit {environment['commit']}, {environment['machine']}.",
        "",
        "| reference | scorer | precision | scored by, at this cost | "
        + " | ".join(f"{share:.0%} of the FLOPs" for share in SHARES)
        + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in SHARES) + " |",
    ]
    for part, runs in body["parts"].items():
        for scorer, dtype in itertools.product(SCORERS, DTYPES):
            of = [run for run in runs if (run["scorer"], run["dtype"]) == (scorer, dtype)]
            used = ", ".join(sorted({f"{run['used']}, {run['cost']:.2f}" for run in of}))
            cells = [_cell([run for run in of if run["share"] == share]) for share in SHARES]
            lines.append(f"| {REFERENCES[part]} | `{scorer}` | {dtype} | {used} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    """Write the share of influence, and in brackets that of the documents scored."""
    scored = sum(run["scored_share"] for run in runs) / len(runs)
    reached = [run["influence_share"] for run in runs]
    mean = within(interval(reached)) if len(runs) > 1 else f"{reached[0]:.3f}"
    return f"{mean} ({scored:.1%})"


def main() -> None:
    """Measure, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of scorers.json and scorers.md")
    parser.add_argument("--part", nargs="+", choices=REFERENCES, default=["methods", "unlike"])
    parser.add_argument("--size", choices=SIZES, default="full", help="of a testbed")
    parser.add_argument("--testbeds", type=int, default=3, help="of each reference")
    parser.add_argument("--workspace", default="build/bench-selection", help="stores what was computed")
    arguments = parser.parse_args()
    parts = measure(arguments.workspace, arguments.part, arguments.size, arguments.testbeds)
    command = " ".join(["python", "tests/benchmarks/bench_scorers.py", *sys.argv[1:]])
    body = {"environment": describe_environment(command), "parts": parts}
    (arguments.out / "scorers.json").write_text(json.dumps(body) + "\n")
    (arguments.out / "scorers.md").write_text(report(body))


if __name__ == "__main__":
    main()
