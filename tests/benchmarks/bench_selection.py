"""Does Quad choose better than what people would use instead, on equal tokens from the same checkpoint?

A small Llama is trained on a sample of the shared pool. Every document of the sample is scored once against LAMBADA
passages, with and without the Hessian; a method sees only the scores that it pays for, and its time counts those at the
measured rate. Each method's selection is trained on from the checkpoint, three orders each, and the held-out reference
loss and the other domains' bits per byte are measured. `lds`: subsets retrained, summed influence against their loss.

    python tests/benchmarks/bench_selection.py --out tests/benchmarks/results [--part methods|lds]

`quad` does what a run does by default, by the product's own policies, draws, regression and budget (`quad_tasks.core`),
on scores looked up; it has no ledger and no storage.

Shape suffixes: N documents, D features, K arms.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bench_bandit import read_texts
from benchmark_model import SHARED
from benchmark_model import read_texts as read_domains
from transformers import PreTrainedModel

from quad_tasks.config import BanditConfig
from quad_tasks.core.bandit import Policy, choose_arms, initial_state, paper_policy, released_policy, update
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.embedding import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.influence import reference_gradient, score_directions
from quad_tasks.core.kmeans import arm_gaussians, arm_moments, assign_arms, train_centroids
from quad_tasks.core.loss import frozen, head_weight, hidden_states, losses, read_batch
from quad_tasks.core.model import LlamaSize, encode, fresh_llama, make_batches, train_tokenizer
from quad_tasks.core.prediction import active_draw, document_features, fit_predictor, predict, selection_cut
from quad_tasks.core.selection import Candidates, fill_budget, select
from quad_tasks.core.training import bits_per_byte, measure
from quad_tasks.core.wasserstein import Neighbours, neighbour_lists
from quad_tasks.experiments import baselines, outcome
from quad_tasks.records import Pull
from quad_tasks.state import REFIT_GROWTH

DATA = SHARED / "data"
N_DOCUMENTS = 5_000
N_REFERENCE = 300
N_MEASURED = 150
N_PER_DOMAIN = 16
N_FACTORS = 384
WINDOW = 128
BATCH_TOKENS = 1024
VOCABULARY = 2048
SIZE = LlamaSize(width=128, layers=2, heads=4, key_value_heads=4, mlp_width=344)
PEAK_RATE, CONTINUED_RATE = 6e-3, 1e-3
BUDGET_TOKENS = 40_000
N_ARMS = 100
SCORED_SHARE = 0.1
SEEDS = 3
N_SUBSETS = 24
SUBSET_DOCUMENTS = 256
RELEASED_THRESHOLD = 2e-3

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Setting:
    """A sample of the pool, a checkpoint trained on it, what is measured; built anew, always the same."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        pool = read_texts(DATA / "candidate")
        self.texts = [pool[i] for i in generator.choice(len(pool), size=N_DOCUMENTS, replace=False)]
        tokenizer = train_tokenizer(self.texts, VOCABULARY)

        def windows(texts: list[str]) -> list[list[int]]:
            return [tokens[:WINDOW] for tokens in encode(tokenizer, texts)]

        self.documents = windows(self.texts)
        self.reference_texts = read_texts(DATA / "reference")[:N_REFERENCE]
        self.reference = windows(self.reference_texts)
        self.measured = windows(read_domains(DATA / "heldout", N_MEASURED)["lambada"])
        others = read_domains(DATA / "heldout", N_PER_DOMAIN)
        self.heldout = {name: windows(texts) for name, texts in others.items() if name != "lambada"}
        self.n_bytes = {n: sum(len(tokenizer.decode(d).encode()) for d in ds) for n, ds in self.heldout.items()}
        self.n_tokens = np.array([len(d) for d in self.documents])
        model = fresh_llama(SIZE, len(tokenizer), WINDOW, 0)
        self.model = outcome.continue_training(model, self.documents, PEAK_RATE, WINDOW, BATCH_TOKENS, 0)
        log(f"trained on {self.n_tokens.sum()} tokens")

    def judge(self, rows: Int64, seed: int) -> tuple[float, float]:
        """Train on rows and measure: reference loss in nats per token, mean bits per byte of the other domains."""
        chosen = [self.documents[i] for i in rows]
        model = outcome.continue_training(self.model, chosen, CONTINUED_RATE, WINDOW, 2 * BATCH_TOKENS, seed)
        return self.reference_loss(model), self.other_domains(model)

    def reference_loss(self, model: PreTrainedModel) -> float:
        """Nats per token of held-out LAMBADA."""
        return outcome.loss_per_token(model, self.measured, WINDOW, BATCH_TOKENS)

    def other_domains(self, model: PreTrainedModel) -> float:
        """Mean over the other held-out domains, bits per byte."""
        values = []
        for name, documents in self.heldout.items():
            values.append(bits_per_byte(measure(model, documents, WINDOW, BATCH_TOKENS)[0], self.n_bytes[name]))
        return float(np.mean(values))


