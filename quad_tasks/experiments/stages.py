"""Experiment "stages": compare one selection for the whole budget with stages, and measure when refitting helps.

Plans of equal tokens start from one checkpoint. A stage of a plan trains on the next part of the budget. `refit` says
which ranking a stage after the first takes its documents from:

    never   the first one
    stage   a fresh one, along the direction fitted at the checkpoint so far, a tenth of the documents scored anew
    gated   the fresh one, where a trial from the same checkpoint on half of a stage's tokens leaves less loss than a
            trial on the best documents left of the last ranking; both are measured on the direction's own reference
            documents, so that the held-out loss stays unseen

One optimizer state and one learning-rate schedule run through all stages, or both start anew each stage (`restart`).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from quad_tasks.config.schema import RunConfig, TrainingConfig
from quad_tasks.core.evaluation import statistics
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.core.influence import score_documents
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.training import Schedule, count_steps
from quad_tasks.core.selection.fill_budget import fill_budget
from quad_tasks.experiments.experiment import Experiment, Tables, claims_table, within
from quad_tasks.experiments.lab import plots, simulation
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.evaluation import Claim, claim_most, measured_only
from quad_tasks.experiments.lab.testbed import Testbed, directions, find_testbed, open_testbed, prediction_features
from quad_tasks.experiments.lab.train_choice import (
    WARMUP_SHARE,
    Learner,
    Losses,
    TrainingSettings,
    begin,
    branch,
    common_targets,
    measure_losses,
    restart,
    train_choice,
)
from quad_tasks.experiments.lab.trials import CONTINUED_RATE, hold_out, hold_out_reference

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
RefitRule = Literal["never", "stage", "gated"]

TRIAL_SHARE = 0.5
"""Share of a stage's tokens that each of the gate's two trials trains on."""
SEEDS = 3
COLOURS = {"never": plots.BLUE, "stage": plots.RED, "gated": plots.GREEN}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of spending the budget.

    Attributes:
        stages: parts of equal tokens.
        refit: which ranking a stage takes its documents from.
        restart: whether optimizer and schedule start anew each stage.
        random: documents are drawn at random instead.
    """

    stages: int = 1
    refit: RefitRule = "never"
    restart: bool = False
    random: bool = False


REFITS: tuple[RefitRule, ...] = ("never", "stage", "gated")
PLANS = {
    "random, one shot": Plan(random=True),
    "one shot": Plan(),
    **{f"2 stages, refit {refit}": Plan(2, refit) for refit in REFITS},
    "2 stages, restarts, refit never": Plan(2, restart=True),
}


@dataclass(frozen=True, slots=True)
class Refit:
    """A fresh ranking beside the one before it.

    Attributes:
        stale: rank correlation of new and first influence, over the documents scored anew.
        agree: share of the fresh selection that the old ranking would have taken.
        accepted: whether the fresh ranking was used.
    """

    stale: float
    agree: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class GatedRefit(Refit):
    """A refit that a trial of both rankings decided.

    Attributes:
        trial_losses: after the trial of the fresh and of the old ranking.
    """

    trial_losses: tuple[float, float]


@dataclass(frozen=True)
class PlanOutcome(Losses):
    """Losses after a plan's last stage, losses and refits on the way.

    Attributes:
        losses: reference loss after each stage.
        refits: one a stage that made a fresh ranking.
    """

    losses: list[float]
    refits: list[GatedRefit | Refit]


@dataclass(frozen=True, slots=True)
class Before:
    """Losses of the checkpoint before training."""

    reference_loss: float
    other_domains_bpb: float | None


@dataclass(frozen=True)
class Result:
    """Result of the experiment.

    Attributes:
        documents: of the testbed.
        budget_tokens: of every plan.
        before: losses of the checkpoint.
        plans: outcomes by plan and seed.
        default_refit: a run's own rule.
        shows: the claims.
    """

    documents: int
    budget_tokens: int
    before: Before
    plans: dict[str, list[PlanOutcome]]
    default_refit: str
    shows: list[Claim]


