"""Experiment "homogeneity": measure how alike influence is within arms, and how many documents a pull needs.

The variance of influence within and between arms is measured for arms of several numbers and embeddings, over every
document of a testbed. From it follow the intraclass correlation, with an interval that resamples arms, and m: the
documents that a pull needs so that the standard error of its mean is half the deviation between arms. That m is then
tried: pulls of m documents are drawn, and the error of their means is measured.

Shape suffixes: N documents, K arms.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation import statistics
from quad_tasks.core.evaluation.diagnosis import ERROR_SHARE
from quad_tasks.core.evaluation.homogeneity import documents_for_error, homogeneity
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.experiment import Experiment, Tables, claims_table, within
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.clusterings import cluster
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.evaluation import Claim, claim_least, claim_most
from quad_tasks.experiments.lab.testbed import Testbed, find_testbed

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Numbers of arms, as factors of the testbed's: 25 to 400 arms at full size."""
CLIPPED_SHARE = 0.01
"""Share clipped at either end: influence per token of a few very short documents lies tens of deviations out."""
RESAMPLES = 200
DRAWS = 2_000
SEEDS = 3
"""Clusterings from other initial centroids."""
N_GRAMS = "n-grams"
COLOURS = {N_GRAMS: plots.BLUE, "hidden states": plots.RED}


@dataclass(frozen=True)
class Split:
    """The variance of influence, split by arms.

    Attributes:
        intraclass_correlation: share of the variance that lies between arms.
        low: low end of its 95 per cent interval, resampling arms.
        high: high end.
        between: standard deviation between arms.
        within: standard deviation within arms.
        documents_per_pull: m, documents whose mean has the wanted error.
        wanted_error: of a pull's mean.
        real_error: measured, of the means of pulls of m documents.
    """

    intraclass_correlation: float
    low: float
    high: float
    between: float
    within: float
    documents_per_pull: int
    wanted_error: float
    real_error: float


@dataclass(frozen=True)
class ClusteringSplit(Split):
    """The split by one clustering.

    Attributes:
        embedding: what was clustered.
        arms: how many.
        seed: of the initial centroids.
    """

    embedding: str
    arms: int
    seed: int


@dataclass(frozen=True)
class Result:
    """Result of the experiment."""

    documents: int
    clusterings: list[ClusteringSplit]
    shows: list[Claim]


