"""Does Quad choose better than what people would use instead, on equal tokens from the same checkpoint?

The experiments "diversity" (ten other ways to choose, trained and measured) and "attention" (does influence foresee
what training does) at full size on the shared pool, LAMBADA passages as the reference.

    python tests/benchmarks/bench_selection.py --out tests/benchmarks/results [--part methods|lds] [--quick]

The second runs on a checkpoint trained to convergence on its sample: every document, five passes. What was built,
trained and measured is kept in the workspace: a run that was stopped goes on.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import ComputeConfig
from quad_tasks.config_file import load_config
from quad_tasks.experiments import outcome
from quad_tasks.experiments.attention import NAMES, interval_of, measure_attention
from quad_tasks.experiments.diversity import measure_diversity
from quad_tasks.experiments.experiment import within
from quad_tasks.experiments.sample import SCORES

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"
FOLDERS = {"pool": "candidate", "reference": "reference", "heldout": "heldout"}
COMMAND = "make bench-selection"


@flow
def measure(parts: list[str], quick: bool, workspace: str) -> dict[str, Any]:
    """Run the parts and return their numbers."""
    inputs = [f"{name}.inputs={DATA}/{folder}/*.jsonl.gz" for name, folder in FOLDERS.items()]
    config = load_config(HERE / "configs" / "lambada.yaml", inputs)
    body: dict[str, Any] = {}
    with dask_cluster(ComputeConfig()):
        if "methods" in parts:
            body |= _renamed(measure_diversity(workspace, config, quick), shows="methods_shows")
        if "lds" in parts:
            found = measure_attention(workspace, config, quick)
            body |= _renamed(found, shows="lds_shows", documents="lds_documents")
    return body


def _renamed(body: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in body.items()}


def machine() -> str:
    """Say what kind of machine this is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores ({model or platform.machine()}), no GPU"


def report(body: Mapping[str, Any]) -> str:
    """Lay out what was measured in Markdown: the command, when and where, methods, influence's foresight, claims."""
    parts = [f"`{COMMAND}`, {body['date']}, {body['machine']}.\n"]
    if "methods" in body:
        parts.append(
            f"{body['budget_tokens']:,} tokens of {body['documents']:,} documents, {body['seeds']} seeds, 95 % "
            "intervals; before: "
            f"{body['before']['reference_loss']:.3f} and {body['before']['other_domains_bpb']:.3f}.\n"
        )
        parts.append(outcome.table(body["methods"]))
    if "lds" in body:
        parts.append(_foresight(body))
    parts.append(_claims([*body.get("methods_shows", []), *body.get("lds_shows", [])]))
    return "\n".join(parts)


def _foresight(body: Mapping[str, Any]) -> str:
    rows = [
        f"| curvature | LDS, {body['lds_subsets']} subsets | one step, {body['one_steps']} batches | fit |",
        "| --- | --- | --- | --- |",
    ]
    for kind in SCORES:
        cells = [within(interval_of(body, key, kind)) for key in ("lds", "one_step")]
        rows.append(f"| {NAMES[kind]} | {cells[0]} | {cells[1]} | {body['fit_s'][kind]:.0f} s |")
    return "\n".join(rows) + "\n"


def _claims(shows: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| claim | measured | 95 % interval | limit | holds |", "| --- | --- | --- | --- | --- |"]
    for show in shows:
        verdict = ("yes" if show["certain"] else "yes, not its whole interval") if show["holds"] else "no"
        interval = f"{show['low']:.3f} to {show['high']:.3f}"
        rows.append(f"| {show['claim']} | {show['measured']:.3f} | {interval} | {show['limit']} | {verdict} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure, merge with the other part's numbers, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of selection.json and selection.md")
    parser.add_argument("--part", choices=["methods", "lds"], help="one half, to be merged; default: both")
    parser.add_argument("--quick", action="store_true", help="a small laboratory: does it run?")
    parser.add_argument("--workspace", default="build/bench-selection", help="keeps what was computed")
    arguments = parser.parse_args()
    started = time.perf_counter()
    body = measure([arguments.part] if arguments.part else ["methods", "lds"], arguments.quick, arguments.workspace)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "selection.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    body = {**before, **body, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    body["time_s"] = {**before.get("time_s", {}), arguments.part or "all": round(time.perf_counter() - started)}
    path.write_text(json.dumps(body, indent=1) + "\n")
    (arguments.out / "selection.md").write_text(report(body))


if __name__ == "__main__":
    main()
