"""Does Quad choose better than what people would use instead, on equal tokens from the same checkpoint?

The experiments "diversity" (ten other ways to choose, trained and measured) and "attention" (does influence foresee
what training does) at full size on the shared pool, LAMBADA passages as the reference.

    python tests/benchmarks/bench_selection.py --out tests/benchmarks/results [--part methods|lds] [--quick]

The second runs on a checkpoint trained to convergence on its sample: every document, five passes.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import ComputeConfig, load_config
from quad_tasks.experiments import outcome
from quad_tasks.experiments.attention import validate_influence
from quad_tasks.experiments.diversity import compare_methods
from quad_tasks.experiments.laboratory import QUICK, Size, build_laboratory, open_laboratory

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"
CONVERGED = Size(documents=4_000, trained_documents=4_000, epochs=5)
QUICK_SUBSETS, QUICK_STEPS = 8, 16


@flow
def measure(parts: list[str], quick: bool, workspace: str) -> dict[str, Any]:
    """Build the laboratories, run the parts and return their numbers."""
    inputs = [f"{name}.inputs={DATA}/{folder}/*.jsonl.gz" for name, folder in FOLDERS.items()]
    config = load_config(HERE / "configs" / "lambada.yaml", inputs)
    body: dict[str, Any] = {}
    with dask_cluster(ComputeConfig()):
        if "methods" in parts:
            laboratory = open_laboratory(workspace, build_laboratory(workspace, config, QUICK if quick else Size()))
            methods = compare_methods(laboratory)
            body |= {**methods, "methods_shows": methods.pop("shows"), "building_s": laboratory.seconds}
        if "lds" in parts:
            size = replace(QUICK, epochs=2) if quick else CONVERGED
            laboratory = open_laboratory(workspace, build_laboratory(workspace, config, size))
            counts = (QUICK_SUBSETS, QUICK_STEPS) if quick else ()
            found = validate_influence(laboratory, *counts)
            body |= {**found, "lds_shows": found.pop("shows"), "lds_time_s": found.pop("time_s")}
    return body


FOLDERS = {"pool": "candidate", "reference": "reference", "heldout": "heldout"}


def main() -> None:
    """Measure, merge with the other part's numbers, write JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of selection.json and selection.md")
    parser.add_argument("--part", choices=["methods", "lds"], help="one half, to be merged; default: both")
    parser.add_argument("--quick", action="store_true", help="a small laboratory: does it run?")
    parser.add_argument("--workspace", default="build/bench-selection", help="keeps the laboratories")
    arguments = parser.parse_args()
    started = time.perf_counter()
    body = measure([arguments.part] if arguments.part else ["methods", "lds"], arguments.quick, arguments.workspace)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "selection.json"
    body = {**(json.loads(path.read_text()) if path.exists() else {}), **body}
    body |= {"date": time.strftime("%Y-%m-%d"), "machine": f"{os.cpu_count()} cores, no GPU"}
    body["time_s"] = {**body.get("time_s", {}), arguments.part or "all": round(time.perf_counter() - started)}
    path.write_text(json.dumps(body, indent=1) + "\n")
    if "methods" in body:
        (arguments.out / "selection.md").write_text(outcome.table(body["methods"]))


if __name__ == "__main__":
    main()
