"""What a run's own training shows: no gain, a starting checkpoint made worse, or too few steps to tell anything."""

from collections.abc import Mapping

from quad_tasks.records import Finding

WORSE = 0.01
"""Relative increase of a domain's loss that counts as worse. Plain top influence raised other domains' loss by 0.8 per
cent in the pilot, which is the price of a narrow selection and no harm."""
MOST = 0.5
"""Share of domains above which most are worse."""
RUINED = 0.1
"""Mean relative increase from which the finding is severe: a tenth more loss undoes much of a pretraining."""
FEWEST_STEPS = 10
"""AdamW's mean gradient, of β₁ = 0.9, averages over the last ten steps: a shorter training is all warm-up."""


def training_harmed(changes: Mapping[str, float]) -> Finding | None:
    """Detect a training after which the model is worse on most domains than the checkpoint it started from.

    Args:
        changes: relative change of each domain's loss, the reference's among them, by domain (0.02: two per cent
            higher); empty: not measured.
    """
    worse = {domain: change for domain, change in changes.items() if change > WORSE}
    if len(worse) <= MOST * len(changes):
        return None
    worst = max(worse, key=lambda domain: worse[domain])
    mean = sum(changes.values()) / len(changes)
    evidence: dict[str, int | float | str] = {"domains": len(changes), "worse_domains": len(worse)}
    evidence |= {"mean_change": mean, "worst_domain": worst, "worst_domain_change": worse[worst]}
    remedy = (
        "Training made the starting checkpoint worse: set a lower training.learning_rate (a third of this one), select "
        "fewer tokens (selection.budget_tokens), or raise selection.general_share."
    )
    return Finding("training_harmed", "severe" if mean > RUINED else "warning", evidence, remedy)


def gain_not_shown(low: float, high: float) -> Finding | None:
    """Detect a selection that is not better for the reference than random tokens, or not for certain.

    Args:
        low: of the interval of what the reference loss is lower by after training on the selection, nats per token.
        high: of the same.
    """
    if low > 0:
        return None
    remedy = (
        "The selection is not better for the reference than random tokens for certain: for a narrower interval raise "
        "training.seeds and heldout.documents_per_domain; to select otherwise set bandit.scorer conditional_loss, or "
        "more training.stages, whose later ones choose for a model that has seen some of the pool."
    )
    return Finding("gain_not_shown", "severe" if high < 0 else "warning", {"gain_low": low, "gain_high": high}, remedy)


def too_few_steps(steps: int, step_tokens: int) -> Finding | None:
    """Detect trainings too short to tell a selection from random tokens.

    Args:
        steps: optimizer steps of the shortest training on a selection.
        step_tokens: target tokens that a step is filled with.
    """
    if steps >= FEWEST_STEPS:
        return None
    evidence: dict[str, int | float | str] = {"steps": steps, "step_tokens": step_tokens, "wanted_steps": FEWEST_STEPS}
    remedy = (
        "The gain says little after so few optimizer steps: lower training.batch_tokens, raise "
        "selection.budget_tokens, or use fewer training.stages."
    )
    return Finding("too_few_steps", "severe" if steps <= 1 else "warning", evidence, remedy)
