"""List the experiment "diversity"'s methods: how each selects, which scores it pays for, and what that costs.

A method sees only the scores it pays for. Costs are model FLOPs of what is read of the pool, as a share of scoring it
exactly; time counts scores at the testbed's measured rate. Quad's selection is a run's, in simulation
(`lab.simulation`): the pilot is paid at exact scoring's cost, what follows at that of the scorer which ranks alike.

Shape suffixes: N documents, D features, K arms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quad_tasks.config.values import Features
from quad_tasks.core.bandit import released_policy
from quad_tasks.core.clustering.embed_texts import embed_ngrams, fit_ngram_embedder
from quad_tasks.core.clustering.kmeans import arm_gaussians, arm_moments
from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.core.wasserstein import neighbour_lists
from quad_tasks.experiments.lab import baselines, model_baselines, scorer_cost, simulation
from quad_tasks.experiments.lab.model_baselines import ADAPTED_PASSES
from quad_tasks.experiments.lab.scorer_cost import EXACT, ScorerCost
from quad_tasks.experiments.lab.testbed import EMBEDDER_DOCUMENTS, Testbed, prediction_features

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

COST_SHARE = 0.1
"""Of scoring the whole pool exactly, that methods which score a share of it may take: a run's default."""
OTHER_COST_SHARES = (0.05, 0.15)
GENERAL_SHARES = (0.0, 0.1, 0.25)
"""General shares that are tried beside a run's default."""
RELEASED_THRESHOLD = 2e-3
"""τ of the published code."""
FIT_PASSES = 2
"""Of an EK-FAC fit over its sample, each about what exact scoring takes."""


@dataclass(frozen=True)
class Chosen:
    """What a method selects, and which scores it pays for.

    Attributes:
        rows: best first, within the budget.
        scored_share: of the pool's documents.
        scoring: FLOPs of those scores, as a share of scoring the whole pool exactly.
    """

    rows: Int64
    scored_share: float = 0.0
    scoring: float = 0.0


@dataclass(frozen=True)
class Method:
    """A way to select documents, and what it costs beside scores.

    Attributes:
        select: seed to what is chosen.
        reads: passes in which a model reads the whole pool forward.
        fits: whether it needs EK-FAC factors.
        reference_passes: over the reference, each at exact scoring's cost: one for its gradient.
        adapts: whether it needs a copy of the checkpoint that is adapted to the reference.
        shared_s: seconds of the testbed's measurements that it uses, those of scoring and of the copy left out.
    """

    select: Callable[[int], Chosen]
    reads: int = 0
    fits: bool = False
    reference_passes: float = 0.0
    adapts: bool = False
    shared_s: float = 0.0


def list_methods(testbed: Testbed, scorer: ScorerCost = EXACT) -> dict[str, Method]:
    """List every method by name.

    Args:
        testbed: holds the documents.
        scorer: what a run's default scores by after its pilot.
    """
    return {
        **_methods_without_influence(testbed),
        **_methods_of_full_scoring(testbed),
        **_methods_of_a_share(testbed, scorer),
    }


def _fill(testbed: Testbed, order: Int64) -> Int64:
    return fill_budget(order, testbed.n_tokens, testbed.size.budget_tokens)


def _methods_without_influence(testbed: Testbed) -> dict[str, Method]:
    pool, reference, arm_N, seconds = testbed.texts.pool, testbed.texts.reference, testbed.arm, testbed.seconds
    clustered_s = seconds["embed"] + seconds["cluster"]

    def by(
        order: Callable[[np.random.Generator], Int64],
        reads: int = 0,
        shared_s: float = 0.0,
        reference_passes: float = 0.0,
        adapts: bool = False,
    ) -> Method:
        def select(seed: int) -> Chosen:
            return Chosen(_fill(testbed, order(np.random.default_rng([seed, 1]))))

        return Method(select, reads, False, reference_passes, adapts, shared_s)

    return {
        "random": by(lambda generator: baselines.random_order(len(pool), generator)),
        "cluster_uniform": by(
            lambda generator: baselines.cluster_uniform_order(arm_N, generator), shared_s=clustered_s
        ),
        "perplexity_lowest": by(lambda _: baselines.lowest_loss_order(testbed.loss), 1, seconds["loss"]),
        "perplexity_middle": by(lambda _: baselines.middle_loss_order(testbed.loss), 1, seconds["loss"]),
        "dsir": by(lambda generator: baselines.importance_order(pool, reference, generator)),
        "linear_classifier": by(lambda _: baselines.classifier_order(pool, reference)),
        "bm25": by(lambda _: baselines.bm25_order(pool, reference)),
        "embedding_similarity": by(lambda _: embedding_order(testbed), shared_s=seconds["embed"]),
        "representation_similarity": by(
            lambda _: model_baselines.representation_order(testbed),
            1,
            seconds["loss"],
            scorer_cost.reading_cost(testbed),
        ),
        "conditional_loss": by(
            lambda _: model_baselines.conditional_loss_order(testbed), 2, seconds["loss"], adapts=True
        ),
        "loss_drop": by(lambda _: model_baselines.loss_drop_order(testbed), 2, seconds["loss"], adapts=True),
    }


def embedding_order(testbed: Testbed) -> Int64:
    """Order by the mean cosine of a document's n-gram embedding to those of the reference's documents."""
    embedder = fit_ngram_embedder(testbed.texts.pool[:EMBEDDER_DOCUMENTS])
    return baselines.similarity_order(testbed.embedding, embed_ngrams(embedder, testbed.texts.reference))


