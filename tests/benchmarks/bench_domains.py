"""Does influence put text like the reference above other text, on documents that no model or factor has seen?

Two models: a Llama of 260K parameters pretrained on TinyStories, with simple stories as the reference (told by itself
at a low temperature; at temperature 1 the expected gradient would be zero), and a GPT-2 trained here on the candidate
pool, with LAMBADA passages, which are cut from novels. In-domain are new stories; new passages and novels. Measured:
the probability that an in-domain document has more influence per token than an out-of-domain one (the area under the
ROC curve; 0.5 is chance).

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
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.model import FastTokenizer, load_model
from quad_tasks.core.lm.tokenizer import encode, load_tokenizer, train_tokenizer

WINDOW = 96
BATCH_TOKENS = 1024
N_PER_DOMAIN = 24
N_REFERENCE = 64
STORY_TEMPERATURE = 0.6
IN_DOMAIN = ("lambada", "literature")
OUT_OF_DOMAIN = ("code", "legal", "biomedical", "techdocs", "math_latex")

Documents = Sequence[Sequence[int]]
Domains = dict[str, Documents]


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


def separation(
    model: PreTrainedModel, sample: Documents, reference: Documents, inside: Domains, outside: Domains
) -> dict[str, Any]:
    """Measure each domain's mean influence per token, and how far in-domain lies above out-of-domain."""
    domains = {**inside, **outside}
    labels = np.array([name for name, documents in domains.items() for _ in documents])
    influence = influence_per_token(model, sample, reference, [d for documents in domains.values() for d in documents])
    is_inside = np.isin(labels, list(inside))
    return {
        "area_under_roc": area_under_roc(influence[is_inside], influence[~is_inside]),
        "mean_influence_per_token": {name: float(influence[labels == name].mean()) for name in domains},
    }


def windows(tokenizer: FastTokenizer, texts: Sequence[str]) -> Documents:
    """Tokenize texts and keep the beginning of each."""
    return [ids[:WINDOW] for ids in encode(tokenizer, texts)]


def heldout(tokenizer: FastTokenizer, names: Sequence[str]) -> Domains:
    """Tokenize held-out documents of these domains."""
    texts = read_texts(SHARED / "data" / "heldout", N_PER_DOMAIN)
    return {name: windows(tokenizer, texts[name]) for name in names}


def tell_stories(model: PreTrainedModel, n_stories: int, seed: int) -> Documents:
    """Sample stories from the model itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = torch.full((n_stories, 1), model.config.bos_token_id)
        told = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=STORY_TEMPERATURE,
            max_new_tokens=WINDOW - 1,
        )
    stories: list[list[int]] = told.tolist()
    return stories


def candidates(n_per_domain: int) -> list[str]:
    """Read the first candidate texts of every domain, shuffled."""
    texts = [text for part in read_texts(SHARED / "data" / "candidate", n_per_domain).values() for text in part]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def measure_stories() -> dict[str, Any]:
    """Measure on the pretrained Llama."""
    source = SHARED / "models" / "stories260K"
    model, tokenizer = load_model(source), load_tokenizer(source)
    stories = tell_stories(model, 4 * N_PER_DOMAIN, seed=0)
    new, own, reference = (
        stories[start * N_PER_DOMAIN : stop * N_PER_DOMAIN] for start, stop in ((0, 1), (1, 2), (2, 4))
    )
    sample = [*own, *windows(tokenizer, candidates(4))]
    return separation(model, sample, reference, {"new_stories": new}, heldout(tokenizer, OUT_OF_DOMAIN))


def measure_gpt2() -> dict[str, Any]:
    """Measure on a GPT-2 trained here."""
    texts = candidates(250)
    tokenizer = train_tokenizer(texts, 2048)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=128, n_layer=3, n_head=4, n_positions=WINDOW, bos_token_id=0, eos_token_id=0
    )
    model: PreTrainedModel = GPT2LMHeadModel(config)
    train_on(model, token_rows(tokenizer, texts, WINDOW)[:4000], peak=1e-3)
    reference = windows(tokenizer, read_texts(SHARED / "data" / "reference", N_REFERENCE)["lambada"])
    inside, outside = heldout(tokenizer, IN_DOMAIN), heldout(tokenizer, OUT_OF_DOMAIN)
    return separation(model, windows(tokenizer, texts[:96]), reference, inside, outside)


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