def directions(setting: Setting, attention: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reference gradient of some blocks, with and without the Hessian's inverse."""
    rows = np.random.default_rng(1).choice(N_DOCUMENTS, N_FACTORS, replace=False)
    sample, _ = make_batches([setting.documents[i] for i in rows], WINDOW, BATCH_TOKENS)
    factors = fit_factors(setting.model, sample, attention, generator=torch.Generator().manual_seed(0))
    batches, _ = make_batches(setting.reference, WINDOW, BATCH_TOKENS)
    gradient = reference_gradient(setting.model, batches, find_blocks(setting.model, attention))
    return apply_inverse(factors, gradient), gradient


def score(setting: Setting, rows: Int64, along: dict[str, Any]) -> dict[str, Float64]:
    """Summed influence of rows along each direction."""
    batches, owners = make_batches([setting.documents[i] for i in rows], WINDOW, BATCH_TOKENS)
    order = np.argsort(owners.numpy())
    return {n: s.influence[order] for n, s in score_directions(setting.model, batches, along).items()}


def document_losses(setting: Setting) -> Float64:
    """Loss per token of every document under the checkpoint."""
    batches, owners = make_batches(setting.documents, WINDOW, BATCH_TOKENS)
    means, head = [], head_weight(setting.model)
    with torch.inference_mode(), frozen(setting.model):
        for batch in batches:
            documents = read_batch(batch, head.device)
            loss_M = losses(hidden_states(setting.model, documents), head, documents)
            means += [float(part.mean()) for part in loss_M.split(documents.n_targets_N)]
    return np.array(means)[np.argsort(owners.numpy())]


def play(
    arm_N: npt.NDArray[np.int32],
    influence_N: Float64,
    policy: Policy,
    features_ND: Float64 | None,
    n_tokens_N: Int64,
    seed: int,
    neighbours: Neighbours | None = None,
) -> tuple[npt.NDArray[np.bool_], Float64]:
    """Score a share of the pool as a run does: a pilot, rounds of pulls, with features draws near the cut too.

    Returns:
        What was scored; influence measured where scored, else predicted (NaN without features).
    """
    generator = np.random.default_rng(seed)
    size_K = np.bincount(arm_N, minlength=N_ARMS)
    arms = [generator.permutation(np.flatnonzero(arm_N == arm)) for arm in range(N_ARMS)]
    state, scored_N = initial_state(size_K), np.zeros(len(arm_N), dtype=bool)
    n_scored, fitted, cut = int(SCORED_SHARE * len(arm_N)), 0, 0.0
    estimate_N = np.full(len(arm_N), np.nan)
    n_pilot = min(BanditConfig().pilot_documents, n_scored // 2)
    count_K = generator.multivariate_hypergeometric(size_K, n_pilot, method="marginals")
    active_per_pull = BanditConfig().documents_per_pull - policy.documents_per_pull
    while True:
        pulls = []
        for arm in np.flatnonzero(count_K).tolist():
            left = n_scored - int(scored_N.sum())
            cursor, n = int(state.cursor[arm]), min(int(count_K[arm]), left)
            if n <= 0:
                continue
            rows = arms[arm][cursor : cursor + n]
            scored_N[rows] = True
            pulls.append(Pull(arm, cursor, n, n, float(influence_N[rows].mean()), 0.0))
        if features_ND is not None and fitted:
            unscored = np.flatnonzero(~scored_N)
            n_active = int(np.clip(n_scored - scored_N.sum(), 0, len(pulls) * active_per_pull))
            scored_N[unscored[active_draw(estimate_N[unscored], cut, n_active, 0.0, generator)[0]]] = True
        state = update(state, pulls, policy, neighbours)
        done = scored_N.sum() >= n_scored or not pulls
        if features_ND is not None and (done or scored_N.sum() >= REFIT_GROWTH * fitted):
            rows = np.flatnonzero(scored_N)
            fitted = len(rows)
            predictor = fit_predictor(features_ND[rows], influence_N[rows], arm_N[rows], N_ARMS, generator)
            estimate_N = predict(predictor, features_ND, arm_N)
            cut = selection_cut(np.where(scored_N, influence_N, estimate_N), n_tokens_N, BUDGET_TOKENS)
        if done:
            return scored_N, np.where(scored_N, influence_N, estimate_N)
        count_K = np.zeros_like(size_K)
        chosen = choose_arms(state, policy, generator)
        count_K[chosen] = np.minimum(policy.documents_per_pull, (size_K - state.cursor)[chosen])


def measure_methods(setting: Setting) -> dict[str, Any]:
    """Select by every method, train on what it chose, measure."""
    n_tokens_N, everything = setting.n_tokens, np.arange(N_DOCUMENTS)
    started = time.perf_counter()
    inverse, gradient = directions(setting, "joint")
    fit_s, started = time.perf_counter() - started, time.perf_counter()
    scores = {n: s / (n_tokens_N - 1) for n, s in score(setting, everything, {"quad": inverse}).items()}
    score_s, started = time.perf_counter() - started, time.perf_counter()
    scores |= {n: s / (n_tokens_N - 1) for n, s in score(setting, everything, {"gradient": gradient}).items()}
    gradient_s = time.perf_counter() - started
    log("scored every document")
    started = time.perf_counter()
    loss_N = document_losses(setting)
    loss_s, started = time.perf_counter() - started, time.perf_counter()
    vectors = embed_ngrams(fit_ngram_embedder(setting.texts), setting.texts)
    centroids = train_centroids(vectors, N_ARMS, 0)
    arm_N = assign_arms(vectors, centroids)[0]
    gaussians = arm_gaussians(arm_moments(vectors, arm_N), centroids)
    policy = released_policy()
    near = neighbour_lists(*gaussians, policy.bandwidth or 0.0)
    cluster_s, started = time.perf_counter() - started, time.perf_counter()
    n_bytes = np.array([len(text.encode()) for text in setting.texts])
    features_ND = document_features(vectors, n_tokens_N, n_bytes)
    pull = BanditConfig().documents_per_pull
    paper = paper_policy(documents_per_pull=pull - int(BanditConfig().active_share * pull))

    def quad(seed: int) -> Int64:
        _, estimate_N = play(arm_N, scores["quad"], paper, features_ND, n_tokens_N, seed)
        return fill_budget(np.argsort(-estimate_N, kind="stable"), n_tokens_N, BUDGET_TOKENS)

    def released(seed: int) -> Int64:
        scored_N, influence_N = play(arm_N, scores["quad"], policy, None, n_tokens_N, seed, near)
        count_K = np.bincount(arm_N[scored_N], minlength=N_ARMS)
        total_K = np.bincount(arm_N[scored_N], weights=influence_N[scored_N], minlength=N_ARMS)
        mean_K = np.where(count_K > 0, total_K / np.maximum(count_K, 1), np.nan)
        candidates = Candidates(everything, arm_N, n_tokens_N, influence_N, scored_N)
        return select(candidates, BUDGET_TOKENS, RELEASED_THRESHOLD, "cluster", mean_K)

    def cut(order: Int64) -> Int64:
        return fill_budget(order, n_tokens_N, BUDGET_TOKENS)

    def drawn(seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, 1])

    texts, wanted = setting.texts, setting.reference_texts
    share, dsir = SCORED_SHARE, baselines.importance_order
    choices: dict[str, tuple[float, float, Any]] = {
        "random": (0, 0, lambda seed: cut(baselines.random_order(N_DOCUMENTS, drawn(seed)))),
        "cluster_uniform": (0, cluster_s, lambda seed: cut(baselines.cluster_uniform_order(arm_N, drawn(seed)))),
        "perplexity_lowest": (0, loss_s, lambda seed: cut(baselines.lowest_loss_order(loss_N))),
        "perplexity_middle": (0, loss_s, lambda seed: cut(baselines.middle_loss_order(loss_N))),
        "dsir": (0, 0, lambda seed: cut(dsir(texts, wanted, drawn(seed)))),
        "linear_classifier": (0, 0, lambda seed: cut(baselines.classifier_order(texts, wanted))),
        "gradient_dot_product": (1, gradient_s, lambda seed: cut(np.argsort(-scores["gradient"], kind="stable"))),
        "full_influence": (1, fit_s + score_s, lambda seed: cut(np.argsort(-scores["quad"], kind="stable"))),
        "released": (share, cluster_s + fit_s + share * score_s, released),
        "quad": (share, cluster_s + fit_s + share * score_s, quad),
    }
    methods = {}
    for name, (scored_share, shared_s, choose) in choices.items():
        judged, chosen_s, tokens = [], 0.0, []
        for seed in range(SEEDS):
            started = time.perf_counter()
            rows = choose(seed)
            chosen_s += (time.perf_counter() - started) / SEEDS
            tokens.append(int(n_tokens_N[rows].sum()))
            judged.append(setting.judge(rows, seed))
        reference, others = zip(*judged, strict=True)
        methods[name] = {
            "reference_loss": reference,
            "other_domains_bpb": others,
            "scored_share": scored_share,
            "time_s": shared_s + chosen_s,
            "tokens": tokens,
        }
        log(f"{name} {np.mean(reference):.4f} {np.mean(others):.4f}")
    loss = {name: method["reference_loss"] for name, method in methods.items()}
    gained = outcome.gain_share(loss["random"], loss["quad"], loss["full_influence"])
    bpb = {name: method["other_domains_bpb"] for name, method in methods.items()}
    return {
        "methods": methods,
        "before": {
            "reference_loss": setting.reference_loss(setting.model),
            "other_domains_bpb": setting.other_domains(setting.model),
        },
        "gain_share": gained["mean"],
        "gain_share_interval": [gained["low"], gained["high"]],
        "quad_less_other": {n: outcome.compare(loss["quad"], losses) for n, losses in loss.items() if n != "quad"},
        "quad_less_full_other_domains_bpb": outcome.compare(bpb["quad"], bpb["full_influence"]),
    }


def measure_lds(setting: Setting) -> dict[str, Any]:
    """Train on random subsets and correlate their loss with the influence that each kind of block sums to."""
    generator = np.random.default_rng(2)
    rows = generator.choice(N_DOCUMENTS, size=4 * SUBSET_DOCUMENTS, replace=False)
    subsets = [generator.choice(len(rows), SUBSET_DOCUMENTS, replace=False) for _ in range(N_SUBSETS)]
    after = []
    for subset in subsets:
        chosen = [setting.documents[i] for i in rows[subset]]
        model = outcome.continue_training(setting.model, chosen, CONTINUED_RATE, WINDOW, 2 * BATCH_TOKENS, 0)
        after.append(setting.reference_loss(model))
    log("trained on every subset")
    scores, cost = {}, {}
    for name, attention in (("joint", "joint"), ("split", "split"), ("mlp", "none")):
        started = time.perf_counter()
        inverse, gradient = directions(setting, attention)
        scores |= score(setting, rows, {name: inverse})
        cost[name] = time.perf_counter() - started
        if name == "joint":
            scores |= score(setting, rows, {"identity": gradient})
    found = {name: outcome.datamodelling_score(s, subsets, after) for name, s in scores.items()}
    return {
        "lds": {name: value["mean"] for name, value in found.items()},
        "lds_interval": {name: [value["low"], value["high"]] for name, value in found.items()},
        "lds_time_s": cost,
        "lds_subsets": N_SUBSETS,
    }


def log(message: str) -> None:
    """Say on stderr what was done, and when."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, merge with the other part's numbers, write JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of selection.json and selection.md")
    parser.add_argument("--part", choices=["methods", "lds"], help="one half, to be merged; default: both")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting, parts = Setting(), {"methods": measure_methods, "lds": measure_lds}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in [arguments.part] if arguments.part else parts:
        body = parts[part](setting)
        path = arguments.out / "selection.json"
        body = {**(json.loads(path.read_text()) if path.exists() else {}), **body}
        body |= {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, 1 core a part"}
        path.write_text(json.dumps(body, indent=1) + "\n")
        if part == "methods":
            (arguments.out / "selection.md").write_text(outcome.table(body["methods"]))


if __name__ == "__main__":
    main()
