"""How much of the achievable influence is reached when only a share of the pool is scored, and how fast a round is.

The truth: every document of a sample of the shared data scored once, by a small Llama trained on a part of it, against
LAMBADA passages. A strategy sees the truth of the documents it pays for and predicts the rest; the best eighth of the
pool by measured or predicted influence is its selection.

    share = (mean influence of the selection - mean of the pool) / (mean of the true best eighth - mean of the pool)

    python tests/benchmarks/bench_bandit.py [--cache DIRECTORY] [--json] [--only STRATEGY ... | --neighbours]

Strategies: the plain names do what a run does by default: a random pilot, then rounds that pull arms and draw the
other three quarters of their documents near the selection's cut, refitting as scores grow, on n-gram embeddings and
length. `paper`, `contextual`, `thompson` and `uniform` do so with each policy, the last pulling arms at random.
`states` has the model's hidden states and loss among the candidate features; `instead_of_states` spends on scores
what reading the pool for them takes, a third of scoring it. `random` draws all documents at random; `arm_means` also
ranks the unscored by their arm alone. The truth is built once (about 10 minutes on one idle core) and kept under
--cache.

Shape suffixes: N documents, D features, K arms.
"""

import argparse
import gzip
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.config import BanditConfig
from quad_tasks.core.bandit import (
    choose_arms,
    contextual_policy,
    initial_state,
    paper_policy,
    thompson_policy,
    update,
)
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.contextual import arm_features
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.embedding import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.kmeans import assign_arms, train_centroids
from quad_tasks.core.model import LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.prediction import active_draw, document_features, feature_groups, fit_predictor, predict
from quad_tasks.core.states import losses_and_states
from quad_tasks.core.training import Schedule, make_optimizer, train
from quad_tasks.core.wasserstein import choose_bandwidth, neighbour_lists
from quad_tasks.records import Pull
from quad_tasks.state import REFIT_GROWTH

Arrays = dict[str, npt.NDArray[Any]]

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
N_DOCUMENTS = 16_000
N_REFERENCE = 400
N_TRAINED = 6_400
N_FACTORS = 768
WINDOW = 128
BATCH_TOKENS = 1024
VOCABULARY = 4096
SIZE = LlamaSize(width=160, layers=3, heads=5, key_value_heads=5, mlp_width=432)
PEAK_RATE = 3e-3
N_ARMS = 100
SELECTED_SHARE = 1 / 8
SCORED_SHARES = (0.05, 0.10, 0.16)
PILOT = BanditConfig().pilot_documents
PULL = BanditConfig().documents_per_pull
RANDOM_PULL = PULL - int(BanditConfig().active_share * PULL)
SEEDS = 5
FORWARD_SHARE = 1 / 3
"""What reading the pool takes, of scoring it."""
DEFAULT = BanditConfig().preset
K_M = {"arms_per_round": BanditConfig().arms_per_round, "documents_per_pull": RANDOM_PULL}
POLICIES = {
    "paper": paper_policy(**K_M),
    "contextual": contextual_policy(**K_M),
    "thompson": thompson_policy(**K_M),
    "uniform": paper_policy(**K_M),
}


def read_texts(folder: Path) -> list[str]:
    """All texts of a folder's shards, in the order of their names."""
    texts = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def build_truth(seed: int = 0) -> Arrays:
    """Train the model, score every document, and keep what a strategy may use as features."""
    generator = np.random.default_rng(seed)
    pool = read_texts(DATA / "candidate")
    texts = [pool[i] for i in generator.choice(len(pool), size=N_DOCUMENTS, replace=False)]
    tokenizer = train_tokenizer(texts[:N_TRAINED], VOCABULARY)
    ids = [tokens[:WINDOW] for tokens in encode(tokenizer, texts)]
    reference = [tokens[:WINDOW] for tokens in encode(tokenizer, read_texts(DATA / "reference")[:N_REFERENCE])]
    model = fresh_llama(SIZE, len(tokenizer), WINDOW, seed)
    n_tokens = sum(len(tokens) for tokens in ids[:N_TRAINED])
    schedule = Schedule(PEAK_RATE, 0.05 * n_tokens, n_tokens)
    train(model, make_optimizer(model, 0.01), ids[:N_TRAINED], schedule, 0, WINDOW, 2 * BATCH_TOKENS, generator)
    log(f"trained on {n_tokens} tokens")
    factor_batches, _ = make_batches(ids[-N_FACTORS:], WINDOW, BATCH_TOKENS)
    factors = fit_factors(model, factor_batches, generator=torch.Generator().manual_seed(seed))
    reference_batches, _ = make_batches(reference, WINDOW, BATCH_TOKENS)
    direction = apply_inverse(factors, reference_gradient(model, reference_batches, find_blocks(model)))
    log("fitted the direction")
    batches, owners = make_batches(ids, WINDOW, BATCH_TOKENS)
    scores = score_documents(model, batches, direction)
    log("scored every document")
    rows = np.argsort(owners.numpy())
    loss, hidden = losses_and_states(model, batches)
    embeddings = embed_ngrams(fit_ngram_embedder(texts), texts)
    return {
        "influence": (scores.influence / scores.n_tokens)[rows],
        "hidden": hidden[rows],
        "loss": loss[rows],
        "embedding": embeddings,
        "arm": assign_arms(embeddings, train_centroids(embeddings, N_ARMS, seed))[0],
        "n_tokens": np.array([len(tokens) for tokens in ids]),
        "n_bytes": np.array([len(text.encode()) for text in texts]),
    }


