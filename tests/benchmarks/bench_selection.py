"""Does Quad choose better than what people would use instead, on equal tokens from the same checkpoint?

Parts, at full size on the shared pool:

- `methods`: the experiment "diversity" (ten other ways to choose, trained and measured), for LAMBADA passages.
- `lds`: the experiment "attention" (does influence foresee what training does), on a checkpoint trained to convergence
  on its sample: every document, five passes.
- `unlike`, on request: `methods` for a reference that the pool holds nothing like, problems of mathematics, which are
  left out of the pool.

    python tests/benchmarks/bench_selection.py --out tests/benchmarks/results [--part PART] [--quick]

Settings were chosen on the samples of seeds 0 and 1. Every repeat here is drawn with another seed: the pool's sample,
the reference's documents, the text that is measured on, and so the checkpoint. What was built, trained and measured is
kept in the workspace: a run that was stopped goes on.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.config import ComputeConfig, RunConfig
from quad_tasks.config_file import load_config
from quad_tasks.experiments import outcome
from quad_tasks.experiments.attention import NAMES, interval_of, measure_attention
from quad_tasks.experiments.diversity import compare_methods
from quad_tasks.experiments.experiment import within
from quad_tasks.experiments.laboratory import find_laboratories
from quad_tasks.experiments.sample import QUICK, SCORES, Size

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"
COMMAND = "make bench-selection"
PARTS = ("methods", "lds", "unlike")
USUAL = PARTS[:2]
SEED = 2
"""Of the first repeat."""
REPEATS = {"methods": 5, "unlike": 3}
KINDS = ("joint", "identity")
"""Directions that the methods rank by."""
WANTED = "math"
"""Domain that `unlike` takes its reference from."""
LEFT_OUT = (WANTED, "duplicates", "noise_shuffled")
"""Files that have some of it: the last two were made from all others."""
MEASURED_SHARE = 1 / 3
"""Of that domain's held-out documents; the others give the direction."""


@flow
def measure(parts: list[str], quick: bool, workspace: str) -> dict[str, Any]:
    """Run the parts and return their numbers."""
    body: dict[str, Any] = {}
    with dask_cluster(ComputeConfig()):
        size = replace(QUICK if quick else Size(), kinds=KINDS)
        if "methods" in parts:
            found = compare_methods(find_laboratories(workspace, lambada(), size, REPEATS["methods"]))
            body |= _renamed(found, shows="methods_shows")
        if "unlike" in parts:
            body["unlike"] = compare_methods(find_laboratories(workspace, mathematics(), size, REPEATS["unlike"]))
        if "lds" in parts:
            found = measure_attention(workspace, lambada(), quick)
            body |= _renamed(found, shows="lds_shows", documents="lds_documents")
    return body


def lambada() -> RunConfig:
    """Configure LAMBADA passages as the reference and the whole pool."""
    folders = {"pool": "candidate", "reference": "reference", "heldout": "heldout"}
    return _configure({name: _files(folder) for name, folder in folders.items()})


def mathematics() -> RunConfig:
    """Configure mathematics as the reference and a pool without it."""
    inputs = {
        "pool": _files("candidate", LEFT_OUT),
        "reference": [str(DATA / "heldout" / f"{WANTED}.jsonl.gz")],
        "heldout": _files("heldout", LEFT_OUT),
    }
    return _configure(inputs, "heldout.reference_domain=null", f"reference.heldout_share={MEASURED_SHARE}")


def _configure(inputs: Mapping[str, Sequence[str]], *settings: str) -> RunConfig:
    named = [f"{name}.inputs={json.dumps(files)}" for name, files in inputs.items()]
    return load_config(HERE / "configs" / "lambada.yaml", [*named, f"seed={SEED}", *settings])


def _files(folder: str, without: Sequence[str] = ()) -> list[str]:
    paths = sorted((DATA / folder).glob("*.jsonl.gz"))
    return [str(path) for path in paths if path.name.removesuffix(".jsonl.gz") not in without]


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
    parts = []
    if "methods" in body:
        parts += [_heading(body, "methods", "LAMBADA passages as the reference"), _methods(body)]
    if "lds" in body:
        parts += [_heading(body, "lds", "Whether influence foresees what training does"), _foresight(body)]
    parts.append(_claims([*body.get("methods_shows", []), *body.get("lds_shows", [])]))
    if "unlike" in body:
        title = "Problems of mathematics as the reference, and a pool that holds none"
        parts += [_heading(body, "unlike", title), _methods(body["unlike"]), _claims(body["unlike"]["shows"])]
    return "\n".join(parts)


def _heading(body: Mapping[str, Any], part: str, title: str) -> str:
    command = COMMAND if part in USUAL else f"python tests/benchmarks/bench_selection.py --part {part}"
    return f"**{title}**: `{command}`, {body['date'][part]}, {body['machine']}.\n"


def _methods(body: Mapping[str, Any]) -> str:
    before = body["before"]
    return (
        f"{body['budget_tokens']:,} tokens of {body['documents']:,} documents, {body['seeds']} repeats, 95 % "
        f"intervals; before: {np.mean(before['reference_loss']):.3f} and "
        f"{np.mean(before['other_domains_bpb']):.3f}.\n\n"
        f"{outcome.table(body['methods'])}"
    )


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
    parser.add_argument("--part", choices=PARTS, help="merged with the others; default: methods and lds")
    parser.add_argument("--quick", action="store_true", help="a small laboratory: does it run?")
    parser.add_argument("--workspace", default="build/bench-selection", help="keeps what was computed")
    arguments = parser.parse_args()
    started = time.perf_counter()
    parts = [arguments.part] if arguments.part else list(USUAL)
    body = measure(parts, arguments.quick, arguments.workspace)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "selection.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    body = {**before, **body, "machine": machine()}
    body["date"] = before.get("date", {}) | dict.fromkeys(parts, time.strftime("%Y-%m-%d"))
    body["time_s"] = before.get("time_s", {}) | {" and ".join(parts): round(time.perf_counter() - started)}
    path.write_text(json.dumps(body, indent=1) + "\n")
    (arguments.out / "selection.md").write_text(report(body))


if __name__ == "__main__":
    main()
