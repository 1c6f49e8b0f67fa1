"""Does Quad choose better than what people would use instead, on equal tokens from the same checkpoint?

Parts, at full size on the shared pool:

- `methods`: the experiment "diversity" (other ways to choose, trained and measured), for LAMBADA passages.
- `lds`: the experiment "attention" (does influence foresee what training does), on a checkpoint trained to convergence
  on its sample: every document, five passes.
- `unlike`, `code`, on request: `methods` for a reference that the pool holds nothing like, problems of mathematics or
  program code, which are left out of the pool.

    python tests/benchmarks/bench_selection.py --out tests/benchmarks/results [--part PART] [--size SIZE] [--repeats N]
        [--methods NAME ...]

Settings were chosen on the samples of seeds 0, 1 and 11. Every repeat here is drawn with another seed: the pool's
sample, the reference's documents, the text that is measured on, and so the checkpoint. What was built, trained and
measured is stored in the workspace: a run that was stopped goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow
from pydantic import TypeAdapter

from flows.dask_cluster import dask_cluster
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.load import load_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.attention import NAMES, measure_attention
from quad_tasks.experiments.diversity import compare_methods
from quad_tasks.experiments.diversity_report import MethodOutcome
from quad_tasks.experiments.experiment import result_body, within
from quad_tasks.experiments.lab import evaluation
from quad_tasks.experiments.lab.corpus_sample import QUICK, SCORES, Size
from quad_tasks.experiments.lab.testbed import find_testbeds

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"
PARTS = ("methods", "lds", "unlike", "code")
USUAL = PARTS[:2]
REFERENCES = {"methods": "lambada", "unlike": "math", "code": "code"}
"""Reference of each part that compares methods."""
METHODS = TypeAdapter(dict[str, MethodOutcome])
SEED = 20
"""Seed of the first repeat."""
REPEATS = 5
KINDS = ("joint", "identity")
"""Directions that the methods rank by."""
DERIVED = ("duplicates", "noise_shuffled")
"""Files of the pool that have some of every domain: they were made from all others."""
FULL = replace(Size(), kinds=KINDS)
SIZES = {
    "full": FULL,
    "medium": replace(
        FULL,
        documents=8_000,
        reference_documents=300,
        documents_per_domain=12,
        factor_documents=384,
        trained_documents=4_000,
        budget_tokens=60_000,
    ),
    "small": replace(
        FULL,
        documents=4_000,
        reference_documents=300,
        documents_per_domain=12,
        factor_documents=256,
        trained_documents=2_000,
        width=64,
        layers=2,
        arms=60,
        budget_tokens=35_000,
    ),
    "quick": replace(QUICK, kinds=KINDS),
}
TITLES = {
    "lds": "Whether influence foresees what training does",
    "methods": "LAMBADA passages as the reference",
    "unlike": "Problems of mathematics as the reference, and a pool that holds none",
    "code": "Program code as the reference, and a pool that holds none",
}


@flow
def measure(parts: list[str], size: str, repeats: int, methods: list[str] | None, workspace: str) -> dict[str, Any]:
    """Run the parts and return their numbers."""
    body: dict[str, Any] = {}
    with dask_cluster(ComputeConfig()):
        for part in parts:
            if part == "lds":
                body[part] = result_body(measure_attention(workspace, configure("lambada", SEED), size == "quick"))
                continue
            testbeds = find_testbeds(workspace, configure(REFERENCES[part], SEED), SIZES[size], repeats)
            body[part] = result_body(compare_methods(testbeds, methods))
    return body


def configure(reference: str, seed: int) -> RunConfig:
    """Configure a reference and its pool: all files for LAMBADA, else those without the reference's domain."""
    if reference == "lambada":
        inputs, settings = {"reference": files("reference")}, []
        without: Sequence[str] = ()
    else:
        inputs = {"reference": [str(DATA / "heldout" / f"{reference}.jsonl.gz")]}
        settings = ["heldout.reference_domain=null", "reference.heldout_share=0.3333"]
        without = (reference, *DERIVED)
    inputs |= {"pool": files("candidate", without), "heldout": files("heldout", without)}
    named = [f"{name}.inputs={json.dumps(paths)}" for name, paths in inputs.items()]
    return load_config(HERE / "configs" / "lambada.yaml", [*named, f"seed={seed}", *settings])


