"""How much of the achievable influence is reached when only a share of the pool is scored, and how fast a round is.

The truth: every document of the testbed (`quad_tasks.experiments.lab.testbed`: 16,000 of the shared data, a small
Llama trained on a part of them, LAMBADA passages as the reference) scored once. A strategy sees the truth of the
documents it pays for and predicts the rest; the best eighth of the pool by measured or predicted influence is its
selection.

    share = (mean influence of the selection - mean of the pool) / (mean of the true best eighth - mean of the pool)

    python tests/benchmarks/bench_bandit.py [--json] [--quick] [--only STRATEGY ... | --likes | --neighbours]

Strategies: the plain names do what a run does by default: a random pilot, then rounds that pull arms and draw the
other three quarters of their documents near the selection's cut, refitting as scores grow, on n-gram embeddings, length
and token features. `paper`, `contextual`, `thompson` and `uniform` do so with each policy, the last pulling arms at
random. `embedding` leaves token features out; `states` has the model's hidden states and loss among the candidates too;
`instead_of_states` spends on scores what reading the pool for them takes, a third of scoring it. `random` draws all
documents at random; `arm_means` also ranks the unscored by their arm alone. The testbed is built once in the workspace
and is that of `bench_selection.py`.

Shape suffixes: N documents, D features, K arms.
"""

import argparse
import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prefect import flow

from flows.dask_cluster import dask_cluster
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.load import load_config
from quad_tasks.config.schema import BanditConfig, SelectionConfig
from quad_tasks.core.bandit import (
    choose_arms,
    contextual_policy,
    initial_state,
    paper_policy,
    thompson_policy,
    update,
)
from quad_tasks.core.contextual import arm_features
from quad_tasks.core.lm.token_features import project_embeddings, token_features
from quad_tasks.core.selection.features import FeatureMatrix, document_features
from quad_tasks.core.selection.in_memory_selection import Candidates, SelectionSettings, select
from quad_tasks.core.selection.minhash import shingles, signature
from quad_tasks.core.selection.near_duplicates import near_duplicates_by_text
from quad_tasks.core.selection.prediction import (
    fit_predictor,
    nearest_to_cut,
    predict,
)
from quad_tasks.core.wasserstein import choose_bandwidth, neighbour_lists
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.testbed import find_testbed
from quad_tasks.records import Pull
from quad_tasks.stages.bandit.ledger import REFIT_GROWTH
from quad_tasks.stages.bandit.round_settings import pull_sizes

Arrays = dict[str, npt.NDArray[Any]]

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / ".." / "shared" / "data"
FOLDERS = {"pool": "candidate", "reference": "reference", "heldout": "heldout"}
SELECTED_SHARE = 1 / 8
SCORED_SHARES = (0.05, 0.10, 0.16)
PILOT = BanditConfig().pilot_documents
SIZES = pull_sizes(BanditConfig())
PULL, RANDOM_PULL = SIZES.documents_per_pull, SIZES.random_documents
SEEDS = 5
FORWARD_SHARE = 1 / 3
"""What reading the pool takes, of scoring it."""
DEFAULT = BanditConfig().preset
K_M = {"arms_per_round": SIZES.arms_per_round, "documents_per_pull": RANDOM_PULL}
POLICIES = {
    "paper": paper_policy(**K_M),
    "contextual": contextual_policy(**K_M),
    "thompson": thompson_policy(**K_M),
    "uniform": paper_policy(**K_M),
}


@flow
def find_truth(workspace: str, quick: bool) -> Arrays:
    """Find the testbed's documents, or build it: influence, what may predict it, arms."""
    inputs = [f"{name}.inputs={DATA}/{folder}/*.jsonl.gz" for name, folder in FOLDERS.items()]
    config = load_config(HERE / "configs" / "lambada.yaml", inputs)
    with dask_cluster(ComputeConfig()):
        testbed = find_testbed(workspace, config, QUICK if quick else Size())
    embedding_VE = testbed.model.get_input_embeddings().weight.detach().numpy()
    return {
        "influence": testbed.per_token(),
        "hidden": testbed.hidden,
        "loss": testbed.loss,
        "tokens": token_features(testbed.documents, project_embeddings(embedding_VE)),
        "embedding": testbed.embedding,
        "arm": testbed.arm.astype(np.int32),
        "n_tokens": testbed.n_tokens,
        "n_bytes": np.array([len(text.encode()) for text in testbed.texts.pool]),
        "text": np.array(testbed.texts.pool, dtype=object),
    }


def share_reached(truth: Arrays, estimate_N: npt.NDArray[np.float64]) -> float:
    """Share of the achievable influence that the best eighth by an estimate reaches."""
    influence_N = truth["influence"]
    n_selected = int(SELECTED_SHARE * len(influence_N))
    selected = np.argsort(-estimate_N, kind="stable")[:n_selected]
    mean, best = influence_N.mean(), np.sort(influence_N)[-n_selected:].mean()
    return float((influence_N[selected].mean() - mean) / (best - mean))


