"""How much of the achievable influence is reached when only a share of the pool is scored, and how fast a round is.

The truth: every document of a sample of the shared data scored once, by a small Llama trained on a part of it, against
LAMBADA passages. A strategy sees the truth of the documents it pays for and predicts the rest; the best eighth of the
pool by measured or predicted influence is its selection.

    share = (mean influence of the selection - mean of the pool) / (mean of the true best eighth - mean of the pool)

    python tests/benchmarks/bench_bandit.py --cache DIRECTORY [--json]

Strategies: the plain names do what a run does by default: a random pilot, then rounds that pull arms by the paper's
policy and draw the other three quarters of their documents near the selection's cut, refitting as scores grow, on
n-gram embeddings; `hidden` does the same with the model's mean hidden states among the features; `random` draws all
documents at random; `arm_means` also ranks the unscored by their arm alone. The truth is built once (about 10 minutes
on one idle core) and kept under --cache.

Shape suffixes: N documents, D features, K arms.
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.config import BanditConfig
from quad_tasks.core.bandit import choose_arms, contextual_policy, initial_state, paper_policy, update
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.embedding import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.kmeans import assign_arms, train_centroids
from quad_tasks.core.loss import frozen
from quad_tasks.core.model import Batch, LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.prediction import active_draw, document_features, fit_predictor, predict
from quad_tasks.core.training import Schedule, make_optimizer, train
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
    embeddings = embed_ngrams(fit_ngram_embedder(texts), texts)
    return {
        "influence": (scores.influence / scores.n_tokens)[rows],
        "hidden": hidden_states(model, batches)[rows],
        "embedding": embeddings,
        "arm": assign_arms(embeddings, train_centroids(embeddings, N_ARMS, seed))[0],
        "n_tokens": np.array([len(tokens) for tokens in ids]),
        "n_bytes": np.array([len(text.encode()) for text in texts]),
    }


def hidden_states(model: Any, batches: Sequence[Batch]) -> npt.NDArray[np.float32]:
    """Mean final hidden state of each document, one forward pass, rows in batch order."""
    states = []
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            state = model.model(**batch, use_cache=False).last_hidden_state
            mask = batch["attention_mask"]
            states.append((state * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(states).numpy()


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


def estimate(
    truth: Arrays, features_ND: npt.NDArray[np.float64], scored: npt.NDArray[np.int64], generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Influence as measured where scored, else as predicted."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    predictor = fit_predictor(features_ND[scored], influence_N[scored], arm_N[scored], N_ARMS, generator)
    estimate_N = predict(predictor, features_ND, arm_N)
    estimate_N[scored] = influence_N[scored]
    return estimate_N


def random_share(
    truth: Arrays, features_ND: npt.NDArray[np.float64], n_scored: int, generator: np.random.Generator
) -> float:
    """Score documents at random."""
    scored = generator.choice(len(features_ND), size=n_scored, replace=False)
    return share_reached(truth, estimate(truth, features_ND, scored, generator))


def run_share(
    truth: Arrays, features_ND: npt.NDArray[np.float64], n_scored: int, generator: np.random.Generator
) -> float:
    """Score as a run does (`quad_tasks.pull`): a pilot, then rounds of pulls and of documents near the cut."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    size_K = np.bincount(arm_N, minlength=N_ARMS)
    arms = [generator.permutation(np.flatnonzero(arm_N == arm)) for arm in range(N_ARMS)]
    policy, state = paper_policy(documents_per_pull=RANDOM_PULL), initial_state(size_K)
    scored_N = np.zeros(len(arm_N), dtype=bool)
    count_K = generator.multivariate_hypergeometric(size_K, PILOT, method="marginals")
    fitted, estimate_N, cut = 0, np.zeros(len(arm_N)), 0.0
    while True:
        pulls = []
        for arm in np.flatnonzero(count_K).tolist():
            cursor, n = int(state.cursor[arm]), int(count_K[arm])
            rows = arms[arm][cursor : cursor + n]
            scored_N[rows] = True
            pulls.append(Pull(arm, cursor, n, n, float(influence_N[rows].mean()), 0.0))
        if fitted:
            left = np.flatnonzero(~scored_N)
            n_active = int(np.clip(n_scored - scored_N.sum(), 0, len(pulls) * (PULL - RANDOM_PULL)))
            scored_N[left[active_draw(estimate_N[left], cut, n_active, 0.0, generator)[0]]] = True
        state = update(state, pulls, policy)
        if scored_N.sum() >= n_scored:
            return share_reached(truth, estimate(truth, features_ND, np.flatnonzero(scored_N), generator))
        if scored_N.sum() >= REFIT_GROWTH * fitted:
            fitted = int(scored_N.sum())
            estimate_N = estimate(truth, features_ND, np.flatnonzero(scored_N), generator)
            n_selected = int(SELECTED_SHARE * len(arm_N))
            cut = float(np.partition(estimate_N, -n_selected)[-n_selected])
        count_K = np.zeros_like(size_K)
        chosen = choose_arms(state, policy, generator)
        count_K[chosen] = np.minimum(RANDOM_PULL, (size_K - state.cursor)[chosen])


def arm_mean_share(
    truth: Arrays, features_ND: npt.NDArray[np.float64], n_scored: int, generator: np.random.Generator
) -> float:
    """Score at random and rank the unscored by their arm's shrunken mean."""
    return random_share(truth, np.zeros((len(features_ND), 1)), n_scored, generator)


def measure_shares(truth: Arrays) -> dict[str, float]:
    """Every strategy's share at every budget, mean over seeds."""
    documents = truth["embedding"], truth["n_tokens"], truth["n_bytes"]
    plain_ND = document_features(*documents)
    full_ND = document_features(*documents, [truth["hidden"]])
    strategies: dict[str, tuple[Callable[..., float], npt.NDArray[np.float64]]] = {
        "": (run_share, plain_ND),
        "hidden_": (run_share, full_ND),
        "random_": (random_share, plain_ND),
        "arm_means_": (arm_mean_share, plain_ND),
    }
    shares = {}
    for name, (strategy, features_ND) in strategies.items():
        for scored_share in SCORED_SHARES:
            n_scored = int(scored_share * len(features_ND))
            runs = [strategy(truth, features_ND, n_scored, np.random.default_rng(seed)) for seed in range(SEEDS)]
            shares[f"{name}share_at_{round(100 * scored_share):02d}"] = round(float(np.mean(runs)), 4)
            log(f"{name}share_at_{round(100 * scored_share):02d} {np.mean(runs):.3f}")
    return shares


def measure_rounds() -> dict[str, float]:
    """Milliseconds to choose and update in a round of 50 pulls."""
    generator = np.random.default_rng(0)
    contextual_KD = generator.normal(size=(10_000, 34))
    return {
        "paper_round_ms_10k_arms": round_ms(10_000, paper_policy(arms_per_round=50)),
        "paper_round_ms_1m_arms": round_ms(1_000_000, paper_policy(arms_per_round=50)),
        "contextual_round_ms_10k_arms": round_ms(10_000, contextual_policy(arms_per_round=50), contextual_KD),
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


def log(message: str) -> None:
    """Say on stderr what was done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Run all of it and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="directory that keeps the truth")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    numbers = measure_shares(load_truth(arguments.cache)) | measure_rounds()
    if arguments.json:
        print(json.dumps(numbers))
    else:
        print("\n".join(f"{name:32} {value}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
