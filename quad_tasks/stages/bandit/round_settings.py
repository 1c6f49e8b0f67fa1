"""What a stage's rounds take from the configuration: the policy, budgets, and how documents are scored.

`round_settings` is the one place where the bandit reads keys of other sections.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from quad_tasks.config.schema import BanditConfig, RunConfig
from quad_tasks.core import bandit
from quad_tasks.core.bandit import Policy
from quad_tasks.records import ModelUse
from quad_tasks.stages.bandit.cost import CostCap, Reading, cost_cap, read_settings
from quad_tasks.stages.bandit.ledger import stage_budget

PRESET_CHOICES = {
    "paper": ("alpha", "propagation"),
    "released": ("alpha", "propagation", "threshold"),
    "thompson": ("propagation",),
    "contextual": ("alpha",),
}
"""What of a configuration each preset takes beside k and m; an extension takes α and what neighbours hear."""
ACTIVE_SHARE = 0.75
"""Share of a round's documents drawn for their prediction, by every preset but `released`, which has none."""
ROUNDING = 1e-6
"""What floating point may take from a whole number of documents: 0.3 * 10 is less than 3."""


@dataclass(frozen=True)
class PullSizes:
    """What a round draws.

    Attributes:
        arms_per_round: k.
        documents_per_pull: m.
        random_documents: of m, the pulled arm's next, at least one; the others are drawn for their prediction.
    """

    arms_per_round: int
    documents_per_pull: int
    random_documents: int


@dataclass(frozen=True)
class RoundSettings:
    """What the rounds of one stage have in common.

    Attributes:
        bandit: the bandit's section of the configuration.
        policy: how arms are chosen.
        pull: how many arms a round pulls and how many documents a pull draws.
        use: how the model reads documents.
        reference_sets: names of the reference sets whose scores are kept, where there are several.
        budget_tokens: that all stages up to this one may select.
        stage_tokens: that this stage is to select.
        wanted_tokens: above τ that end the stage.
        general_share: of the budget, drawn whatever its influence.
        scored_share: of the pool's documents that all stages up to this one may score.
        reading: how documents are read, as far as cost follows from it.
        cost_cap: on what all stages may cost; None: no cap.
        stage_share: share of the run's stages that this one completes.
        predicts: whether a regression ranks unscored documents or draws some.
        seed: of the run.
    """

    bandit: BanditConfig
    policy: Policy
    pull: PullSizes
    use: ModelUse
    reference_sets: tuple[str, ...]
    budget_tokens: int
    stage_tokens: int
    wanted_tokens: int
    general_share: float
    scored_share: float
    reading: Reading
    cost_cap: CostCap | None
    stage_share: float
    predicts: bool
    seed: int


def round_settings(config: RunConfig, stage: int) -> RoundSettings:
    """Read what a stage's rounds need from a run's configuration."""
    settings, selection, stages = config.bandit, config.selection, config.training.stages
    share = 1.0 if settings.max_scored_share is None else settings.max_scored_share
    pull = pull_sizes(settings)
    return RoundSettings(
        bandit=settings,
        policy=policy(settings, config.clustering.arms),
        pull=pull,
        use=config.model_use(),
        reference_sets=tuple(config.reference.sets) if len(config.reference.sets) > 1 else (),
        budget_tokens=stage_budget(selection.budget_tokens, stages, stage),
        stage_tokens=selection.budget_tokens // stages,
        wanted_tokens=math.ceil(settings.oversample * selection.budget_tokens / stages),
        general_share=selection.general_share,
        scored_share=share * (stage + 1) / stages,
        reading=read_settings(config),
        cost_cap=cost_cap(config),
        stage_share=(stage + 1) / stages,
        predicts=selection.mode == "predicted" or pull.random_documents < pull.documents_per_pull,
        seed=config.seed,
    )


def pull_sizes(settings: BanditConfig) -> PullSizes:
    """Return what a round draws: as configured, and what is not set as the preset has it."""
    if settings.preset == "released":
        arms, documents, share = bandit.RELEASED_ARMS_PER_ROUND, bandit.RELEASED_DOCUMENTS_PER_PULL, 0.0
    else:
        arms, documents, share = bandit.ARMS_PER_ROUND, bandit.DOCUMENTS_PER_PULL, ACTIVE_SHARE
    arms, documents = settings.arms_per_round or arms, settings.documents_per_pull or documents
    share = share if settings.active_share is None else settings.active_share
    return PullSizes(arms, documents, documents - int(share * documents))


def scored_limit(settings: RoundSettings, pool_documents: int) -> int:
    """Return how many of the pool's documents all stages up to this one may score, rounded down."""
    return math.floor(settings.scored_share * pool_documents + ROUNDING)


def policy(settings: BanditConfig, arms: int) -> Policy:
    """Build the configured policy: its preset, and what the configuration says otherwise.

    Every arm is visited first only where the pilot has a document for each (Quad, section 4: while the budget allows).

    Args:
        settings: the bandit's section of the configuration.
        arms: that the pool is configured to have.
    """
    presets: dict[str, Callable[..., Policy]] = {
        "paper": bandit.paper_policy,
        "released": bandit.released_policy,
        "thompson": bandit.thompson_policy,
        "contextual": bandit.contextual_policy,
    }
    taken = PRESET_CHOICES.get(settings.preset, ("alpha", "propagation"))
    choices = settings.model_dump(include=set(taken), exclude_none=True)
    sizes = pull_sizes(settings)
    choices |= {"arms_per_round": sizes.arms_per_round, "documents_per_pull": sizes.random_documents}
    if settings.preset == "paper":
        choices["visit_every_arm"] = arms <= settings.pilot_documents
    build = presets.get(settings.preset) or partial(bandit.named_policy, settings.preset)
    return build(**choices)