def files(folder: str, without: Sequence[str] = ()) -> list[str]:
    """List the shared files of one kind, without those of some domains."""
    paths = sorted((DATA / folder).resolve().glob("*.jsonl.gz"))
    return [str(path) for path in paths if path.name.removesuffix(".jsonl.gz") not in without]


def machine() -> str:
    """Say what kind of machine this is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores ({model or platform.machine()}), no GPU"


def describe_environment(command: str) -> dict[str, str]:
    """Say how, when, from which commit and on what machine this was measured."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return {
        "command": command,
        "commit": subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def report(body: Mapping[str, Any]) -> str:
    """Lay out what was measured in Markdown, part by part: when and where, the table, and what it shows."""
    parts = []
    for part in PARTS:
        if part in body:
            laid_out = _foresight(body[part]) if part == "lds" else _methods(body[part])
            parts += [_heading(body[part], TITLES[part]), laid_out, _claims(body[part]["shows"])]
    return "\n".join(parts)


def _heading(body: Mapping[str, Any], title: str) -> str:
    found = body["environment"]
    commit = f"commit {found['commit']}, " if found["commit"] else ""
    return f"**{title}**: `{found['command']}`, {found['date']}, {commit}{found['machine']}.\n"


def _methods(body: Mapping[str, Any]) -> str:
    before = body["before"]
    return (
        f"{body['budget_tokens']:,} tokens of {body['documents']:,} documents, {body['seeds']} repeats, 95 % "
        f"intervals; before: {np.mean(before['reference_loss']):.3f} and "
        f"{np.mean(before['other_domains_bpb']):.3f}. Cost: model FLOPs of what is read of the pool, as a share of "
        f"scoring it exactly.{_scorers(body['scorers'])}\n\n"
        f"{evaluation.table(METHODS.validate_python(body['methods']))}"
    )


def _scorers(scorers: Sequence[Mapping[str, Any]]) -> str:
    """Say what Quad scored by, where that was not exact scoring alone."""
    if not scorers:
        return ""
    ways = " or ".join(sorted({one["scorer"] for one in scorers}))
    if ways == "exact":
        return (
            " Quad scores exactly: to try a cheaper scorer would take more than a quarter of what the pilot leaves, or "
            "none ranks alike."
        )
    cost, least = np.mean([one["cost"] for one in scorers]), min(one["spearman"] for one in scorers)
    return (
        f" Quad scores its pilot exactly, then by {ways}, at {cost:.2f} of that (rank correlation with it on the pilot "
        f"at least {least:.4f})."
    )


def _foresight(body: Mapping[str, Any]) -> str:
    rows = [
        f"| curvature | LDS, {body['lds_subsets']} subsets | one step, {body['one_steps']} batches | fit |",
        "| --- | --- | --- | --- |",
    ]
    for kind in SCORES:
        cells = [within(Interval(body[key][kind], *body[f"{key}_interval"][kind])) for key in ("lds", "one_step")]
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
    """Measure, merge with the other parts' numbers, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of selection.json and selection.md")
    parser.add_argument("--part", choices=PARTS, help="merged with the others; default: methods and lds")
    parser.add_argument("--size", choices=SIZES, default="full", help="of a testbed")
    parser.add_argument("--workspace", default="build/bench-selection", help="stores what was computed")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="testbeds")
    parser.add_argument("--methods", nargs="+", help="besides Quad, full scoring and random; default: all")
    arguments = parser.parse_args()
    parts = [arguments.part] if arguments.part else list(USUAL)
    found = measure(parts, arguments.size, arguments.repeats, arguments.methods, arguments.workspace)
    environment = describe_environment(" ".join(["python", "tests/benchmarks/bench_selection.py", *sys.argv[1:]]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "selection.json"
    body = json.loads(path.read_text()) if path.exists() else {}
    body |= {part: {"environment": environment, **of} for part, of in found.items()}
    path.write_text(json.dumps(body, indent=1) + "\n")
    (arguments.out / "selection.md").write_text(report(body))


if __name__ == "__main__":
    main()
