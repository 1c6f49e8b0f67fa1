"""What should influence be predicted from? The share of the achievable influence by features and share scored.

Mathematics and code as references, whose files are left out of the pool, LAMBADA passages, whose novels it holds, and
mathematics with a wider and deeper model, whose embeddings (192) are projected. Every document of a testbed
(`quad_tasks.experiments.lab.testbed`) is scored once. Some drawn at random are known to the regression, which predicts
the others; the best eighth by measured or predicted influence is the selection.

    share = (mean influence of the selection - mean of the pool) / (mean of the true best eighth - mean of the pool)

- `embedding`: the regression knows n-gram embeddings and lengths alone;
- `states`: these and the model's mean hidden states, for which it reads the pool once, a third of scoring it;
- `tokens`: these and token features, for which no model reads anything (`core.lm.token_features`).

    python tests/benchmarks/bench_features.py --out tests/benchmarks/results [--case CASE ...] [--testbeds N]

Testbeds are stored in the workspace: a run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_bandit import share_reached
from bench_selection import configure, describe_environment
from prefect import flow
from scipy.stats import spearmanr

from flows.dask_cluster import dask_cluster
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.core.evaluation.statistics import interval
from quad_tasks.core.selection.features import FeatureMatrix
from quad_tasks.core.selection.prediction import fit_predictor, predict
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.testbed import Testbed, build_testbeds, open_testbed, prediction_features

Arrays = dict[str, npt.NDArray[Any]]
Measured = dict[str, list[list[tuple[float, float]]]]
"""By features, share scored and draw: the share reached, and the rank correlation on what was not scored."""

SIZE = Size(
    documents=4000,
    reference_documents=200,
    measured_documents=60,
    documents_per_domain=8,
    factor_documents=256,
    trained_documents=1500,
    window_tokens=160,
    batch_tokens=2048,
    width=96,
    budget_tokens=45_000,
    kinds=("joint",),
)
WIDE = replace(SIZE, documents=3000, width=192, layers=4, budget_tokens=34_000)
SEED = 11
CASES = {
    "math": ("math", SIZE),
    "lambada": ("lambada", SIZE),
    "code": ("code", SIZE),
    "math, wider model": ("math", WIDE),
}
"""Reference and size of each case."""
SHARES = (0.05, 0.10, 0.15)
DRAWS = 5
"""Of the documents that are scored."""
FEATURES = ("embedding", "states", "tokens")


@flow
def find_keys(workspace: str, case: str, testbeds: int, quick: bool) -> list[str]:
    """Build a case's testbeds where the workspace lacks them; return their keys."""
    reference, size = CASES[case]
    with dask_cluster(ComputeConfig()):
        return build_testbeds(workspace, configure(reference, SEED), QUICK if quick else size, testbeds)


def first_documents(testbed: Testbed, n: int | None) -> Testbed:
    """Keep a testbed's first documents, which stand in random order; None: all."""
    if n is None:
        return testbed
    return replace(
        testbed,
        texts=replace(testbed.texts, pool=testbed.texts.pool[:n], source=testbed.texts.source[:n]),
        documents=testbed.documents[:n],
        n_tokens=testbed.n_tokens[:n],
        influence={kind: of[:n] for kind, of in testbed.influence.items()},
        loss=testbed.loss[:n],
        embedding=testbed.embedding[:n],
        hidden=testbed.hidden[:n],
        arm=testbed.arm[:n],
    )


def features_of(testbed: Testbed, name: str) -> FeatureMatrix:
    """Build the features of one name; `states` are a run's `hidden_states` without those of tokens."""
    built = prediction_features(testbed, "hidden_states" if name == "states" else name)  # type: ignore[arg-type]
    if name != "states":
        return built
    kept = [group for group in built.groups if group != "tokens"]
    parts = [built.values_NC[:, built.groups[group]] for group in kept]
    ends = np.cumsum([0, *(part.shape[1] for part in parts)]).tolist()
    groups = {group: slice(*ends[i : i + 2]) for i, group in enumerate(kept)}
    return FeatureMatrix(np.concatenate(parts, axis=1), groups)


def measure(testbed: Testbed) -> Measured:
    """Measure every choice of features in a testbed."""
    truth: Arrays = {"influence": testbed.per_token()}
    found: Measured = {}
    for name in FEATURES:
        features = features_of(testbed, name)
        found[name] = [[_predict(testbed, truth, features, share, draw) for draw in range(DRAWS)] for share in SHARES]
        print(time.strftime("%H:%M:%S"), name, _cells(found[name]), file=sys.stderr, flush=True)
    return found