def estimate(
    truth: Arrays,
    known: FeatureMatrix,
    scored: npt.NDArray[np.int64],
    generator: np.random.Generator,
    at_random_N: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """Influence as measured where scored, else as predicted."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    measured = (known.values_NC[scored], influence_N[scored], arm_N[scored])
    n_arms = int(arm_N.max()) + 1
    predictor = fit_predictor(
        *measured, n_arms, generator, known.groups, None if at_random_N is None else at_random_N[scored]
    )
    estimate_N = predict(predictor, known.values_NC, arm_N)
    estimate_N[scored] = influence_N[scored]
    return estimate_N


def random_share(truth: Arrays, known: FeatureMatrix, n_scored: int, generator: np.random.Generator) -> float:
    """Score documents at random."""
    scored = generator.choice(len(known.values_NC), size=n_scored, replace=False)
    return share_reached(truth, estimate(truth, known, scored, generator))


def run_share(
    truth: Arrays, known: FeatureMatrix, n_scored: int, generator: np.random.Generator, preset: str = DEFAULT
) -> float:
    """Score as a run does (`quad_tasks.stages.bandit`): a pilot, then rounds of pulls and of documents near the cut."""
    influence_N, arm_N = truth["influence"], truth["arm"]
    size_K = np.bincount(arm_N)
    n_arms = len(size_K)
    arms = [generator.permutation(np.flatnonzero(arm_N == arm)) for arm in range(n_arms)]
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
            generator.permutation(len(left))  # the random stream stays that of the published results
            scored_N[left[nearest_to_cut(estimate_N[left], cut, n_active)]] = True
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
    arm_N, size_K = truth["arm"], np.bincount(truth["arm"])
    centroids_KD = np.stack([truth["embedding"][arm_N == arm].mean(axis=0) for arm in range(len(size_K))])
    return arm_features(centroids_KD, size_K, np.bincount(arm_N, truth["n_tokens"]).astype(np.int64))


def measure_shares(truth: Arrays, only: Sequence[str] = ()) -> dict[str, float]:
    """Every strategy's share at every budget, mean over seeds, with its deviation between them; or those of some."""
    documents = truth["embedding"], truth["n_tokens"], truth["n_bytes"]
    plain = document_features(*documents)
    tokens = document_features(*documents, tokens_NF=truth["tokens"])
    states = document_features(*documents, tokens_NF=truth["tokens"], states_NH=truth["hidden"], loss_N=truth["loss"])
    blind = FeatureMatrix(np.zeros((len(truth["arm"]), 1)), {"none": slice(0, 1)})
    strategies: dict[str, tuple[Callable[..., float], FeatureMatrix, float]] = {
        **{preset: (partial(run_share, preset=preset), tokens, 0.0) for preset in POLICIES},
        "embedding": (run_share, plain, 0.0),
        "states": (run_share, states, 0.0),
        "instead_of_states": (run_share, tokens, FORWARD_SHARE),
        "random": (random_share, tokens, 0.0),
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


def measure_likes(truth: Arrays) -> dict[str, float]:
    """Pairs of near-identical texts in a selection of an eighth of the tokens, half of it general, without and with."""
    n = len(truth["arm"])
    known = np.ones(n, dtype=bool)
    pool = Candidates(np.arange(n), truth["arm"], truth["n_tokens"], truth["influence"], known)
    cut = [shingles(text) for text in truth["text"]]
    signatures_NP = np.stack([signature(each) for each in cut])
    overlap = SelectionConfig(budget_tokens=1).near_duplicate_overlap or 1.0

    def find_near_duplicates(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rows[
            near_duplicates_by_text(signatures_NP[rows], lambda found: [cut[row] for row in rows[found]], overlap)
        ]

    budget, measured = int(truth["n_tokens"].sum() * SELECTED_SHARE), {}
    for name, search in (("kept", None), ("searched", find_near_duplicates)):
        started, generator = time.perf_counter(), np.random.default_rng(0)
        rules = SelectionSettings(0.0, "instance", general_share=0.5)
        rows = select(pool, budget, rules, generator=generator, find_near_duplicates=search)
        measured[f"likes_{name}_s"] = round(time.perf_counter() - started, 2)
        measured[f"likes_{name}_tokens"] = int(truth["n_tokens"][rows].sum())
        measured[f"likes_{name}_pairs"] = count_alike([truth["text"][row] for row in rows], overlap)
    return {**measured, "likes_budget_tokens": budget}


def count_alike(texts: Sequence[str], threshold: float) -> int:
    """Count pairs of texts whose five-word tuples have at least this Jaccard similarity, by counting all of them."""
    having: dict[tuple[str, ...], list[int]] = {}
    sets, alike = [], 0
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.casefold())
        own = {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}
        shared = Counter(j for each in own for j in having.get(each, ()))
        alike += sum(k >= threshold * (len(own) + len(sets[j]) - k) for j, k in shared.items())
        for each in own:
            having.setdefault(each, []).append(i)
        sets.append(own)
    return alike


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
    parser.add_argument("--workspace", default="build/bench-selection", help="stores the testbed")
    parser.add_argument("--quick", action="store_true", help="a small testbed: does it run?")
    parser.add_argument("--neighbours", action="store_true", help="only list the neighbours of 100,000 arms of 384")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--likes", action="store_true", help="only count near-identical texts in a selection")
    parser.add_argument("--only", nargs="*", default=(), help="strategies; none: all")
    arguments = parser.parse_args()
    if arguments.neighbours:
        numbers = measure_neighbours()
    elif arguments.likes:
        numbers = measure_likes(find_truth(arguments.workspace, arguments.quick))
    else:
        numbers = measure_shares(find_truth(arguments.workspace, arguments.quick), arguments.only) | measure_rounds()
    if arguments.json:
        print(json.dumps(numbers))
    else:
        print("\n".join(f"{name:32} {value}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
