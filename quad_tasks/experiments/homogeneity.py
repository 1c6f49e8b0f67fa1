"""Experiment "homogeneity": how alike influence is within arms, and how many documents a pull needs for it.

The variance of influence within and between arms, for arms of several numbers and embeddings, over every document of a
laboratory; the intraclass correlation, with an interval that resamples arms; and the m a pull needs so that the
standard error of its mean is half the deviation between arms. That m is then tried: pulls of m documents are drawn and
their mean's real error measured.

Shape suffixes: N documents, K arms.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config import RunConfig
from quad_tasks.core.diagnosis import ERROR_SHARE, documents_for_error, homogeneity
from quad_tasks.experiments import drawing, outcome
from quad_tasks.experiments.clusterings import cluster
from quad_tasks.experiments.experiment import Experiment, Rows, shows_table, within
from quad_tasks.experiments.laboratory import Laboratory, find_laboratory
from quad_tasks.experiments.sample import QUICK, Size

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the laboratory's arms: 25 to 400 at full size."""
CLIPPED_SHARE = 0.01
"""At either end: influence per token of a few very short documents lies tens of deviations out."""
RESAMPLES = 200
DRAWS = 2_000
SEEDS = 3
"""Clusterings from other initial centroids."""
COLOURS = {"n-grams": drawing.BLUE, "hidden states": drawing.RED}