def load_truth(cache: Path) -> Arrays:
    """The truth, built where the cache does not hold it."""
    path = cache / "truth.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, **build_truth())
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def share_reached(truth: Arrays, estimate_N: npt.NDArray[np.float64]) -> float:
    """Share of the achievable influence that the best eighth by an estimate reaches."""
    influence_N = truth["influence"]
    n_selected = int(SELECTED_SHARE * len(influence_N))
    selected = np.argsort(-estimate_N, kind="stable")[:n_selected]
    mean, best = influence_N.mean(), np.sort(influence_N)[-n_selected:].mean()
    return float((influence_N[selected].mean() - mean) / (best - mean))


class Known(NamedTuple):
    """What influence is predicted from: [N, D] features, and their groups."""

    features_ND: npt.NDArray[np.float64]
    groups: dict[str, slice] | None


def estimate(
    truth: Arrays,
    known: Known,
    scored: npt.NDArray[np.int64],
    generator: np.random.Generator,
    at_random_N: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """Influence as measured where scored, else as predicted."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    measured = (known.features_ND[scored], influence_N[scored], arm_N[scored])
    predictor = fit_predictor(
        *measured, N_ARMS, generator, known.groups, None if at_random_N is None else at_random_N[scored]
    )
    estimate_N = predict(predictor, known.features_ND, arm_N)
    estimate_N[scored] = influence_N[scored]
    return estimate_N


def random_share(truth: Arrays, known: Known, n_scored: int, generator: np.random.Generator) -> float:
    """Score documents at random."""
    scored = generator.choice(len(known.features_ND), size=n_scored, replace=False)
    return share_reached(truth, estimate(truth, known, scored, generator))


def run_share(
    truth: Arrays, known: Known, n_scored: int, generator: np.random.Generator, preset: str = DEFAULT
) -> float:
    """Score as a run does (`quad_tasks.pull`): a pilot, then rounds of pulls and of documents near the cut."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    size_K = np.bincount(arm_N, minlength=N_ARMS)
    arms = [generator.permutation(np.flatnonzero(arm_N == arm)) for arm in range(N_ARMS)]
    policy, state = POLICIES[preset], initial_state(size_K)
    about_KD = describe_arms(truth)
    scored_N, pulled_N = np.zeros(len(arm_N), dtype=bool), np.zeros(len(arm_N), dtype=bool)
    count_K = generator.multivariate_hypergeometric(size_K, PILOT, method="marginals")
    fitted, estimate_N, cut = 0, np.zeros(len(arm_N)), 0.0
    while True:
        pulls = []
        for arm in np.flatnonzero(count_K).tolist():
            cursor, n = int(state.cursor[arm]), int(count_K[arm])
            rows = arms[arm][cursor : cursor + n]
            scored_N[rows] = pulled_N[rows] = True
            pulls.append(Pull(arm, cursor, n, n, float(influence_N[rows].mean()), 0.0))
        if fitted:
            left = np.flatnonzero(~scored_N)
            n_active = int(np.clip(n_scored - scored_N.sum(), 0, len(pulls) * (PULL - RANDOM_PULL)))
            scored_N[left[active_draw(estimate_N[left], cut, n_active, 0.0, generator)[0]]] = True
        state = update(state, pulls, policy)
        if scored_N.sum() >= n_scored:
            return share_reached(truth, estimate(truth, known, np.flatnonzero(scored_N), generator, pulled_N))
        if scored_N.sum() >= REFIT_GROWTH * fitted:
            fitted = int(scored_N.sum())
            estimate_N = estimate(truth, known, np.flatnonzero(scored_N), generator, pulled_N)
            n_selected = int(SELECTED_SHARE * len(arm_N))
            cut = float(np.partition(estimate_N, -n_selected)[-n_selected])
        count_K = np.zeros_like(size_K)
        if preset == "uniform":
            open_K = np.flatnonzero(state.cursor < size_K)
            chosen = generator.choice(open_K, min(policy.arms_per_round, len(open_K)), replace=False)
        else:
            chosen = choose_arms(state, policy, generator, about_KD)
        count_K[chosen] = np.minimum(RANDOM_PULL, (size_K - state.cursor)[chosen])


def describe_arms(truth: Arrays) -> npt.NDArray[np.float64]:
    """What `contextual` knows of the arms."""
    arm_N, size_K = truth["arm"], np.bincount(truth["arm"], minlength=N_ARMS)
    centroids_KD = np.stack([truth["embedding"][arm_N == arm].mean(axis=0) for arm in range(N_ARMS)])
    return arm_features(centroids_KD, size_K, np.bincount(arm_N, truth["n_tokens"], N_ARMS).astype(np.int64))


def measure_shares(truth: Arrays, only: Sequence[str] = ()) -> dict[str, float]:
    """Every strategy's share at every budget, mean over seeds, with its deviation between them; or those of some."""
    documents = truth["embedding"], truth["n_tokens"], truth["n_bytes"]
    dimension = truth["embedding"].shape[1]
    plain = Known(document_features(*documents), feature_groups(dimension))
    width = truth["hidden"].shape[1]
    full = Known(
        document_features(*documents, truth["hidden"], truth["loss"]), feature_groups(dimension, width, loss=True)
    )
    blind = Known(np.zeros((len(truth["arm"]), 1)), None)
    strategies: dict[str, tuple[Callable[..., float], Known, float]] = {
        **{preset: (partial(run_share, preset=preset), plain, 0.0) for preset in POLICIES},
        "states": (run_share, full, 0.0),
        "instead_of_states": (run_share, plain, FORWARD_SHARE),
        "random": (random_share, plain, 0.0),
        "arm_means": (random_share, blind, 0.0),
    }
    shares = {}
    for name in only or strategies:
        strategy, known, more = strategies[name]
        for scored_share in SCORED_SHARES:
            n_scored, at = int((scored_share + more) * len(truth["arm"])), f"at_{round(100 * scored_share):02d}"
            runs = [strategy(truth, known, n_scored, np.random.default_rng(seed)) for seed in range(SEEDS)]
            measured = {f"share_{at}": float(np.mean(runs)), f"deviation_{at}": float(np.std(runs, ddof=1))}
            for key, value in measured.items():
                shares[f"{name}_{key}"] = round(value, 4)
                if name == DEFAULT:
                    shares[key] = round(value, 4)
            log(f"{name} {at} {np.mean(runs):.4f} +- {np.std(runs, ddof=1):.4f}")
    return shares


def measure_rounds() -> dict[str, float]:
    """Milliseconds to choose and update in a round of 50 pulls."""
    generator = np.random.default_rng(0)
    few_KD, many_KD = generator.normal(size=(10_000, 34)), generator.normal(size=(1_000_000, 34))
    return {
        "paper_round_ms_10k_arms": round_ms(10_000, paper_policy(arms_per_round=50)),
        "paper_round_ms_1m_arms": round_ms(1_000_000, paper_policy(arms_per_round=50)),
        "contextual_round_ms_10k_arms": round_ms(10_000, contextual_policy(arms_per_round=50), few_KD),
        "contextual_round_ms_1m_arms": round_ms(1_000_000, contextual_policy(arms_per_round=50), many_KD),
    }


def round_ms(n_arms: int, policy: Any, features_KD: npt.NDArray[np.float64] | None = None) -> float:
    """Milliseconds of the fastest of five rounds after the first, in which nothing is known yet."""
    generator, state, times = np.random.default_rng(0), initial_state(np.full(n_arms, 1000)), []
    for _ in range(6):
        start = time.perf_counter()
        arms = choose_arms(state, policy, generator, features_KD)
        chosen = time.perf_counter()
        pulls = [Pull(int(a), int(state.cursor[a]), 16, 1000, float(generator.normal()), 0.0) for a in arms]
        drawn = time.perf_counter()
        state = update(state, pulls, policy)
        times.append(chosen - start + time.perf_counter() - drawn)
    return round(1000 * min(times[1:]), 2)


def measure_neighbours(n_arms: int = 100_000, dimension: int = 384) -> dict[str, float]:
    """Seconds and peak memory of choosing a bandwidth and listing all neighbours of arms around a thousand topics."""
    generator = np.random.default_rng(0)
    topics_TD = generator.normal(size=(1000, dimension), scale=1 / np.sqrt(dimension))
    own_KD = generator.normal(size=(n_arms, dimension), scale=0.4 / np.sqrt(dimension))
    centroids_KD = (topics_TD[generator.integers(0, 1000, n_arms)] + own_KD).astype(np.float32)
    variances_KD = generator.gamma(4.0, 0.1 / dimension, (n_arms, dimension)).astype(np.float32)
    del own_KD
    start = time.perf_counter()
    bandwidth = choose_bandwidth(centroids_KD, variances_KD, generator)
    near = neighbour_lists(centroids_KD, variances_KD, bandwidth)
    return {
        "neighbours_s": round(time.perf_counter() - start, 1),
        "neighbours_median": float(np.median(np.diff(near.indptr))),
        "neighbours_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def log(message: str) -> None:
    """Say on stderr what was done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Run all of it and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("build/bench-bandit"), help="directory that keeps the truth")
    parser.add_argument("--neighbours", action="store_true", help="only list the neighbours of 100,000 arms of 384")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs="*", default=(), help="strategies; none: all")
    arguments = parser.parse_args()
    if arguments.neighbours:
        numbers = measure_neighbours()
    else:
        numbers = measure_shares(load_truth(arguments.cache), arguments.only) | measure_rounds()
    if arguments.json:
        print(json.dumps(numbers))
    else:
        print("\n".join(f"{name:32} {value}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
