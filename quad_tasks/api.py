"""Use parts of the method alone, on your own model, texts, embeddings or scores, in one process.

Owns the conversion from texts to the core's batches, and a bandit over any scorer. `quad_tasks` exports these names and
imports nothing until one is used. Refuses to store, distribute or resume work: a run does that.

Shapes: N documents, D embedding, K arms, M documents scored, [O, I] a block's outputs and inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core import bandit, ekfac, influence
from quad_tasks.core.blocks import Attention
from quad_tasks.core.clustering import embed_texts, kmeans
from quad_tasks.core.evaluation import diversity
from quad_tasks.core.group_sums import group_sums
from quad_tasks.core.lm.batching import make_batches, split_windows
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.loss import Fisher
from quad_tasks.core.seeds import label_seed
from quad_tasks.records import BanditState, Pull

WINDOW_TOKENS = 256
BATCH_TOKENS = 2048
Direction = dict[str, Tensor]
Scorer = Callable[[int, int, int], npt.ArrayLike]


@dataclass(frozen=True)
class Pulled:
    """Documents scored by a bandit, in order.

    Attributes:
        arm: [M] int64, the document's arm.
        row: [M] int64, the document's number in its arm.
        influence: [M] float64, the document's score.
        state: statistics of all arms at the end.
    """

    arm: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    influence: npt.NDArray[np.float64]
    state: BanditState


def fit_text_factors(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    texts: Sequence[str],
    window_tokens: int = WINDOW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    attention: Attention = "joint",
    fisher: Fisher = "true",
    seed: int = 0,
) -> ekfac.Factors:
    """Fit EK-FAC factors of the training loss's curvature on a sample of the pretraining distribution.

    Args:
        model: a causal language model of a supported architecture; left as it was found.
        tokenizer: the model's own.
        texts: a few hundred documents of the pool; the first window of each is used, texts of one token are left out.
        window_tokens: longest sequence, >= 2.
        batch_tokens: tokens of a batch, padding included.
        attention: query, key and value as one block, one block each, or left out.
        fisher: labels sampled from the model, or the texts' own.
        seed: seed of the sampled labels.

    Returns:
        The factors.

    Raises:
        ValueError: no text has two tokens.
        UnsupportedLayer: the model has a layer that no block covers.
    """
    windows = [split_windows(ids, window_tokens)[0] for ids in encode(tokenizer, texts) if len(ids) >= 2]
    if not windows:
        raise ValueError("texts: expected one of at least two tokens, found none")
    seeds = [label_seed(seed, i) for i in range(len(windows))]
    batches, _ = make_batches(windows, window_tokens, batch_tokens, seeds)
    return ekfac.fit_factors(model, batches, attention, fisher)


def fit_text_direction(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    texts: Sequence[str],
    factors: ekfac.Factors,
    window_tokens: int = WINDOW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    damping_scale: float = 0.1,
) -> Direction:
    """Compute the direction of a reference set, v = (F + λI)^-1 g_r, along which texts are scored.

    Args:
        model: the model the factors were fitted on.
        tokenizer: the model's own.
        texts: the reference set: texts that the model should become good at.
        factors: from `fit_text_factors`.
        window_tokens: longest sequence, >= 2.
        batch_tokens: tokens of a batch, padding included.
        damping_scale: λ in units of each block's mean eigenvalue, > 0.

    Returns:
        The direction by block name, [O, I].

    Raises:
        ValueError: no text has two tokens, or the damping is not positive.
    """
    batches, _ = make_batches(encode(tokenizer, texts), window_tokens, batch_tokens)
    gradient = influence.reference_gradient(model, batches, factors.basis.blocks)
    return ekfac.apply_inverse(factors, gradient, damping_scale)


def score_texts(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    texts: Sequence[str],
    direction: Direction,
    window_tokens: int = WINDOW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
) -> npt.NDArray[np.float64]:
    """Score texts by their influence along a direction.

    Args:
        model: the model the direction was fitted on.
        tokenizer: the model's own.
        texts: of any length; a long text is scored window by window.
        direction: from `fit_text_direction`.
        window_tokens: longest sequence, >= 2.
        batch_tokens: tokens of a batch, padding included.

    Returns:
        [N] influence per target token; > 0: training on the text lowers the reference loss. NaN for a text of fewer
        than two tokens.

    Raises:
        ValueError: the direction belongs to another model.
    """
    batches, owner = make_batches(encode(tokenizer, texts), window_tokens, batch_tokens)
    if not batches:
        return np.full(len(texts), np.nan)
    scores = influence.score_documents(model, batches, direction)
    total, targets = (group_sums(part, owner.numpy(), len(texts)) for part in (scores.influence, scores.n_tokens))
    mean = np.full(len(texts), np.nan)
    np.divide(total, targets, out=mean, where=targets > 0)
    return mean


def pull_arms(
    n_documents: npt.ArrayLike,
    score: Scorer,
    max_documents: int,
    preset: Literal["paper", "thompson"] = "paper",
    alpha: float = bandit.PAPER_ALPHA,
    arms_per_round: int = bandit.ARMS_PER_ROUND,
    documents_per_pull: int = bandit.DOCUMENTS_PER_PULL,
    seed: int = 0,
) -> Pulled:
    """Run a multi-armed bandit on scores of any kind, until enough documents are scored or all arms are exhausted.

    Args:
        n_documents: [K] documents in each arm; they must be in random order within the arm.
        score: called with an arm, a first row and a number of rows; returns the influence of those documents.
        max_documents: no round starts once this many documents are scored.
        preset: the policy: the paper's UCB1 or Thompson sampling.
        alpha: weight of the exploration bonus of `paper`, >= 0.
        arms_per_round: k.
        documents_per_pull: m.
        seed: seed of ties and samples.

    Returns:
        The scored documents, round by round.

    Raises:
        ValueError: `score` returned a wrong number of scores.
    """
    if preset == "paper":
        policy = bandit.paper_policy(alpha, arms_per_round, documents_per_pull)
    else:
        policy = bandit.thompson_policy(arms_per_round, documents_per_pull)
    generator = np.random.default_rng(seed)
    state = bandit.initial_state(n_documents)
    scored: list[tuple[int, int, npt.NDArray[np.float64]]] = []
    while state.cursor.sum() < max_documents and len(arms := bandit.choose_arms(state, policy, generator)):
        pulls = []
        for arm in arms.tolist():
            row = int(state.cursor[arm])
            n = int(min(documents_per_pull, state.n_documents[arm] - row))
            given = np.asarray(score(arm, row, n), dtype=np.float64)
            if given.shape != (n,):
                raise ValueError(f"score: expected {n} scores of arm {arm} from row {row}, got shape {given.shape}")
            scored.append((arm, row, given))
            pulls.append(Pull(arm, row, n, n, float(given.mean()), float(given.var())))
        state = bandit.update(state, pulls, policy)
    return Pulled(
        np.concatenate([np.full(len(given), arm) for arm, _, given in scored] or [np.empty(0, np.int64)]),
        np.concatenate([row + np.arange(len(given)) for _, row, given in scored] or [np.empty(0, np.int64)]),
        np.concatenate([given for _, _, given in scored] or [np.empty(0)]),
        state,
    )


def cluster_embeddings(
    embeddings: npt.NDArray[np.floating], arms: int, seed: int = 0, spherical: bool = False
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Cluster embeddings into arms by k-means.

    Args:
        embeddings: [N, D] embeddings.
        arms: number of clusters K, 1 to N.
        seed: seed of the initial centroids.
        spherical: scale centroids to norm 1.

    Returns:
        The arm of each document, [N] int32, and the centroids, [K, D] float32.

    Raises:
        ValueError: more arms than documents.
    """
    rows = np.ascontiguousarray(embeddings, np.float32)
    centroids = kmeans.train_centroids(rows, arms, seed, spherical=spherical)
    return kmeans.assign_arms(rows, centroids)[0], centroids


def measure_diversity(texts: Sequence[str], dimension: int = 128, seed: int = 0) -> dict[str, float]:
    """Measure the diversity of texts; compare only equal numbers of them.

    Args:
        texts: texts in random order.
        dimension: dimension of the n-gram embeddings used to compare texts.
        seed: seed of their fit.

    Returns:
        `vendi_score` (effective number of distinct texts, 1 to N), `distinct_1grams` and `distinct_3grams` (share of
        distinct word n-grams), `compression_ratio` (bytes before over after, higher: more redundant), and
        `near_duplicate_rate` (share of texts with another at a cosine of 0.99 or more).

    Raises:
        ValueError: there is no text.
    """
    vectors = embed_texts.embed_ngrams(embed_texts.fit_ngram_embedder(texts, dimension, seed), texts)
    return {
        "vendi_score": diversity.vendi_score(vectors),
        **{f"distinct_{n}grams": diversity.distinct_ngrams(texts, n) for n in diversity.DISTINCT_SIZES},
        "compression_ratio": diversity.compression_ratio(texts),
        "near_duplicate_rate": diversity.near_duplicate_rate(vectors),
    }