def measure_homogeneity(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Split the variance of influence for every number of arms and embedding."""
    laboratory = find_laboratory(workspace, config, QUICK if quick else Size())
    influence_N = clipped(laboratory.per_token["joint"])
    embeddings = {"n-grams": laboratory.embedding, "hidden states": unit(laboratory.hidden)}
    rows = []
    for embedding, vectors in embeddings.items():
        for factor in FACTORS:
            n_arms = max(round(factor * laboratory.size.arms), 2)
            for seed in range(SEEDS):
                arm_N = cluster(vectors, n_arms, "kmeans", seed)
                rows.append({"embedding": embedding, "arms": n_arms, "seed": seed, **split(influence_N, arm_N, seed)})
    return {"documents": len(influence_N), "clusterings": rows, "shows": _shows(laboratory, rows)}


def split(influence_N: Float64, arm_N: Int32, seed: int) -> dict[str, Any]:
    """Split the variance of influence by arms; try the m that follows.

    Returns:
        `intraclass_correlation` with `low` and `high`; deviations `between` and `within` arms; `documents_per_pull`, m;
        `wanted_error` and the `real_error` of the means of pulls of m documents.
    """
    found = homogeneity(influence_N, arm_N)
    if found is None or found.between_variance == 0:
        raise ValueError("arms: expected at least two that differ, of two documents or more")
    generator = np.random.default_rng(seed)
    resampled = [_resampled(influence_N, arm_N, generator) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    between = float(np.sqrt(found.between_variance))
    m = documents_for_error(found.within_variance, ERROR_SHARE * between)
    return {
        "intraclass_correlation": found.intraclass_correlation,
        "low": float(low),
        "high": float(high),
        "between": between,
        "within": float(np.sqrt(found.within_variance)),
        "documents_per_pull": m,
        "wanted_error": ERROR_SHARE * between,
        "real_error": real_error(influence_N, arm_N, m, generator),
    }


def _resampled(influence_N: Float64, arm_N: Int32, generator: np.random.Generator) -> float:
    """Compute the intraclass correlation of arms drawn with replacement."""
    order = np.argsort(arm_N, kind="stable")
    size_K = np.bincount(arm_N)
    start_K = np.cumsum(size_K) - size_K
    drawn = generator.integers(len(size_K), size=len(size_K))
    rows = np.concatenate([order[start_K[arm] : start_K[arm] + size_K[arm]] for arm in drawn])
    again_N = np.repeat(np.arange(len(drawn)), size_K[drawn])
    found = homogeneity(influence_N[rows], again_N.astype(np.int32))
    return found.intraclass_correlation if found else 0.0


def real_error(influence_N: Float64, arm_N: Int32, m: int, generator: np.random.Generator) -> float:
    """Measure the error of a pull's mean: the root mean square distance to its arm's, documents drawn with replacement.

    Arms are drawn by their documents less one, as the pooled variance within arms weighs them.
    """
    size_K = np.bincount(arm_N)
    weight_K = np.maximum(size_K - 1, 0) / np.maximum(size_K - 1, 0).sum()
    order = np.argsort(arm_N, kind="stable")
    start_K = np.cumsum(size_K) - size_K
    arms = generator.choice(len(size_K), size=DRAWS, p=weight_K)
    place = generator.random((DRAWS, m)) * size_K[arms, None]
    pulled = influence_N[order[start_K[arms, None] + place.astype(np.int64)]]
    mean_K = np.bincount(arm_N, weights=influence_N) / size_K
    return float(np.sqrt(np.mean((pulled.mean(axis=1) - mean_K[arms]) ** 2)))


def clipped(influence_N: Float64) -> Float64:
    """Draw in the extremes."""
    low, high = np.quantile(influence_N, [CLIPPED_SHARE, 1 - CLIPPED_SHARE])
    return np.clip(influence_N, low, high)


def unit(vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centre vectors and scale them to norm 1."""
    centred = vectors_ND - vectors_ND.mean(axis=0)
    scaled: npt.NDArray[np.float32] = (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _shows(laboratory: Laboratory, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    own = [row for row in rows if row["arms"] == laboratory.size.arms and row["embedding"] == "n-grams"]
    typical = {key: float(np.mean([row[key] for row in own])) for key in ("intraclass_correlation", "low", "high")}
    typical["mean"] = typical.pop("intraclass_correlation")
    ratio = outcome.interval(np.array([row["real_error"] / row["wanted_error"] for row in rows]))
    return [
        outcome.claim("share of the variance of influence between a run's arms (intraclass correlation)", typical, 0.1),
        outcome.claim("real error of a pull of m documents, as a share of the wanted one", ratio, most=1.05),
    ]


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out a row a clustering, means over initial centroids, and what it shows."""
    rows = []
    for embedding, n_arms, found in _grouped(result):
        mean = {key: float(np.mean([row[key] for row in found])) for key in found[0] if key != "embedding"}
        icc = {"mean": mean["intraclass_correlation"], "low": mean["low"], "high": mean["high"]}
        rows.append(
            {
                "embedding": embedding,
                "arms": str(n_arms),
                "between arms": f"{mean['between']:.4f}",
                "within": f"{mean['within']:.4f}",
                "intraclass correlation": within(icc),
                "m": f"{mean['documents_per_pull']:.0f}",
                "real / wanted error": f"{mean['real_error'] / mean['wanted_error']:.2f}",
            }
        )
    return {f"Influence per token of {result['documents']:,} documents": rows, **shows_table(result["shows"])}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the intraclass correlation and m by the number of arms."""
    figure, (left, right) = drawing.page_figure(3.2, columns=2)
    for embedding, colour in COLOURS.items():
        found = [(n_arms, rows) for name, n_arms, rows in _grouped(result) if name == embedding]
        arms = [n_arms for n_arms, _ in found]
        shares = [
            {"mean": _mean(rows, "intraclass_correlation"), "low": _mean(rows, "low"), "high": _mean(rows, "high")}
            for _, rows in found
        ]
        drawing.draw_course(left, arms, shares, colour, embedding)
        drawn = [outcome.interval(np.array([float(row["documents_per_pull"]) for row in rows])) for _, rows in found]
        drawing.draw_course(right, arms, drawn, colour, embedding)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(arms, [str(n) for n in arms])
        axes.set_ylim(bottom=0)
    drawing.label(left, "arms (k)", "intraclass correlation of influence", "Share of variance between arms")
    drawing.label(right, "arms (k)", "documents of a pull (m)", "m for an error of half the arms' deviation")
    drawing.legend_below(figure, left)
    return {"homogeneity": figure}


def _mean(rows: list[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _grouped(result: Mapping[str, Any]) -> list[tuple[str, int, list[Mapping[str, Any]]]]:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in result["clusterings"]:
        groups.setdefault((row["embedding"], row["arms"]), []).append(row)
    return [(embedding, n_arms, rows) for (embedding, n_arms), rows in groups.items()]


HOMOGENEITY = Experiment(
    "variance of influence within and between arms, and how many documents a pull needs",
    measure_homogeneity,
    tables,
    draw,
)