def measure_stages(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Carry out every plan with every seed."""
    testbed = find_testbed(workspace, config, QUICK if quick else Size())
    longest_first = sorted(PLANS, key=lambda name: (PLANS[name].refit == "never", -PLANS[name].stages))
    runs = [(name, seed) for name in longest_first for seed in range(SEEDS)]
    items = [(testbed.workspace, testbed.key, asdict(PLANS[name]), seed) for name, seed in runs]
    found = dict(zip(runs, map_cached(carry_out, items, "train", "plans"), strict=True))
    plans = {name: [found[name, seed] for seed in range(SEEDS)] for name in PLANS}
    before = measure_losses(testbed.model, hold_out(testbed))
    return Result(
        documents=len(testbed.documents),
        budget_tokens=testbed.size.budget_tokens,
        before=Before(before.reference_loss, before.other_domains_bpb),
        plans=plans,
        default_refit=TrainingConfig().refit,
        shows=judge(plans),
    )


def carry_out(workspace: str, key: str, plan_body: Mapping[str, Any], seed: int) -> PlanOutcome:
    """Carry out a plan, given as JSON, on a worker."""
    testbed, plan = open_testbed(workspace, key), Plan(**plan_body)
    held_out, settings = hold_out(testbed), _training_settings(testbed, plan)
    learner, ranking, taken = begin(testbed.model), first_ranking(testbed, seed), np.empty(0, dtype=np.int64)
    losses: list[Losses] = []
    refits: list[GatedRefit | Refit] = []
    for stage in range(plan.stages):
        # take the next part of the budget from the ranking so far, or from a fresh one
        rows = take_next(testbed, ranking, plan, taken, seed)
        if stage > 0 and plan.refit != "never":
            fresh = _fresh_ranking(testbed, learner.model, [seed, stage])
            fresh_rows = take_next(testbed, fresh, plan, taken, seed)
            refits.append(_judge_refit(testbed, learner, plan, (fresh, fresh_rows), rows, [seed, stage]))
            if refits[-1].accepted:
                ranking, rows = fresh, fresh_rows
        # train on it from where the last stage stopped
        learner = restart(learner) if plan.restart else learner
        generator = np.random.default_rng([seed, stage, 1])  # of its own: [seed, 0] would be the first scores'
        learner, found = train_choice(learner, testbed.token_ids(np.sort(rows)), settings, generator, held_out)
        losses.append(found)
        taken = np.concatenate([taken, rows])
    return PlanOutcome(**asdict(losses[-1]), losses=[found.reference_loss for found in losses], refits=refits)


def _training_settings(testbed: Testbed, plan: Plan) -> TrainingSettings:
    """Build one schedule over the whole budget, or over a stage where every stage restarts it."""
    size, step_tokens = testbed.size, 2 * testbed.size.batch_tokens
    targets = common_targets(size.budget_tokens // plan.stages, step_tokens)
    stage_steps = count_steps(targets, step_tokens)
    total = stage_steps if plan.restart else plan.stages * stage_steps
    schedule = Schedule(CONTINUED_RATE, WARMUP_SHARE * total, total)
    return TrainingSettings(schedule, size.window_tokens, step_tokens, size.batch_tokens, targets)


@functools.lru_cache(maxsize=1)
def _pool(workspace: str, key: str) -> simulation.Pool:
    testbed = open_testbed(workspace, key)
    return simulation.pool_of(testbed, prediction_features(testbed))


def _rank(testbed: Testbed, influence: simulation.Influence, seed: int) -> simulation.Scores:
    """Spend a run's scores along a direction."""
    return simulation.spend_scores(influence, _pool(testbed.workspace, testbed.key), simulation.Rules(), seed)


def first_ranking(testbed: Testbed, seed: int) -> simulation.Scores:
    """Rank the documents by influence at the testbed's checkpoint."""
    return _rank(testbed, testbed.per_token(), seed)


def _fresh_ranking(testbed: Testbed, model: PreTrainedModel, seed: Sequence[int]) -> simulation.Scores:
    """Fit factors and direction at a checkpoint; score as a run does along the new direction."""
    size, texts = testbed.size, testbed.texts
    sample = texts.pool[-size.factor_documents :]
    direction, _ = directions(model, testbed.tokenizer, sample, texts.reference, "joint", size)

    def score(rows: Int64) -> Float64:
        batches, owner = make_batches(testbed.token_ids(rows), size.window_tokens, size.batch_tokens)
        scores = score_documents(model, batches, direction)
        per_token: Float64 = (scores.influence / scores.n_tokens)[np.argsort(owner.numpy())]
        return per_token

    return _rank(testbed, score, int(np.random.default_rng(seed).integers(2**31)))


def take_next(testbed: Testbed, ranking: simulation.Scores, plan: Plan, taken: Int64, seed: int) -> Int64:
    """Select a stage's documents: the best left of a ranking, or random ones.

    Args:
        testbed: holds the documents.
        ranking: what is known of them.
        plan: its stages share the budget equally.
        taken: rows of the stages before.
        seed: of the random draws.
    """
    budget_tokens = testbed.size.budget_tokens // plan.stages
    if plan.random:
        order = np.random.default_rng([seed, 1]).permutation(len(testbed.documents))
        return fill_budget(order[~np.isin(order, taken)], testbed.n_tokens, budget_tokens)
    pool = replace(_pool(testbed.workspace, testbed.key), budget_tokens=budget_tokens)
    return simulation.select_from_scores(ranking, pool, simulation.Rules(), seed, taken).rows


def _judge_refit(
    testbed: Testbed,
    learner: Learner,
    plan: Plan,
    fresh: tuple[simulation.Scores, Int64],
    rows: Int64,
    seed: Sequence[int],
) -> GatedRefit | Refit:
    """Compare a fresh ranking with the old one; where the plan is gated, try both.

    Args:
        testbed: holds the documents.
        learner: where training stands; left as it is.
        plan: says whether a trial decides.
        fresh: the fresh ranking, and the stage's documents by it.
        rows: the stage's documents by the old ranking.
        seed: draws the order of the trials.
    """
    fresh_scores, fresh_rows = fresh
    scored = np.flatnonzero(~np.isnan(fresh_scores.measured))
    stale = float(spearmanr(testbed.per_token()[scored], fresh_scores.measured[scored]).statistic)
    agree = float(np.isin(fresh_rows, rows).mean())
    if plan.refit != "gated":
        return Refit(stale, agree, accepted=True)
    fresh_loss, old_loss = (_try(testbed, learner, plan, choice, seed) for choice in (fresh_rows, rows))
    return GatedRefit(stale, agree, fresh_loss < old_loss, (fresh_loss, old_loss))


def _try(testbed: Testbed, learner: Learner, plan: Plan, rows: Int64, seed: Sequence[int]) -> float:
    """Train a copy on the best part of a selection; return the loss on the direction's reference documents."""
    trial_tokens = int(TRIAL_SHARE * (testbed.size.budget_tokens // plan.stages))
    part = fill_budget(rows, testbed.n_tokens, trial_tokens)
    settings = _training_settings(testbed, plan)
    copied = branch(learner)
    copied = replace(copied, trained_steps=0) if plan.restart else copied
    _, losses = train_choice(
        copied,
        testbed.token_ids(np.sort(part)),
        replace(settings, targets=common_targets(trial_tokens, settings.step_tokens)),
        np.random.default_rng([*seed, 2]),
        hold_out_reference(testbed, testbed.texts.reference),
    )
    return losses.reference_loss


def judge(plans: Mapping[str, Sequence[PlanOutcome]]) -> list[Claim]:
    """Compare plans, seed by seed: refits with none, one schedule with restarts, stages with one shot."""
    loss = {name: _losses(found) for name, found in plans.items()}
    pairs = [("one shot", "random, one shot")]
    pairs += [(f"2 stages, refit {refit}", "2 stages, refit never") for refit in ("stage", "gated")]
    pairs += [("2 stages, refit never", "2 stages, restarts, refit never"), ("2 stages, refit gated", "one shot")]
    return [
        claim_most(f"reference loss, {first} less {second}", statistics.compare(loss[first], loss[second]), 0.0)
        for first, second in pairs
    ]


def _losses(found: Sequence[PlanOutcome]) -> list[float]:
    return [one.reference_loss for one in found]


def _lowest_first(result: Result) -> list[tuple[str, list[PlanOutcome]]]:
    return sorted(result.plans.items(), key=lambda item: float(np.mean(_losses(item[1]))))


def lay_out(result: Result) -> Tables:
    """Lay out a row a plan, lowest reference loss first, and what it shows."""
    rows = []
    for name, found in _lowest_first(result):
        refits = [refit for one in found for refit in one.refits]
        others = measured_only([one.other_domains_bpb for one in found])
        used = f"{sum(refit.accepted for refit in refits)} of {len(refits)}"
        rows.append(
            {
                "plan": name,
                "reference loss": within(statistics.interval(_losses(found))),
                "other domains, bits per byte": within(statistics.interval(others)) if others else "",
                "refits used": used if refits else "",
                "rank correlation with first influence": f"{np.mean([refit.stale for refit in refits]):.2f}"
                if refits
                else "",
            }
        )
    title = f"{result.budget_tokens:,} tokens of {result.documents:,} documents, {SEEDS} seeds"
    return {title: rows, **claims_table(result.shows)}


def draw(result: Result) -> dict[str, Figure]:
    """Draw every plan's loss after its last stage, and the losses stage by stage."""
    figure, (left, right) = plots.page_figure(3.8, columns=2)
    ordered = _lowest_first(result)
    found = [statistics.interval(_losses(outcomes)) for _, outcomes in ordered]
    plots.draw_bars(left, [name for name, _ in ordered], found, [_colour(name) for name, _ in ordered])
    plots.label(left, "reference loss (nats per token)", title="After the whole budget")
    before = result.before.reference_loss
    for name in ("one shot", *(f"2 stages, refit {refit}" for refit in COLOURS)):
        by_stage = zip(*(one.losses for one in result.plans[name]), strict=True)
        history = [Interval(before, before, before), *(statistics.interval(losses) for losses in by_stage)]
        tokens = np.linspace(0, result.budget_tokens / 1000, len(history)).tolist()
        plots.draw_course(right, tokens, history, _colour(name), name)
    plots.label(right, "tokens trained on (thousands)", "reference loss (nats per token)", "After each stage")
    right.legend(fontsize=plots.TICK_PT, frameon=False)
    return {"stages": figure}


def _colour(name: str) -> str:
    return next((colour for refit, colour in COLOURS.items() if name.endswith(refit)), plots.GREY)


STAGES = Experiment(
    "one choice against stages, refitted or not, one schedule or restarts", Result, measure_stages, lay_out, draw
)
