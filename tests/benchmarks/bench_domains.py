"""Does influence put text like the reference above other text, on documents that no model or factor has seen?

Two models: a pretrained Llama of 260K parameters (TinyStories), with stories it tells itself as the reference, and a
GPT-2 trained here on the candidate pool, with LAMBADA passages as the reference. Measured: the probability that an
in-domain document has more influence per token than an out-of-domain one (the area under the ROC curve; 0.5 is chance).

    python tests/benchmarks/bench_domains.py [--json]
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmark_model import SHARED, read_texts, token_rows, train_on
from scipy.stats import mannwhitneyu
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.model import FastTokenizer, encode, load_model, load_tokenizer, make_batches, train_tokenizer

WINDOW = 96
BATCH_TOKENS = 1024
N_PER_DOMAIN = 24
IN_DOMAIN = ("lambada", "literature")
OUT_OF_DOMAIN = ("code", "legal", "biomedical", "techdocs", "math_latex")

Documents = Sequence[Sequence[int]]


def tell_stories(model: PreTrainedModel, n_stories: int, seed: int) -> list[list[int]]:
    """Sample stories from the model itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = torch.full((n_stories, 1), model.config.bos_token_id)
        stories: list[list[int]] = model.generate(
            start, do_sample=True, top_k=0, max_new_tokens=WINDOW - 1, attention_mask=torch.ones_like(start)
        ).tolist()
    return stories


def influence_per_token(
    model: PreTrainedModel, sample: Documents, reference: Documents, pool: Documents, attention: Attention = "joint"
) -> npt.NDArray[np.float64]:
    """Fit on the sample, aim at the reference, score the pool: [documents]."""
    sample_batches, _ = make_batches(sample, WINDOW, BATCH_TOKENS, seeds=range(len(sample)))
    factors = fit_factors(model, sample_batches, attention)
    reference_batches, _ = make_batches(reference, WINDOW, BATCH_TOKENS)
    gradient = reference_gradient(model, reference_batches, find_blocks(model, attention))
    batches, owners = make_batches(pool, WINDOW, BATCH_TOKENS)
    scores = score_documents(model, batches, apply_inverse(factors, gradient))
    per_token = np.empty(len(pool))
    per_token[owners.numpy()] = scores.influence / scores.n_tokens
    return per_token


def area_under_roc(inside: npt.NDArray[np.float64], outside: npt.NDArray[np.float64]) -> float:
    """Share of pairs in which the in-domain document is above."""
    return float(mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))


def separation(model: PreTrainedModel, sample: Documents, reference: Documents, domains: dict[str, Documents]) -> Any:
    """Measure mean influence per token of each domain and the separation of the first domains from the others."""
    pool = [document[:WINDOW] for documents in domains.values() for document in documents]
    labels = np.repeat(list(domains), [len(documents) for documents in domains.values()])
    influence = influence_per_token(model, sample, reference, pool)
    outside = np.isin(labels, OUT_OF_DOMAIN)
    return {
        "area_under_roc": area_under_roc(influence[~outside], influence[outside]),
        "mean_influence_per_token": {name: float(influence[labels == name].mean()) for name in domains},
    }


def heldout(tokenizer: FastTokenizer, names: Sequence[str]) -> dict[str, Documents]:
    """Tokenize held-out documents of these domains."""
    texts = read_texts(SHARED / "data" / "heldout", N_PER_DOMAIN)
    return {name: encode(tokenizer, texts[name]) for name in names}


def measure_stories() -> Any:
    """Measure on the pretrained Llama, new stories of its own against other domains."""
    model, tokenizer = (load(SHARED / "models" / "stories260K") for load in (load_model, load_tokenizer))
    outside = heldout(tokenizer, OUT_OF_DOMAIN)
    stories = tell_stories(model, 4 * N_PER_DOMAIN, seed=0)
    told, reference, new = stories[:N_PER_DOMAIN], stories[N_PER_DOMAIN : 3 * N_PER_DOMAIN], stories[3 * N_PER_DOMAIN :]
    candidates = [text for texts in read_texts(SHARED / "data" / "candidate", 4).values() for text in texts]
    sample = [*told, *(ids[:WINDOW] for ids in encode(tokenizer, candidates))]
    return separation(model, sample, reference, {"new_stories": new, **outside})


def measure_gpt2() -> Any:
    """Measure on a GPT-2 trained here, LAMBADA passages and novels against other domains."""
    texts = [text for part in read_texts(SHARED / "data" / "candidate", 250).values() for text in part]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[i] for i in order]
    tokenizer = train_tokenizer(texts, 2048)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=128, n_layer=3, n_head=4, n_positions=WINDOW, bos_token_id=0, eos_token_id=0
    )
    model: PreTrainedModel = GPT2LMHeadModel(config)
    train_on(model, token_rows(tokenizer, texts, WINDOW)[:6000], peak=1e-3)
    reference = encode(tokenizer, read_texts(SHARED / "data" / "reference", 64)["lambada"])
    sample = [ids[:WINDOW] for ids in encode(tokenizer, texts[:96])]
    domains = heldout(tokenizer, (*IN_DOMAIN, *OUT_OF_DOMAIN))
    return separation(model, sample, [ids[:WINDOW] for ids in reference], domains)


def main() -> None:
    """Parse the command line and print the report."""
    parser = argparse.ArgumentParser(description="Measure how influence separates domains.")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {"stories260K": measure_stories(), "gpt2": measure_gpt2()}
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for name, measured in report.items():
        print(f"{name:12} area under ROC {measured['area_under_roc']:.3f}")


if __name__ == "__main__":
    main()
