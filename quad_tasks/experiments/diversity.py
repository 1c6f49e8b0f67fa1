"""Experiment "diversity": compare what Quad and other methods select on equal tokens, and train on it.

Every method sees only the scores it pays for (`diversity_methods`). The models trained on a testbed's selections start
from its checkpoint. All is repeated in several testbeds, since losses differ more between checkpoints than between the
seeds of selection and training.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation import statistics
from quad_tasks.experiments.diversity_methods import COST_SHARE, Method, cost_share, estimate_flops, list_methods
from quad_tasks.experiments.diversity_report import Comparisons, HeldOutLosses, MethodOutcome, Result, draw, lay_out
from quad_tasks.experiments.experiment import Experiment
from quad_tasks.experiments.lab import simulation
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.corpus_sample import QUICK, Size
from quad_tasks.experiments.lab.evaluation import Outcome, claim_least, claim_most, measured_only
from quad_tasks.experiments.lab.model_baselines import Adapted, find_adapted
from quad_tasks.experiments.lab.scorer_cost import ScorerCost, find_scorer
from quad_tasks.experiments.lab.testbed import Testbed, find_testbeds, open_testbed
from quad_tasks.experiments.lab.train_choice import Losses, measure_losses
from quad_tasks.experiments.lab.trials import hold_out, profile, train_trials
from quad_tasks.runtime.tasks import map_tasks

Int64 = npt.NDArray[np.int64]

COMPARED = ("quad", "full_influence", "random")
SUBJECTS = {"quad": "Quad", "quad_conditional_loss": "Quad by the conditional loss"}
"""Methods that are claimed to leave less reference loss than others do, and how the claims name them."""


@dataclass(frozen=True)
class Selected:
    """A method's selection.

    Attributes:
        rows: best first.
        scored_share: of the pool's documents.
        scoring: FLOPs of their scores, as a share of scoring the whole pool exactly.
        seconds: of selecting.
    """

    rows: list[int]
    scored_share: float
    scoring: float
    seconds: float


@dataclass(frozen=True)
class Repeat:
    """One method's outcome in one testbed.

    Attributes:
        losses: after training on the selection.
        influence_share: of the achievable influence.
        diversity: by measure (`core.evaluation.diversity`).
        by_source: share of the selected tokens by source.
        tokens: selected.
        scored_share: of the pool's documents.
        time_s: of selecting, on one core.
        flops: of selecting.
        cost_share: of scoring the whole pool exactly, in model FLOPs: what is read of the pool.
    """

    losses: Losses
    influence_share: float
    diversity: dict[str, float]
    by_source: dict[str, float]
    tokens: int
    scored_share: float
    time_s: float
    flops: float
    cost_share: float


def measure_diversity(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Compare all methods in as many testbeds as the size has seeds."""
    size = QUICK if quick else Size()
    return compare_methods(find_testbeds(workspace, config, size, size.seeds))


def compare_methods(testbeds: Sequence[Testbed], names: Sequence[str] | None = None) -> Result:
    """Select by every method in every testbed, train on the selection, measure.

    A testbed is a repeat: sample, reference, held-out text and checkpoint are its own, and so are the draws of the
    selection and the order of training. Intervals are over repeats, differences within one.

    Args:
        testbeds: to measure in.
        names: of the methods (`diversity_methods.list_methods`); Quad, full scoring and random are compared in any
            case. None: all.
    """
    found = [(one.workspace, one.key, COST_SHARE) for one in testbeds]
    scorers = map_cached(find_scorer, found, "calibrate", "testbeds")
    repeats = [
        _measure_methods(testbed, scorer, seed, names)
        for seed, (testbed, scorer) in enumerate(zip(testbeds, scorers, strict=True))
    ]
    before = [measure_losses(testbed.model, hold_out(testbed)) for testbed in testbeds]
    methods = {name: _join_repeats([repeat[name] for repeat in repeats]) for name in repeats[0]}
    compared = compare_outcomes(methods)
    return Result(
        gain_share=compared.gain_share,
        gain_share_interval=compared.gain_share_interval,
        quad_less_other=compared.quad_less_other,
        quad_less_full_other_domains_bpb=compared.quad_less_full_other_domains_bpb,
        shows=compared.shows,
        documents=int(np.mean([len(testbed.documents) for testbed in testbeds])),
        budget_tokens=testbeds[0].size.budget_tokens,
        seeds=len(testbeds),
        building_s=[dict(testbed.seconds) for testbed in testbeds],
        methods=methods,
        before=HeldOutLosses(
            [losses.reference_loss for losses in before],
            [losses.other_domains_bpb for losses in before],
            [losses.worst_domain_bpb for losses in before],
        ),
        scorers=scorers,
    )


