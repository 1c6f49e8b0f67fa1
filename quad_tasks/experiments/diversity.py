"""Experiment "diversity": what Quad and nine other ways choose on equal tokens, and what training on it is worth.

Every method sees only the scores it pays for, and its time and FLOPs count those at the laboratory's measured rate. The
models trained on a laboratory's choices start from its checkpoint. All is repeated in several laboratories, since which
method leads moves more with the checkpoint than with the seeds of choice and training. Quad's choice is a run's, on
scores looked up (`lookup.py`).

Shape suffixes: N documents, K arms.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quad_tasks.compute import spread
from quad_tasks.config import RunConfig
from quad_tasks.core.bandit import released_policy
from quad_tasks.core.kmeans import arm_gaussians, arm_moments
from quad_tasks.core.selection import fill_budget
from quad_tasks.core.wasserstein import neighbour_lists
from quad_tasks.experiments import baselines, lookup, outcome
from quad_tasks.experiments.diversity_report import draw, tables
from quad_tasks.experiments.experiment import Experiment
from quad_tasks.experiments.laboratory import Laboratory, find_laboratories, open_laboratory, prediction_features
from quad_tasks.experiments.sample import QUICK, Size
from quad_tasks.experiments.trials import measure_model, profile, train_trials

Int64 = npt.NDArray[np.int64]

SCORED_SHARE = 0.1
GENERAL_SHARES = (0.0, 0.1)
"""Tried beside a run's default."""
RELEASED_THRESHOLD = 2e-3
MEASURED = ("reference_loss", "other_domains_bpb", "worst_domain_bpb")
FORWARD_FLOPS, SCORING_FLOPS, FACTOR_FLOPS = 2, 6, 12
"""Per parameter and token: a forward pass; with activations' backward and the contraction; two passes of a fit."""


class Method(NamedTuple):
    """A way to choose.

    Attributes:
        scored_share: of the pool's documents whose influence it pays for.
        read_share: of the pool's tokens a model reads forward only.
        fits: whether it needs factors.
        shared_s: seconds of what it uses of the laboratory.
        choose: seed to rows, best first, within the budget.
    """

    scored_share: float
    read_share: float
    fits: bool
    shared_s: float
    choose: Callable[[int], Int64]


def list_methods(laboratory: Laboratory) -> dict[str, Method]:
    """List every method by name."""
    texts, wanted = laboratory.texts.pool, laboratory.texts.reference
    n_tokens_N, arm_N, budget = laboratory.n_tokens, laboratory.arm, laboratory.size.budget_tokens
    influence, seconds = laboratory.per_token, laboratory.seconds
    plain_ND, states_ND = prediction_features(laboratory), prediction_features(laboratory, states=True)
    released = released_rules(laboratory)
    clustered_s = seconds["embed"] + seconds["cluster"]
    partly_s = clustered_s + seconds["fit_joint"] + SCORED_SHARE * seconds["score"]

    def ordered(order: Int64) -> Int64:
        return fill_budget(order, n_tokens_N, budget)

    def drawn(seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, 1])

    def quad(features_ND: npt.NDArray[np.float64], rules: lookup.Rules) -> Callable[[int], Int64]:
        return lambda seed: (
            lookup.choose(
                influence["joint"], arm_N, n_tokens_N, features_ND, budget, rules, seed, laboratory.embedding
            ).rows
        )

    run = lookup.Rules(scored_share=SCORED_SHARE)
    half = replace(run, scored_share=SCORED_SHARE / 2)
    return {
        "random": Method(0, 0, False, 0, lambda s: ordered(baselines.random_order(len(texts), drawn(s)))),
        "cluster_uniform": Method(
            0, 0, False, clustered_s, lambda s: ordered(baselines.cluster_uniform_order(arm_N, drawn(s)))
        ),
        "perplexity_lowest": Method(
            0, 1, False, seconds["loss"], lambda s: ordered(baselines.lowest_loss_order(laboratory.loss))
        ),
        "perplexity_middle": Method(
            0, 1, False, seconds["loss"], lambda s: ordered(baselines.middle_loss_order(laboratory.loss))
        ),
        "dsir": Method(0, 0, False, 0, lambda s: ordered(baselines.importance_order(texts, wanted, drawn(s)))),
        "linear_classifier": Method(0, 0, False, 0, lambda s: ordered(baselines.classifier_order(texts, wanted))),
        "gradient_dot_product": Method(
            1, 0, False, seconds["score"], lambda s: ordered(np.argsort(-influence["identity"], kind="stable"))
        ),
        "full_influence": Method(
            1,
            0,
            True,
            seconds["fit_joint"] + seconds["score"],
            lambda s: ordered(np.argsort(-influence["joint"], kind="stable")),
        ),
        "released": Method(SCORED_SHARE, 0, True, partly_s, quad(plain_ND, released)),
        "quad": Method(SCORED_SHARE, 0, True, partly_s, quad(plain_ND, run)),
        "quad_half_the_scores": Method(
            SCORED_SHARE / 2, 0, True, partly_s - SCORED_SHARE / 2 * seconds["score"], quad(plain_ND, half)
        ),
        "quad_states": Method(SCORED_SHARE, 1, True, partly_s + seconds["loss"], quad(states_ND, run)),
        **{
            f"quad_{100 * share:.0f}_percent_general": Method(
                SCORED_SHARE, 0, True, partly_s, quad(plain_ND, replace(run, general_share=share))
            )
            for share in GENERAL_SHARES
        },
    }