def _predict(testbed: Testbed, truth: Arrays, features: FeatureMatrix, share: float, draw: int) -> tuple[float, float]:
    generator, influence_N = np.random.default_rng(draw), truth["influence"]
    scored, rest = np.split(generator.permutation(len(influence_N)), [int(share * len(influence_N))])
    known = features.values_NC[scored], influence_N[scored], testbed.arm[scored], int(testbed.arm.max()) + 1
    estimate_N = predict(fit_predictor(*known, generator, features.groups), features.values_NC, testbed.arm)
    correlation = float(spearmanr(estimate_N[rest], influence_N[rest]).statistic)
    estimate_N[scored] = influence_N[scored]
    return share_reached(truth, estimate_N), correlation


def report(body: dict[str, Any]) -> str:
    """Lay out what was measured as a Markdown table."""
    environment = body["environment"]
    lines = [
        f"**Share of the achievable influence by features**: `{environment['command']}`, {environment['date']}, "
        f"commit {environment['commit']}, {environment['machine']}.",
        "",
        f"Means of {DRAWS} draws in each of a case's testbeds, with the lowest and the highest; in brackets the mean",
        "rank correlation of predicted with measured influence on documents that were not scored.",
        "",
        "| case | documents | features | " + " | ".join(f"{share:.0%} scored" for share in SHARES) + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in SHARES) + " |",
    ]
    for case, testbeds in body["cases"].items():
        for name in FEATURES:
            runs = [[run for of in testbeds for run in of["measured"][name][at]] for at in range(len(SHARES))]
            size = testbeds[0]["documents"]
            lines.append(f"| {case} | {size:,} | {name.replace('_', ' ')} | {' | '.join(_cells(runs))} |")
    testbeds = [testbed["measured"] for of_case in body["cases"].values() for testbed in of_case]
    return "\n".join(lines + (["", *_differences(testbeds)] if len(testbeds) > 1 else [])) + "\n"


def _cells(runs: Sequence[Sequence[tuple[float, float]]]) -> list[str]:
    """Write one cell a share scored."""
    columns = [np.array(of) for of in runs]
    return [f"{c[:, 0].mean():.3f}, {c[:, 0].min():.3f} to {c[:, 0].max():.3f} ({c[:, 1].mean():.2f})" for c in columns]


def _differences(testbeds: Sequence[Measured]) -> list[str]:
    """Compare token features with the others over all testbeds: each one's mean is one observation."""
    lines = [f"Token features less others, means over {len(testbeds)} testbeds with 95 % intervals:", ""]
    for other in ("embedding", "states"):
        parts = []
        for at, share in enumerate(SHARES):
            mean_S = [[np.mean([run[0] for run in of[name][at]]) for name in ("tokens", other)] for of in testbeds]
            more = interval([float(own - others) for own, others in mean_S])
            parts.append(f"{share:.0%} scored {more.mean:+.3f} ({more.low:+.3f} to {more.high:+.3f})")
        lines.append(f"- less `{other}`: {', '.join(parts)}")
    return lines


def main() -> None:
    """Measure every case and write JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", default="build/bench-features", help="stores testbeds")
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES), help="cases; none: all")
    parser.add_argument("--testbeds", type=int, default=1, help="of each case, each of a seed of its own")
    parser.add_argument("--documents", type=int, help="measure with the first so many of a testbed; none: all")
    parser.add_argument("--quick", action="store_true", help="small testbeds: does it run?")
    parser.add_argument("--out", type=Path, help="folder that features.json and features.md are written to")
    arguments = parser.parse_args()
    cases: dict[str, list[dict[str, Any]]] = {case: [] for case in arguments.case}
    for case, measured in cases.items():
        for key in find_keys(arguments.workspace, case, arguments.testbeds, arguments.quick):
            testbed = first_documents(open_testbed(arguments.workspace, key), arguments.documents)
            measured.append({"documents": len(testbed.documents), "measured": measure(testbed)})
    command = " ".join(["python", "tests/benchmarks/bench_features.py", *sys.argv[1:]])
    write({"environment": describe_environment(command), "cases": cases}, arguments.out)


def write(body: dict[str, Any], out: Path | None) -> None:
    """Print the table; write it and the numbers beside it."""
    print(report(body))
    if out:
        (out / "features.json").write_text(json.dumps(body) + "\n")
        (out / "features.md").write_text(report(body))


if __name__ == "__main__":
    main()