def _measure_methods(testbed: Testbed, scorer: ScorerCost, seed: int, names: Sequence[str] | None) -> dict[str, Repeat]:
    """Select by every method, train and measure in one testbed."""
    methods = list_methods(testbed, scorer)
    if names is not None:
        methods = {name: method for name, method in methods.items() if name in {*names, *COMPARED}}
    items = [(testbed.workspace, testbed.key, scorer, name, seed) for name in methods]
    adapted = find_adapted(testbed) if any(method.adapts for method in methods.values()) else None
    selected: list[Selected] = map_tasks(select_by, items, "select", "methods")
    trained = train_trials(testbed, [(np.array(one.rows), seed) for one in selected])
    return {
        name: _measure_method(testbed, method, one, losses, adapted)
        for (name, method), one, losses in zip(methods.items(), selected, trained, strict=True)
    }


def _measure_method(
    testbed: Testbed, method: Method, selected: Selected, losses: Losses, adapted: Adapted | None
) -> Repeat:
    rows, shared_s = np.array(selected.rows), method.shared_s
    if method.adapts and adapted is not None:  # what the copy reads of a share is among the scores
        shared_s += adapted.train_s + (adapted.read_s if method.reads else 0.0)
    return Repeat(
        losses=losses,
        influence_share=simulation.share_reached_in(testbed, rows),
        diversity=profile(testbed, rows),
        by_source=_share_by_source(testbed, rows),
        tokens=int(testbed.n_tokens[rows].sum()),
        scored_share=selected.scored_share,
        time_s=shared_s + selected.scoring * testbed.seconds["score"] + selected.seconds,
        flops=estimate_flops(testbed, method, selected.scoring),
        cost_share=cost_share(testbed, method, selected.scoring),
    )


def select_by(workspace: str, key: str, scorer: ScorerCost, name: str, seed: int) -> Selected:
    """Select by one method, on a worker."""
    method = list_methods(open_testbed(workspace, key), scorer)[name]
    started = time.process_time()
    chosen = method.select(seed)
    return Selected(chosen.rows.tolist(), chosen.scored_share, chosen.scoring, time.process_time() - started)


def _share_by_source(testbed: Testbed, rows: Int64) -> dict[str, float]:
    """Compute each source's share of the selected tokens."""
    tokens: dict[str, int] = {}
    for row in rows:
        source = testbed.texts.source[row]
        tokens[source] = tokens.get(source, 0) + int(testbed.n_tokens[row])
    total = sum(tokens.values())
    return {source: n / total for source, n in tokens.items()}


def _join_repeats(repeats: Sequence[Repeat]) -> MethodOutcome:
    """Put one method's repeats together: a list where an interval is asked for, else the mean."""
    mixture, losses = _means([one.by_source for one in repeats]), [one.losses for one in repeats]
    return MethodOutcome(
        reference_loss=[one.reference_loss for one in losses],
        other_domains_bpb=[one.other_domains_bpb for one in losses],
        worst_domain_bpb=[one.worst_domain_bpb for one in losses],
        influence_share=[one.influence_share for one in repeats],
        tokens=[one.tokens for one in repeats],
        domains=_means([one.domains for one in losses]),
        by_source=dict(sorted(mixture.items(), key=lambda item: -item[1])),
        diversity={name: [one.diversity[name] for one in repeats] for name in repeats[0].diversity},
        scored_share=float(np.mean([one.scored_share for one in repeats])),
        time_s=float(np.mean([one.time_s for one in repeats])),
        flops=float(np.mean([one.flops for one in repeats])),
        cost_share=float(np.mean([one.cost_share for one in repeats])),
    )


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average over repeats by name; a name that a repeat lacks counts as zero there."""
    names = sorted({name for part in parts for name in part})
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}


def compare_outcomes(methods: Mapping[str, Outcome]) -> Comparisons:
    """Compare Quad with the other methods, repeat by repeat."""
    quad, full = methods["quad"], methods["full_influence"]
    gained = statistics.gain_share(methods["random"].reference_loss, quad.reference_loss, full.reference_loss)
    less = {
        name: statistics.compare(quad.reference_loss, method.reference_loss)
        for name, method in methods.items()
        if name != "quad"
    }
    quad_others, full_others = measured_only(quad.other_domains_bpb), measured_only(full.other_domains_bpb)
    loss_increase = statistics.compare(quad_others, full_others) if quad_others and full_others else None
    claims = [claim_least("gain over random, as a share of full scoring's", gained, 0.85)]
    for ours, words in SUBJECTS.items():
        for name, method in methods.items():
            if ours in methods and not name.startswith("quad") and method.scored_share < 1:
                found = statistics.compare(methods[ours].reference_loss, method.reference_loss)
                claims.append(claim_most(f"reference loss, {words} less {name.replace('_', ' ')}", found, 0.0))
    if loss_increase is not None:
        claims.append(claim_most("other domains' bits per byte, Quad less full scoring", loss_increase, 0.0))
    return Comparisons(gained.mean, (gained.low, gained.high), less, loss_increase, claims)


DIVERSITY = Experiment(
    "what Quad and other ways choose on equal tokens, how diverse it is, and what training on it is worth",
    Result,
    measure_diversity,
    lay_out,
    draw,
)