def _methods_of_full_scoring(testbed: Testbed) -> dict[str, Method]:
    def ranked(order: Callable[[], Int64], fits: bool = False, shared_s: float = 0.0) -> Method:
        return Method(lambda _: Chosen(_fill(testbed, order()), 1.0, 1.0), 0, fits, 1.0, shared_s=shared_s)

    def highest(kind: str) -> Int64:
        return np.argsort(-testbed.per_token(kind), kind="stable")

    return {
        "gradient_dot_product": ranked(lambda: highest("identity")),
        "gradient_similarity": ranked(lambda: model_baselines.gradient_order(testbed)),
        "full_influence": ranked(lambda: highest("joint"), fits=True, shared_s=testbed.seconds["fit_joint"]),
    }


def _pool(testbed: Testbed, features: Features | None = None) -> simulation.Pool:
    """Compute the features that a selection uses; each pays for its own."""
    built = prediction_features(testbed, features)
    return simulation.pool_of(testbed, built, cost_N=scorer_cost.document_costs(testbed))


def _methods_of_a_share(testbed: Testbed, scorer: ScorerCost) -> dict[str, Method]:
    """List the published code's method, Quad's, and Quad's under other settings."""
    influence_N, seconds = testbed.per_token(), testbed.seconds
    before_scores_s = seconds["embed"] + seconds["cluster"] + seconds["fit_joint"]

    def method(rules: simulation.Rules, features: Features | None = None) -> Method:
        def select(seed: int) -> Chosen:
            pool = _pool(testbed, features)
            selected = simulation.simulate_selection(influence_N, pool, rules, seed)
            return Chosen(selected.rows, float(selected.scored.mean()), selected.cost_share)

        reads = int(features == "hidden_states")
        return Method(select, reads=reads, fits=True, reference_passes=1.0, shared_s=before_scores_s)

    def by_conditional_loss(rules: simulation.Rules) -> Method:
        """Score by the losses of the checkpoint and of its adapted copy, two forward passes, pilot included."""
        passes = 2 * scorer_cost.reading_cost(testbed)

        def select(seed: int) -> Chosen:
            pool, scores_N = _pool(testbed), model_baselines.conditional_losses(testbed)
            dearer = replace(rules, cost_share=COST_SHARE / passes)
            selected = simulation.simulate_selection(scores_N, pool, dearer, seed)
            return Chosen(selected.rows, float(selected.scored.mean()), passes * selected.cost_share)

        return Method(select, adapts=True, shared_s=seconds["embed"] + seconds["cluster"])

    exact = simulation.Rules(cost_share=COST_SHARE)
    run = replace(exact, scorer_cost=scorer.cost, trial_cost=scorer.trial_cost)
    states = method(run, "hidden_states")
    return {
        "released": method(released_rules(testbed)),
        "quad": method(run),
        **{f"quad_at_{100 * share:.0f}_percent": method(replace(run, cost_share=share)) for share in OTHER_COST_SHARES},
        "quad_scored_exactly": method(exact),
        "quad_n_grams_scored_exactly": method(exact, "embedding"),
        "quad_conditional_loss": by_conditional_loss(exact),
        "quad_conditional_loss_25_percent_general": by_conditional_loss(replace(exact, general_share=0.25)),
        "quad_states": replace(states, shared_s=states.shared_s + seconds["loss"]),
        **{
            f"quad_{100 * share:.0f}_percent_general": method(replace(run, general_share=share))
            for share in GENERAL_SHARES
        },
    }


def released_rules(testbed: Testbed) -> simulation.Rules:
    """Build the published code's rules: its policy, its τ, whole arms accepted unseen, no regression."""
    policy = released_policy()
    n_arms = int(testbed.arm.max()) + 1
    moments = arm_moments(testbed.embedding, testbed.arm)
    centroids = np.stack([testbed.embedding[testbed.arm == arm].mean(axis=0) for arm in range(n_arms)])
    return simulation.Rules(
        policy=policy,
        active_documents=0,
        cost_share=COST_SHARE,
        mode="cluster",
        near_duplicate_cosine=None,
        threshold=RELEASED_THRESHOLD,
        general_share=0.0,
        neighbours=neighbour_lists(*arm_gaussians(moments, centroids), policy.bandwidth or 0.0),
    )


def cost_share(testbed: Testbed, method: Method, scoring: float) -> float:
    """Compute the model FLOPs of what a method reads of the pool, as a share of scoring the whole pool exactly.

    Args:
        testbed: holds the documents.
        method: reads them forward this many times.
        scoring: FLOPs of its scores, as such a share.
    """
    return scoring + method.reads * scorer_cost.reading_cost(testbed)


def estimate_flops(testbed: Testbed, method: Method, scoring: float) -> float:
    """Estimate what selecting costs in model FLOPs; documents that are no share count as average.

    Training on what is selected is left out, training an adapted copy is not.
    """
    exact, share = scorer_cost.pool_flops(testbed), cost_share(testbed, method, scoring)
    read = (ADAPTED_PASSES if method.adapts else method.reference_passes) * len(testbed.texts.reference)
    read += FIT_PASSES * testbed.size.factor_documents if method.fits else 0
    return exact * (share + read / len(testbed.documents))
