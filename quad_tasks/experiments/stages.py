"""Experiment "stages": one choice for the whole budget against stages, each with its own, and when refitting helps.

Plans of equal tokens start from one checkpoint. A stage of a plan trains on the next part of the budget. `refit` says
which ranking a stage after the first takes it from (method: "Stages"):

    never   the first one
    stage   one along the direction fitted at the checkpoint so far, a tenth of the documents scored anew
    gated   that one, where a trial from the same checkpoint on half of a stage's tokens leaves less loss than a trial
            on the best that the last ranking has left; both measured on the direction's own reference documents, so
            that the held-out loss stays unseen

One optimizer state and one learning-rate schedule run through all stages, or both start anew each stage (`restart`).
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from quad_tasks.config import RunConfig, TrainingConfig
from quad_tasks.core import training
from quad_tasks.core.influence import score_documents
from quad_tasks.core.model import make_batches
from quad_tasks.core.selection import fill_budget
from quad_tasks.experiments import drawing, lookup, outcome
from quad_tasks.experiments.experiment import Experiment, Rows, shows_table, within
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.laboratory import (
    Laboratory,
    directions,
    encode_windows,
    find_laboratory,
    open_laboratory,
    prediction_features,
)
from quad_tasks.experiments.outcome import loss_per_token
from quad_tasks.experiments.sample import QUICK, Size
from quad_tasks.experiments.trials import CONTINUED_RATE, measure_model

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Refit = Literal["never", "stage", "gated"]

WARMUP_SHARE = 0.05
TRIAL_SHARE = 0.5
"""Of a stage's tokens, that each of the gate's two trials trains on."""
SEEDS = 3
COLOURS = {"never": drawing.BLUE, "stage": drawing.RED, "gated": drawing.GREEN}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a budget is spent.

    Attributes:
        stages: parts of equal tokens.
        refit: which ranking a stage takes its part from.
        restart: whether optimizer and schedule start anew each stage.
        random: documents are drawn at random instead.
    """

    stages: int = 1
    refit: Refit = "never"
    restart: bool = False
    random: bool = False


REFITS: tuple[Refit, ...] = ("never", "stage", "gated")
PLANS = {
    "random, one shot": Plan(random=True),
    "one shot": Plan(),
    **{f"2 stages, refit {refit}": Plan(2, refit) for refit in REFITS},
    "2 stages, restarts, refit never": Plan(2, restart=True),
}


