"""Many arms: how many documents come to their nearest centroid, and in what time, beside comparing with every one.

    python tests/benchmarks/bench_clustering.py [--arms 40000] [--data FOLDER] [--json]

DATA is a folder of input files, whose texts are embedded by their n-grams (128 dimensions); without it vectors are
made up: six times the arms, around centres that are an eighth of the arms. Half of the vectors train the
centroids, 20,000 of the other half are assigned. One thread. `recall` is the share that comes to its nearest centroid,
`distance_ratio` the sum of squared distances over the least there is, `speed` the time of comparing with every centroid
over that of the search, for each number of lists searched; the product searches `PROBED_LISTS`.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from quad_tasks.core.clustering import kmeans
from quad_tasks.core.clustering.embed_texts import embed_ngrams, fit_ngram_embedder
from quad_tasks.records import Document
from quad_tasks.storage.input_documents import Fields, read_documents

ASSIGNED = 20_000
PASSAGE_CHARACTERS = 300
SPREAD = 0.5


def made_up(n: int, centres: int) -> npt.NDArray[np.float32]:
    """Draw unit vectors of 64 dimensions around random centres."""
    generator = np.random.default_rng(0)
    middle = generator.normal(size=(centres, 64))
    vectors = middle[generator.integers(0, centres, n)] + SPREAD * generator.normal(size=(n, 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embed_passages(folder: Path, n: int) -> npt.NDArray[np.float32]:
    """Embed passages of a folder's documents by their n-grams, in an order drawn at random."""
    records = itertools.chain.from_iterable(read_documents(str(path), Fields()) for path in sorted(folder.iterdir()))
    texts = (record.text for record in records if isinstance(record, Document))
    cut = (t[i : i + PASSAGE_CHARACTERS] for t in texts for i in range(0, len(t), PASSAGE_CHARACTERS))
    passages = np.random.default_rng(0).permutation(np.array(list(cut), dtype=object))[:n].tolist()
    return embed_ngrams(fit_ngram_embedder(passages[:10_000], 128, 0), passages)


def measure(vectors: npt.NDArray[np.float32], arms: int) -> dict[str, Any]:
    """Train on half of the vectors, assign of the others, both ways."""
    half = len(vectors) // 2
    started = time.perf_counter()
    centroids = kmeans.train_centroids(vectors[:half], arms, 0, 10)
    trained = time.perf_counter()
    asked = vectors[half : half + ASSIGNED]
    nearest = faiss.knn(asked, centroids, 1)[1][:, 0]
    exact = time.perf_counter()
    index = kmeans.index_centroids(centroids)
    built = time.perf_counter()
    least = np.square(asked - centroids[nearest]).sum()
    searched = []
    for lists in (4, 8, 16, 32):
        index.nprobe = lists
        begun = time.perf_counter()
        arm, squared = kmeans.assign_arms(asked, centroids, index)
        searched.append(
            {
                "lists": lists,
                "recall": round(float((arm == nearest).mean()), 4),
                "distance_ratio": round(float(squared.sum() / least), 5),
                "speed": round((exact - trained) / (time.perf_counter() - begun), 2),
            }
        )
    return {
        "vectors": len(vectors),
        "arms": arms,
        "train_s": round(trained - started, 1),
        "exact_s": round(exact - trained, 1),
        "index_s": round(built - exact, 1),
        "searched": searched,
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arms", type=int, default=40_000)
    parser.add_argument("--data", type=Path, help="folder of input files; none: made-up vectors")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    kmeans.EXACT_ARMS = min(kmeans.EXACT_ARMS, arguments.arms - 1)
    n = 6 * arguments.arms
    vectors = embed_passages(arguments.data, n) if arguments.data else made_up(n, arguments.arms // 8)
    print(json.dumps(measure(vectors, arguments.arms), indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
