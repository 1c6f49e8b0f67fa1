"""Experiment "attention": test whether influence predicts training, with attention as one block, three, or left out.

Two tests of each kind of curvature, from one checkpoint. The linear datamodelling score (Park et al. 2023, arXiv
2303.14186): random subsets are trained on, and the influence each sums to is ranked against the loss it leaves. One
step: a batch is trained on in a single step of AdamW, and its influence is ranked against the change of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.core.lm.training import count_targets
from quad_tasks.experiments.experiment import Experiment, Tables, claims_table, within
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.cache import map_cached
from quad_tasks.experiments.lab.corpus_sample import QUICK, SCORES, Size
from quad_tasks.experiments.lab.evaluation import Claim, claim_least, datamodelling_difference, datamodelling_score
from quad_tasks.experiments.lab.testbed import Testbed, find_testbed, open_testbed
from quad_tasks.experiments.lab.train_choice import begin, one_pass, train_choice
from quad_tasks.experiments.lab.trials import continued_settings, hold_out_reference

Int64 = npt.NDArray[np.int64]

SUBSETS, STEPS = 384, 192
SUBSET_SHARE = 0.5
"""Share of the drawn documents that a subset holds."""
DRAWN_DOCUMENTS = 1_024
STEP_DOCUMENTS = 8
STEP_RATE = 1e-3
LEEWAY = 0.01
"""How much lower than MLP alone the LDS of attention split may be."""

CONVERGED = Size(
    documents=800,
    trained_documents=800,
    epochs=5,
    reference_documents=200,
    measured_documents=150,
    factor_documents=256,
    width=64,
    layers=2,
    arms=40,
)
"""A testbed whose checkpoint has seen every document five times: influence assumes a model near its optimum."""
QUICK_SUBSETS, QUICK_STEPS = 12, 24
NAMES = {"joint": "joint (q, k, v one block)", "split": "split", "mlp": "MLP alone", "identity": "identity"}
COLOURS = dict(zip(SCORES, (plots.RED, plots.BLUE, plots.GREEN, plots.GREY), strict=True))


@dataclass(frozen=True)
class Result:
    """Result of the experiment, by kind of curvature (`SCORES`).

    Attributes:
        lds: linear datamodelling score.
        lds_interval: both ends of its 95 per cent interval.
        one_step: rank correlation with the loss after one step.
        one_step_interval: both ends of its 95 per cent interval.
        lds_subsets: how many subsets were trained on.
        one_steps: how many single steps were taken.
        documents: of the testbed.
        fit_s: seconds of fitting factors and direction.
        score_s: seconds of scoring all documents along one direction.
        shows: the claims.
    """

    lds: dict[str, float]
    lds_interval: dict[str, tuple[float, float]]
    one_step: dict[str, float]
    one_step_interval: dict[str, tuple[float, float]]
    lds_subsets: int
    one_steps: int
    documents: int
    fit_s: dict[str, float]
    score_s: float
    shows: list[Claim]

    def lds_of(self, kind: str) -> Interval:
        """Return the datamodelling score of a kind with its interval."""
        return Interval(self.lds[kind], *self.lds_interval[kind])

    def one_step_of(self, kind: str) -> Interval:
        """Return the correlation after one step of a kind with its interval."""
        return Interval(self.one_step[kind], *self.one_step_interval[kind])


def measure_attention(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Build a converged testbed and validate every kind's influence in it."""
    if quick:
        size = replace(QUICK, trained_documents=1_000, factor_documents=192, epochs=2, kinds=None)
        return validate_influence(find_testbed(workspace, config, size), QUICK_SUBSETS, QUICK_STEPS)
    return validate_influence(find_testbed(workspace, config, CONVERGED))


def validate_influence(testbed: Testbed, n_subsets: int = SUBSETS, n_steps: int = STEPS) -> Result:
    """Train on random subsets and take single steps; correlate the losses with every kind's influence.

    Args:
        testbed: gives checkpoint, documents and influence.
        n_subsets: how many subsets are trained on.
        n_steps: how many single steps are taken.
    """
    generator, n_documents = np.random.default_rng(2), len(testbed.documents)
    subsets = _draw_subsets(n_documents, n_subsets, generator)
    batches = [generator.choice(n_documents, STEP_DOCUMENTS, replace=False) for _ in range(n_steps)]
    place = (testbed.workspace, testbed.key)
    subset_losses = map_cached(subset_loss, [(*place, subset.tolist()) for subset in subsets], "train", "subsets")
    parts = [(*place, part.tolist()) for part in np.array_split(batches, min(8, n_steps))]
    batch_losses = [loss for part in map_cached(step_losses, parts, "step", "batches") for loss in part]
    influence = testbed.influence
    lds = {kind: datamodelling_score(influence[kind], subsets, subset_losses) for kind in SCORES}
    one_step = {kind: datamodelling_score(influence[kind], batches, batch_losses) for kind in SCORES}
    return Result(
        lds={kind: found.mean for kind, found in lds.items()},
        lds_interval={kind: (found.low, found.high) for kind, found in lds.items()},
        one_step={kind: found.mean for kind, found in one_step.items()},
        one_step_interval={kind: (found.low, found.high) for kind, found in one_step.items()},
        lds_subsets=n_subsets,
        one_steps=n_steps,
        documents=n_documents,
        fit_s={kind: testbed.seconds.get(f"fit_{kind}", 0.0) for kind in SCORES},
        score_s=testbed.seconds["score"],
        shows=_claims(testbed, subsets, subset_losses),
    )