def measure_homogeneity(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Split the variance of influence for every number of arms and embedding."""
    testbed = find_testbed(workspace, config, QUICK if quick else Size())
    influence_N = clip_ends(testbed.per_token())
    embeddings = {N_GRAMS: testbed.embedding, "hidden states": centre_and_scale(testbed.hidden)}
    splits = []
    for embedding, vectors in embeddings.items():
        for factor in FACTORS:
            n_arms = max(round(factor * testbed.size.arms), 2)
            for seed in range(SEEDS):
                found = split_variance(influence_N, cluster(vectors, n_arms, "kmeans", seed), seed)
                splits.append(ClusteringSplit(**asdict(found), embedding=embedding, arms=n_arms, seed=seed))
    return Result(len(influence_N), splits, _claims(testbed, splits))


def split_variance(influence_N: Float64, arm_N: Int32, seed: int) -> Split:
    """Split the variance of influence by arms; try the pull size m that follows.

    Args:
        influence_N: [N] per token.
        arm_N: [N] numbered from 0, no arm empty.
        seed: draws resamples and pulls.

    Raises:
        ValueError: fewer than two arms, none of two documents, or no variance between arms.
    """
    found = homogeneity(influence_N, arm_N)
    if found is None or found.between_variance == 0:
        raise ValueError("arms: expected at least two that differ, of two documents or more")
    generator = np.random.default_rng(seed)
    rows_K = _rows_by_arm(arm_N)
    resampled = statistics.bootstrap_interval(
        lambda arms: _correlation_of_arms(influence_N, [rows_K[arm] for arm in arms]), len(rows_K), RESAMPLES, generator
    )
    between, within_ = float(np.sqrt(found.between_variance)), float(np.sqrt(found.within_variance))
    wanted = ERROR_SHARE * between
    m = documents_for_error(found.within_variance, wanted)
    real = measure_pull_error(influence_N, arm_N, m, generator)
    return Split(found.intraclass_correlation, resampled.low, resampled.high, between, within_, m, wanted, real)


def _rows_by_arm(arm_N: Int32) -> list[Int64]:
    order = np.argsort(arm_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(arm_N))[:-1])


def _correlation_of_arms(influence_N: Float64, rows_K: Sequence[Int64]) -> float:
    """Compute the intraclass correlation of some arms, given as their rows; an arm drawn twice counts as two."""
    arm_N = np.repeat(np.arange(len(rows_K)), [len(rows) for rows in rows_K])
    found = homogeneity(influence_N[np.concatenate(rows_K)], arm_N.astype(np.int32))
    return found.intraclass_correlation if found else 0.0


def measure_pull_error(influence_N: Float64, arm_N: Int32, m: int, generator: np.random.Generator) -> float:
    """Measure the root mean square error of a pull's mean against its arm's; documents are drawn with replacement.

    Arms are drawn in proportion to their documents less one, as the pooled variance within arms weighs them.

    Args:
        influence_N: [N] per token.
        arm_N: [N] numbered from 0, no arm empty.
        m: documents of a pull.
        generator: draws arms and documents.
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


def clip_ends(influence_N: Float64) -> Float64:
    """Clip the lowest and highest values to their quantiles."""
    low, high = np.quantile(influence_N, [CLIPPED_SHARE, 1 - CLIPPED_SHARE])
    return np.clip(influence_N, low, high)


def centre_and_scale(vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centre vectors and scale them to norm 1."""
    centred = vectors_ND - vectors_ND.mean(axis=0)
    scaled: npt.NDArray[np.float32] = (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _claims(testbed: Testbed, splits: Sequence[ClusteringSplit]) -> list[Claim]:
    own = [split for split in splits if split.arms == testbed.size.arms and split.embedding == N_GRAMS]
    # Other initial centroids split the same documents alike: a kind of clustering counts once
    kinds = [[split.real_error / split.wanted_error for split in group] for _, _, group in _group_by_clustering(splits)]
    ratio = statistics.interval([float(np.mean(ratios)) for ratios in kinds])
    between = "share of the variance of influence between a run's arms (intraclass correlation)"
    return [
        claim_least(between, _mean_correlation(own), 0.1),
        claim_most("real error of a pull of m documents, as a share of the wanted one", ratio, 1.05),
    ]


def _mean_correlation(splits: Sequence[Split]) -> Interval:
    """Average correlations and the ends of their intervals."""
    triples = [(split.intraclass_correlation, split.low, split.high) for split in splits]
    mean, low, high = np.mean(triples, axis=0).tolist()
    return Interval(mean, low, high)


def lay_out(result: Result) -> Tables:
    """Lay out a row a clustering, means over initial centroids, and what it shows."""
    rows = []
    for embedding, n_arms, splits in _group_by_clustering(result.clusterings):
        wanted = float(np.mean([split.wanted_error for split in splits]))
        rows.append(
            {
                "embedding": embedding,
                "arms": str(n_arms),
                "between arms": f"{np.mean([split.between for split in splits]):.4f}",
                "within": f"{np.mean([split.within for split in splits]):.4f}",
                "intraclass correlation": within(_mean_correlation(splits)),
                "m": f"{np.mean([split.documents_per_pull for split in splits]):.0f}",
                "real / wanted error": f"{np.mean([split.real_error for split in splits]) / wanted:.2f}",
            }
        )
    return {f"Influence per token of {result.documents:,} documents": rows, **claims_table(result.shows)}


def draw(result: Result) -> dict[str, Figure]:
    """Draw the intraclass correlation and m by the number of arms."""
    figure, (left, right) = plots.page_figure(3.2, columns=2)
    for embedding, colour in COLOURS.items():
        kinds = _group_by_clustering(result.clusterings)
        groups = [(n_arms, splits) for name, n_arms, splits in kinds if name == embedding]
        arms = [n_arms for n_arms, _ in groups]
        correlations = [_mean_correlation(splits) for _, splits in groups]
        plots.draw_course(left, arms, correlations, colour, embedding)
        pulls = [statistics.interval([float(split.documents_per_pull) for split in splits]) for _, splits in groups]
        plots.draw_course(right, arms, pulls, colour, embedding)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(arms, [str(n) for n in arms])
        axes.set_ylim(bottom=0)
    plots.label(left, "arms (k)", "intraclass correlation of influence", "Share of variance between arms")
    plots.label(right, "arms (k)", "documents of a pull (m)", "m for an error of half the arms' deviation")
    plots.legend_below(figure, left)
    return {"homogeneity": figure}


def _group_by_clustering(splits: Sequence[ClusteringSplit]) -> list[tuple[str, int, list[ClusteringSplit]]]:
    """Group the splits of other initial centroids: embedding, arms, splits."""
    groups: dict[tuple[str, int], list[ClusteringSplit]] = {}
    for split in splits:
        groups.setdefault((split.embedding, split.arms), []).append(split)
    return [(embedding, n_arms, splits) for (embedding, n_arms), splits in groups.items()]


HOMOGENEITY = Experiment(
    "variance of influence within and between arms, and how many documents a pull needs",
    Result,
    measure_homogeneity,
    lay_out,
    draw,
)
