"""Estimate what choosing will cost: tokens scored, rounds, and model FLOPs beside those of scoring the whole pool.

Documents count as of mean length; the pilot and the rounds count as scored exactly, as they are at most, or by the
conditional loss where that is configured.
"""

import math
from dataclasses import dataclass

import numpy as np

from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.flops import ModelSize, PassFlops
from quad_tasks.stages.bandit.cost import cost_cap, cost_limit, read_settings, scorer_flops, whole_pool_reading
from quad_tasks.stages.bandit.round_settings import pull_sizes

ACCEPTED_AT_RANDOM = 0.5
"""Share of the tokens that rounds of the bandit score in its arms that are above τ; of documents drawn actively nearly
all are (LAMBADA configuration: 0.87 of all with three quarters drawn actively)."""


@dataclass(frozen=True)
class Choosing:
    """What choosing documents is expected to take.

    Attributes:
        tokens: scored, all stages.
        tokens_at_most: that may be scored.
        rounds: of the bandit, all stages.
        reading: FLOPs of hidden states and embeddings of the whole pool.
        scoring: FLOPs of scoring `tokens`.
        pool: FLOPs of scoring the whole pool exactly.
        share: of `pool`, that reading and scoring take.
        most_share: of `pool`, that they may take; None: no cap.
        training: FLOPs of one training on the budget.
    """

    tokens: int
    tokens_at_most: int
    rounds: int
    reading: float
    scoring: float
    pool: float
    share: float
    most_share: float | None
    training: float


def plan_choosing(config: RunConfig, documents: int, tokens: int, size: ModelSize) -> Choosing:
    """Estimate what choosing takes.

    Args:
        config: the run's configuration.
        documents: of the pool.
        tokens: of the pool.
        size: of the model.

    Raises:
        ConfigError: the cap on cost leaves nothing to score.
    """
    reading, cap, mean = read_settings(config), cost_cap(config), tokens / max(1, documents)
    window, length = reading.window_tokens, np.array([max(2, round(mean))])

    def of_pool(way: PassFlops) -> float:
        return documents * float(flops.document_flops(way, length, window)[0])

    whole = of_pool(flops.exact_flops(size, reading.directions))
    read = documents * whole_pool_reading(size, length, np.ones(1, dtype=np.int64), reading)
    most = None if cap is None else cost_limit(cap, whole, read, 1.0) / whole
    if cap is not None and most is not None and most * whole <= read:
        raise ConfigError(
            f"bandit.max_cost_share: expected more than {read / whole:.3g}, which hidden states and embeddings of the "
            f"whole pool take of scoring it (bandit.features, embedding.method), found {cap.share}"
        )
    way = scorer_flops(size, {"scorer": CONDITIONAL_LOSS}, reading.directions)
    price = of_pool(way) / whole if config.bandit.scorer == CONDITIONAL_LOSS else 1.0
    scored_share = 1.0 if config.bandit.max_scored_share is None else config.bandit.max_scored_share
    share = scored_share if most is None else min(scored_share, (most - read / whole) / price)
    expected, at_most, rounds = _scored(config, documents, tokens, share)
    scoring = price * whole * expected / max(1, tokens)
    return Choosing(
        tokens=expected,
        tokens_at_most=at_most,
        rounds=rounds,
        reading=read,
        scoring=scoring,
        pool=whole,
        share=(read + scoring) / whole,
        most_share=most,
        training=of_pool(flops.training_flops(size)) / max(1, tokens) * config.selection.budget_tokens,
    )


def _scored(config: RunConfig, documents: int, tokens: int, share: float) -> tuple[int, int, int]:
    """Return the tokens expected to be scored, those at most, and the rounds of the bandit."""
    settings, stages, sizes = config.bandit, config.training.stages, pull_sizes(config.bandit)
    mean, at_most = tokens / max(1, documents), share * tokens
    pilot = min(settings.pilot_documents * stages, documents, math.ceil(share * documents / 2)) * mean
    wanted = settings.oversample * config.selection.budget_tokens - (1 - settings.threshold_quantile) * pilot
    accepted = ACCEPTED_AT_RANDOM + (1 - ACCEPTED_AT_RANDOM) * (1 - sizes.random_documents / sizes.documents_per_pull)
    expected = max(pilot, min(pilot + max(0.0, wanted) / accepted, at_most))
    per_round = sizes.arms_per_round * sizes.documents_per_pull * mean
    rounds = min(math.ceil((expected - pilot) / max(1.0, per_round)), settings.max_rounds * stages)
    return round(expected), round(max(at_most, pilot)), rounds