def _draw_subsets(n_documents: int, n_subsets: int, generator: np.random.Generator) -> list[Int64]:
    """Draw subsets of equal size from a random part of the documents."""
    n_drawn = min(DRAWN_DOCUMENTS, n_documents // 2)
    rows = generator.choice(n_documents, n_drawn, replace=False)
    size = int(SUBSET_SHARE * n_drawn)
    return [np.sort(generator.choice(rows, size, replace=False)) for _ in range(n_subsets)]


def _claims(testbed: Testbed, subsets: Sequence[Int64], losses: Sequence[float]) -> list[Claim]:
    def difference(first: str, second: str) -> Interval:
        return datamodelling_difference(testbed.influence[first], testbed.influence[second], subsets, losses)

    return [
        claim_least("LDS, joint less split", difference("joint", "split"), 0.0),
        claim_least("LDS, split less MLP alone", difference("split", "mlp"), -LEEWAY),
        *(claim_least(f"LDS, {kind} less identity", difference(kind, "identity"), 0.0) for kind in SCORES[:-1]),
    ]


def subset_loss(workspace: str, key: str, rows: Sequence[int]) -> float:
    """Train on rows, one pass under a schedule of their own, on a worker; return the reference loss."""
    testbed = open_testbed(workspace, key)
    chosen, held_out = testbed.token_ids(rows), hold_out_reference(testbed, testbed.texts.measured)
    settings, generator = continued_settings(testbed, count_targets(chosen)), np.random.default_rng(0)
    return train_choice(begin(testbed.model), chosen, settings, generator, held_out)[1].reference_loss


def step_losses(workspace: str, key: str, batches: Sequence[Sequence[int]]) -> list[float]:
    """Take a single optimizer step on each batch of rows from the checkpoint, on a worker; the loss after each."""
    testbed = open_testbed(workspace, key)
    held_out, window_tokens = hold_out_reference(testbed, testbed.texts.measured), testbed.size.window_tokens
    losses = []
    for rows in batches:
        chosen, generator = testbed.token_ids(rows), np.random.default_rng(0)
        settings = one_pass(
            count_targets(chosen),
            STEP_RATE,
            window_tokens,
            STEP_DOCUMENTS * window_tokens,
            testbed.size.batch_tokens,
            warmup_share=0.0,
        )
        _, found = train_choice(begin(testbed.model), chosen, settings, generator, held_out)
        losses.append(found.reference_loss)
    return losses


def lay_out(result: Result) -> Tables:
    """Lay out a row a kind of curvature, and what it shows."""
    rows = [
        {
            "curvature": NAMES[kind],
            f"LDS, {result.lds_subsets} subsets": within(result.lds_of(kind)),
            f"one step, {result.one_steps} batches": within(result.one_step_of(kind)),
            "fit": f"{result.fit_s[kind]:.0f} s",
        }
        for kind in SCORES
    ]
    title = f"Rank correlation with measured loss; scoring {result.documents:,} documents {result.score_s:.0f} s"
    return {title: rows, **claims_table(result.shows)}


def draw(result: Result) -> dict[str, Figure]:
    """Draw both correlations and the cost of a fit, a row a kind."""
    figure, panels = plots.page_figure(2.4, columns=3)
    names, colours = [NAMES[kind] for kind in SCORES], [COLOURS[kind] for kind in SCORES]
    correlations = {
        "Linear datamodelling score": [result.lds_of(kind) for kind in SCORES],
        "One step": [result.one_step_of(kind) for kind in SCORES],
    }
    for axes, (title, found) in zip(panels, correlations.items(), strict=False):
        plots.draw_bars(axes, names, found, colours)
        plots.label(axes, "rank correlation", title=title)
        axes.axvline(0, color=plots.BLACK, linewidth=0.6)
    places = list(range(len(SCORES)))[::-1]
    panels[2].barh(places, [result.fit_s[kind] for kind in SCORES], height=0.5, color=colours)
    panels[2].set_ylim(-0.6, len(SCORES) - 0.4)
    plots.label(panels[2], "time on one core (s)", title="Fit of factors and direction")
    for axes in panels[1:]:
        axes.set_yticks(places, [""] * len(places))
    return {"validity": figure}


ATTENTION = Experiment(
    "whether influence foresees training, with attention as one block, three, or left out",
    Result,
    measure_attention,
    lay_out,
    draw,
)