def released_rules(laboratory: Laboratory) -> lookup.Rules:
    """Build the published code's rules: its policy, its τ, whole arms accepted unseen, no regression."""
    policy = released_policy()
    n_arms = int(laboratory.arm.max()) + 1
    moments = arm_moments(laboratory.embedding, laboratory.arm)
    centroids = np.stack([laboratory.embedding[laboratory.arm == arm].mean(axis=0) for arm in range(n_arms)])
    near = neighbour_lists(*arm_gaussians(moments, centroids), policy.bandwidth or 0.0)
    return lookup.Rules(
        policy=policy,
        active_documents=0,
        scored_share=SCORED_SHARE,
        mode="cluster",
        near_duplicate_cosine=None,
        threshold=RELEASED_THRESHOLD,
        general_share=0.0,
        neighbours=near,
    )


def measure_diversity(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Compare all methods in as many laboratories as the size has seeds."""
    size = QUICK if quick else Size()
    return compare_methods(find_laboratories(workspace, config, size, size.seeds))


def compare_methods(laboratories: Sequence[Laboratory]) -> dict[str, Any]:
    """Choose by every method in every laboratory, train on what it chose, measure.

    A laboratory is a repeat: sample, reference, held-out text and checkpoint are its own, and so are the draws of the
    choice and the order of training. Intervals are over repeats, differences within one.
    """
    measured = [_measure_methods(laboratory, seed) for seed, laboratory in enumerate(laboratories)]
    before = [measure_model(laboratory, laboratory.model) for laboratory in laboratories]
    found = {name: _join([body[name] for body in measured]) for name in measured[0]}
    return {
        "documents": int(np.mean([len(laboratory.documents) for laboratory in laboratories])),
        "budget_tokens": laboratories[0].size.budget_tokens,
        "seeds": len(laboratories),
        "building_s": [dict(laboratory.seconds) for laboratory in laboratories],
        "methods": found,
        "before": {key: [model[key] for model in before] for key in MEASURED},
        **compare_outcomes(found),
    }


def _measure_methods(laboratory: Laboratory, seed: int) -> dict[str, dict[str, Any]]:
    """Return every method's outcome, diversity, mixture and cost in one laboratory."""
    methods = list_methods(laboratory)
    items = [(laboratory.workspace, laboratory.key, name, seed) for name in methods]
    chosen = spread(choose_by, items, "choose", "methods")
    choices = [np.array(choice["rows"]) for choice in chosen]
    trained = train_trials(laboratory, [(rows, seed) for rows in choices])
    return {
        name: {
            **{key: model[key] for key in (*MEASURED, "domains")},
            "influence_share": _share(laboratory, rows),
            "diversity": profile(laboratory, rows),
            "by_source": _by_source(laboratory, rows),
            "tokens": int(laboratory.n_tokens[rows].sum()),
            "scored_share": method.scored_share,
            "time_s": method.shared_s + choice["seconds"],
            "flops": _flops(laboratory, method),
        }
        for (name, method), choice, rows, model in zip(methods.items(), chosen, choices, trained, strict=True)
    }


def _join(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put one method's repeats together: a list where an interval is asked for, else the mean."""
    mixture, profiles = _means([one["by_source"] for one in repeats]), [one["diversity"] for one in repeats]
    return {
        **{key: [one[key] for one in repeats] for key in (*MEASURED, "influence_share", "tokens")},
        "domains": _means([one["domains"] for one in repeats]),
        "by_source": dict(sorted(mixture.items(), key=lambda item: -item[1])),
        "diversity": {key: [one[key] for one in profiles] for key in profiles[0]},
        **{key: float(np.mean([one[key] for one in repeats])) for key in ("scored_share", "time_s", "flops")},
    }


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average over repeats; what a repeat has nothing of counts as nothing."""
    names = sorted({name for part in parts for name in part})
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}


def choose_by(workspace: str, key: str, name: str, seed: int) -> dict[str, Any]:
    """Choose by one method, on a worker; return `rows` and `seconds`."""
    method = list_methods(open_laboratory(workspace, key))[name]
    started = time.process_time()
    rows = method.choose(seed).tolist()
    return {"rows": rows, "seconds": time.process_time() - started}


def compare_outcomes(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare Quad with the others, repeat by repeat.

    Returns:
        `gain_share`: Quad's gain over random as a share of full scoring's, with its interval; `quad_less_other`: paired
        differences in reference loss, < 0 where Quad is better; `quad_less_full_other_domains_bpb`: the same of what
        the other domains paid, None where there are none; and `shows`, the claims with what was measured.
    """
    loss = {name: method["reference_loss"] for name, method in found.items()}
    others = {name: method["other_domains_bpb"] for name, method in found.items()}
    gained = outcome.gain_share(loss["random"], loss["quad"], loss["full_influence"])
    less = {name: outcome.compare(loss["quad"], values) for name, values in loss.items() if name != "quad"}
    paid = None if None in others["quad"] else outcome.compare(others["quad"], others["full_influence"])
    shows = [outcome.claim("gain over random, as a share of full scoring's", gained, least=0.85)]
    for name, method in found.items():
        if name != "quad" and not name.startswith("quad_") and method["scored_share"] <= SCORED_SHARE:
            shows.append(outcome.claim(f"reference loss, Quad less {name.replace('_', ' ')}", less[name], most=0.0))
    if paid is not None:
        shows.append(outcome.claim("other domains' bits per byte, Quad less full scoring", paid, most=0.0))
    return {
        "gain_share": gained["mean"],
        "gain_share_interval": [gained["low"], gained["high"]],
        "quad_less_other": less,
        "quad_less_full_other_domains_bpb": paid,
        "shows": shows,
    }


def _share(laboratory: Laboratory, rows: Int64) -> float:
    influence = laboratory.per_token["joint"]
    return lookup.influence_share(rows, influence, laboratory.n_tokens, laboratory.size.budget_tokens)


def _by_source(laboratory: Laboratory, rows: Sequence[int] | Int64) -> dict[str, float]:
    tokens: dict[str, int] = {}
    for row in rows:
        source = laboratory.texts.source[row]
        tokens[source] = tokens.get(source, 0) + int(laboratory.n_tokens[row])
    total = sum(tokens.values())
    return {source: n / total for source, n in sorted(tokens.items(), key=lambda item: -item[1])}


def _flops(laboratory: Laboratory, method: Method) -> float:
    """Estimate what choosing costs in floating-point operations of the model, training left out."""
    parameters = sum(p.numel() for p in laboratory.model.parameters())
    pool, size = int(laboratory.n_tokens.sum()), laboratory.size
    read = SCORING_FLOPS * method.scored_share + FORWARD_FLOPS * method.read_share
    per_document = pool / len(laboratory.documents)
    fit = FACTOR_FLOPS * size.factor_documents + SCORING_FLOPS * size.reference_documents
    direction = fit * per_document if method.fits else SCORING_FLOPS * size.reference_documents * per_document
    total: float = parameters * (read * pool + (direction if method.scored_share else 0))
    return total


DIVERSITY = Experiment(
    "what Quad and nine other ways choose on equal tokens, how diverse it is, and what training on it is worth",
    measure_diversity,
    tables,
    draw,
)
