"""Summarise what a finished run knows of its documents, for the report: influence, examples, a map, diversity.

Influence is per token along the direction that ranked the last stage's documents; > 0: training on the document lowers
the reference loss. Samples are drawn from generators of the run's seed, so that a report written again shows the same
documents.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.decomposition import PCA

from quad_tasks.core.evaluation import diversity
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.report.finished_run import FinishedRun
from quad_tasks.report.model import DocumentMap, Example, Examples, Histogram
from quad_tasks.stages.bandit.ledger import find_arms, load_arms
from quad_tasks.stages.selection.select_documents import DIVERSITY_DOCUMENTS
from quad_tasks.storage.positions import column_vectors, read_positions

MAP_DOCUMENTS = 2000
EXAMPLES = 5
EXAMPLE_CHARACTERS = 600
BINS = 60
TAIL = 0.005
"""Share of the scored documents that lies beyond the histogram's first and last bin, and is counted in them."""


def histogram_of_influence(run: FinishedRun, drawn: pa.Table) -> Histogram:
    """Count documents scored at random, and those of them that were selected, by influence.

    Those drawn for their predicted influence are no sample of the pool: three quarters of them lie near the cut.
    """
    values, positions = (drawn.column(name).to_numpy() for name in ("influence", "position"))
    is_selected = np.isin(positions, run.chosen.column("position").to_numpy())
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    edges = np.linspace(low, high if high > low else low + 1e-12, BINS + 1)
    counts = [np.histogram(np.clip(some, low, high), edges)[0].tolist() for some in (values, values[is_selected])]
    return Histogram(bin_edges=edges.tolist(), scored=counts[0], selected=counts[1])


def example_documents(run: FinishedRun, threshold: float) -> Examples:
    """Read the documents of highest influence, nearest the threshold, and of lowest influence."""
    values = run.ranked.column("influence").to_numpy()
    order = np.argsort(-values, kind="stable")
    border = np.argsort(np.abs(values - threshold), kind="stable")
    best, borderline, worst = (_read_examples(run, rows[:EXAMPLES]) for rows in (order, border, order[::-1]))
    return Examples(best=best, borderline=borderline, worst=worst)


def map_documents(run: FinishedRun) -> DocumentMap:
    """Project a random sample of the pool on the first two principal components of its embeddings."""
    generator = make_generator(run.config.seed, Stream.REPORT_MAP)
    n = run.pool.documents
    positions = np.sort(generator.choice(n, min(n, MAP_DOCUMENTS), replace=False))
    rows = read_positions(run.store, run.version, positions, ["arm", "embedding"])
    plane = PCA(n_components=2, random_state=0).fit_transform(column_vectors(rows.column("embedding")))
    scored = (run.ranked.column(name).to_pylist() for name in ("position", "influence"))
    known = dict(zip(*scored, strict=True))
    return DocumentMap(
        x=np.round(plane[:, 0].astype(float), 4).tolist(),
        y=np.round(plane[:, 1].astype(float), 4).tolist(),
        arm=rows.column("arm").to_pylist(),
        influence=[known.get(position) for position in positions.tolist()],
        selected=np.isin(positions, run.chosen.column("position").to_numpy()).tolist(),
    )


def measure_diversity(run: FinishedRun) -> dict[str, dict[str, float]]:
    """Measure diversity of a sample of the selection, and of as many documents chosen otherwise.

    Returns:
        Measures by how documents were chosen: `selected`; `random`, uniformly; `top_influence`, the best of those
        scored; `cluster_uniform`, from arms drawn uniformly.
    """
    generator = make_generator(run.config.seed, Stream.REPORT_DIVERSITY)
    selected = run.chosen.column("position").to_numpy()
    n = min(DIVERSITY_DOCUMENTS, len(selected))
    first_A, _ = find_arms(run.store, run.version)
    size_A = np.diff(first_A, append=run.pool.documents)
    order = np.argsort(-run.ranked.column("influence").to_numpy(), kind="stable")
    samples = {
        "selected": generator.choice(selected, n, replace=False),
        "random": generator.choice(run.pool.documents, n, replace=False),
        "top_influence": run.ranked.column("position").to_numpy()[order][:n],
        "cluster_uniform": _draw_from_arms(first_A, size_A, n, generator),
    }
    pool_counts = np.trim_zeros(load_arms(run.store, run.version).column("n_documents").to_numpy(), "b")
    return {name: _diversity_of(run, sample, pool_counts) for name, sample in samples.items()}


def _read_examples(run: FinishedRun, rows: npt.NDArray[np.int64]) -> tuple[Example, ...]:
    taken: pa.Table = run.ranked.take(rows)
    read = read_positions(run.store, run.version, taken.column("position").to_numpy(), ["text"])
    facts = taken.select(["id", "source", "arm", "influence", "n_tokens"]).to_pylist()
    texts = read.column("text").to_pylist()
    return tuple(
        Example(**fact, text=text[:EXAMPLE_CHARACTERS], characters_left_out=max(0, len(text) - EXAMPLE_CHARACTERS))
        for fact, text in zip(facts, texts, strict=True)
    )


def _diversity_of(
    run: FinishedRun, sample: npt.NDArray[np.int64], pool_counts: npt.NDArray[np.int64]
) -> dict[str, float]:
    rows = read_positions(run.store, run.version, sample, ["text", "arm", "embedding"])
    counts = np.bincount(rows.column("arm").to_numpy(), minlength=len(pool_counts))
    vectors = column_vectors(rows.column("embedding"))
    return diversity.diversity_profile(rows.column("text").to_pylist(), vectors, counts, pool_counts)


def _draw_from_arms(
    first_A: npt.NDArray[np.int64], size_A: npt.NDArray[np.int64], n: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw documents one after another: an arm uniformly, a document of it uniformly, those drawn before not again.

    Args:
        first_A: [A] position of the first document of each arm that has any.
        size_A: [A] documents of each.
        n: documents to draw, of no more than there are.
        generator: draws them.
    """
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < n:
        arms = generator.integers(len(first_A), size=n)
        drawn = np.concatenate([drawn, first_A[arms] + generator.integers(size_A[arms])])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:n]