def measure_stages(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Carry out every plan with every seed."""
    laboratory = find_laboratory(workspace, config, QUICK if quick else Size())
    longest_first = sorted(PLANS, key=lambda name: (PLANS[name].refit == "never", -PLANS[name].stages))
    runs = [(name, seed) for name in longest_first for seed in range(SEEDS)]
    items = [(laboratory.workspace, laboratory.key, asdict(PLANS[name]), seed) for name, seed in runs]
    found = dict(zip(runs, kept(carry_out, items, "train", "plans"), strict=True))
    body = {name: [found[name, seed] for seed in range(SEEDS)] for name in PLANS}
    before = measure_model(laboratory, laboratory.model)
    return {
        "documents": len(laboratory.documents),
        "budget_tokens": laboratory.size.budget_tokens,
        "before": {key: before[key] for key in ("reference_loss", "other_domains_bpb")},
        "plans": body,
        "default_refit": TrainingConfig().refit,
        "shows": judge(body),
    }


def carry_out(workspace: str, key: str, said: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Carry out a plan, on a worker.

    Returns:
        As `measure_model` after the last stage; `losses`, the reference loss after each stage; of each refit, the rank
        correlation of new and first influence (`stale`), the share of the new choice that the old ranking would have
        taken (`agree`), and whether the gate let it pass (`accepted`).
    """
    laboratory, plan = open_laboratory(workspace, key), Plan(**said)
    size = laboratory.size
    budget = size.budget_tokens // plan.stages
    model = copy.deepcopy(laboratory.model)
    optimizer = training.make_optimizer(model, 0.01)
    ranking = _first_ranking(laboratory, seed)
    taken = np.empty(0, dtype=np.int64)
    done, losses, refits = 0, [], []
    for stage in range(plan.stages):
        rows = _next(laboratory, ranking, budget, taken, seed, plan.random)
        if stage > 0 and plan.refit != "never":
            fresh = _fresh_ranking(laboratory, model, [seed, stage])
            fresh_rows = _next(laboratory, fresh, budget, taken, seed, plan.random)
            said_refit = _compare(laboratory, fresh, fresh_rows, rows)
            if plan.refit == "gated":
                states = (model, optimizer, done, budget, plan)
                trials = [_trial(laboratory, *states, choice, [seed, stage]) for choice in (fresh_rows, rows)]
                said_refit |= {"trial_losses": trials}
            said_refit["accepted"] = plan.refit == "stage" or trials[0] < trials[1]
            refits.append(said_refit)
            if said_refit["accepted"]:
                ranking, rows = fresh, fresh_rows
        if plan.restart:
            optimizer, done = training.make_optimizer(model, 0.01), 0
        done = _train(laboratory, model, optimizer, rows, done, plan, [seed, stage])
        taken = np.concatenate([taken, rows])
        losses.append(_measured_loss(laboratory, model))
    return {**measure_model(laboratory, model), "losses": losses, "refits": refits}


@functools.lru_cache(maxsize=1)
def _features(workspace: str, key: str) -> Float64:
    return prediction_features(open_laboratory(workspace, key))


def _first_ranking(laboratory: Laboratory, seed: int) -> lookup.Known:
    return _rank(laboratory, laboratory.per_token["joint"], seed)


def _rank(laboratory: Laboratory, influence: lookup.Influence, seed: int) -> lookup.Known:
    features_ND, budget = _features(laboratory.workspace, laboratory.key), laboratory.size.budget_tokens
    return lookup.spend_scores(
        influence, laboratory.arm, laboratory.n_tokens, features_ND, budget, lookup.Rules(), seed
    )


def _fresh_ranking(laboratory: Laboratory, model: PreTrainedModel, seed: Sequence[int]) -> lookup.Known:
    """Fit factors and direction at a checkpoint; score as a run does along the new direction."""
    size, texts = laboratory.size, laboratory.texts
    sample = texts.pool[-size.factor_documents :]
    direction, _ = directions(model, laboratory.tokenizer, sample, texts.reference, "joint", size)

    def score(rows: Int64) -> Float64:
        documents = [laboratory.documents[row] for row in rows]
        batches, owner = make_batches(documents, size.window_tokens, size.batch_tokens)
        scores = score_documents(model, batches, direction)
        per_token: Float64 = (scores.influence / scores.n_tokens)[np.argsort(owner.numpy())]
        return per_token

    return _rank(laboratory, score, int(np.random.default_rng(seed).integers(2**31)))


def _next(
    laboratory: Laboratory, ranking: lookup.Known, budget: int, taken: Int64, seed: int, at_random: bool
) -> Int64:
    """Take the best of a ranking that is left, or random documents."""
    if at_random:
        order = np.random.default_rng([seed, 1]).permutation(len(laboratory.documents))
        return fill_budget(order, laboratory.n_tokens, budget)
    return lookup.select_known(
        ranking, laboratory.arm, laboratory.n_tokens, budget, lookup.Rules(), laboratory.embedding, seed, taken
    ).rows


def _compare(laboratory: Laboratory, fresh: lookup.Known, fresh_rows: Int64, rows: Int64) -> dict[str, Any]:
    scored = np.flatnonzero(~np.isnan(fresh.measured))
    first = laboratory.per_token["joint"][scored]
    return {
        "stale": float(spearmanr(first, fresh.measured[scored]).statistic),
        "agree": float(np.isin(fresh_rows, rows).mean()),
    }


def _trial(
    laboratory: Laboratory,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    done: int,
    budget: int,
    plan: Plan,
    rows: Int64,
    seed: Sequence[int],
) -> float:
    """Train a copy on the best part of a choice; return the loss on the direction's reference documents."""
    size = laboratory.size
    tried = copy.deepcopy(model)
    own = training.make_optimizer(tried, 0.01)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    part = fill_budget(rows, laboratory.n_tokens, int(TRIAL_SHARE * budget))
    _train(laboratory, tried, own, part, 0 if plan.restart else done, plan, seed)
    reference = encode_windows(laboratory.tokenizer, laboratory.texts.reference, size)
    return loss_per_token(tried, reference, size.window_tokens, size.batch_tokens)


def _train(
    laboratory: Laboratory,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Int64,
    done: int,
    plan: Plan,
    seed: Sequence[int],
) -> int:
    """Train on rows, in place; return tokens trained so far under the schedule."""
    size = laboratory.size
    total = size.budget_tokens // (plan.stages if plan.restart else 1)
    schedule = training.Schedule(CONTINUED_RATE, WARMUP_SHARE * total, total)
    documents = [laboratory.documents[row] for row in np.sort(rows)]
    return training.train(
        model,
        optimizer,
        documents,
        schedule,
        done,
        size.window_tokens,
        2 * size.batch_tokens,
        np.random.default_rng(list(seed)),
    )


def _measured_loss(laboratory: Laboratory, model: PreTrainedModel) -> float:
    size = laboratory.size
    measured = encode_windows(laboratory.tokenizer, laboratory.texts.measured, size)
    return loss_per_token(model, measured, size.window_tokens, size.batch_tokens)


def judge(plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Compare plans, seed by seed: refits with none, one schedule with restarts, stages with one shot."""
    loss = {name: [one["reference_loss"] for one in found] for name, found in plans.items()}
    pairs = [("one shot", "random, one shot")]
    pairs += [(f"2 stages, refit {refit}", "2 stages, refit never") for refit in ("stage", "gated")]
    pairs += [("2 stages, refit never", "2 stages, restarts, refit never"), ("2 stages, refit gated", "one shot")]
    return [
        outcome.claim(f"reference loss, {first} less {second}", outcome.compare(loss[first], loss[second]), most=0.0)
        for first, second in pairs
    ]


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out a row a plan, lowest reference loss first, and what it shows."""
    rows = []
    for name, found in sorted(
        result["plans"].items(), key=lambda item: np.mean([f["reference_loss"] for f in item[1]])
    ):
        refits = [refit for one in found for refit in one["refits"]]
        rows.append(
            {
                "plan": name,
                "reference loss": _within(found, "reference_loss"),
                "other domains, bits per byte": _within(found, "other_domains_bpb"),
                "refits used": f"{sum(r['accepted'] for r in refits)} of {len(refits)}" if refits else "",
                "rank correlation with first influence": f"{np.mean([r['stale'] for r in refits]):.2f}"
                if refits
                else "",
            }
        )
    title = f"{result['budget_tokens']:,} tokens of {result['documents']:,} documents, {SEEDS} seeds"
    return {title: rows, **shows_table(result["shows"])}


def _within(found: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [one[key] for one in found]
    return "" if None in values else within(outcome.interval(np.array(values)))


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw every plan's loss after its last stage, and the losses stage by stage."""
    plans = result["plans"]
    figure, (left, right) = drawing.page_figure(3.8, columns=2)
    order = sorted(plans, key=lambda name: float(np.mean([one["reference_loss"] for one in plans[name]])))
    found = [outcome.interval(np.array([one["reference_loss"] for one in plans[name]])) for name in order]
    drawing.draw_bars(left, order, found, [_colour(name) for name in order])
    drawing.label(left, "reference loss (nats per token)", title="After the whole budget")
    budget, before = result["budget_tokens"] / 1000, result["before"]["reference_loss"]
    start = {"mean": before, "low": before, "high": before}
    shown = ["one shot", *(f"2 stages, refit {refit}" for refit in COLOURS)]
    for name in shown:
        losses = np.array([one["losses"] for one in plans[name]])
        course = [
            start,
            *({key: value[i] for key, value in outcome.interval(losses).items()} for i in range(losses.shape[1])),
        ]
        tokens = np.linspace(0, budget, losses.shape[1] + 1).tolist()
        drawing.draw_course(right, tokens, course, _colour(name), name)
    drawing.label(right, "tokens trained on (thousands)", "reference loss (nats per token)", "After each stage")
    right.legend(fontsize=drawing.TICK_PT, frameon=False)
    return {"stages": figure}


def _colour(name: str) -> str:
    return next((colour for refit, colour in COLOURS.items() if name.endswith(refit)), drawing.GREY)


STAGES = Experiment(
    "one choice against stages, refitted or not, one schedule or restarts", measure_stages, tables, draw
)
