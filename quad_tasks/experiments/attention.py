"""Experiment "attention": does influence foresee what training does, with attention as one block, three, or left out?

Two tests of each kind of curvature, from one checkpoint. The linear datamodelling score (Park et al. 2023, arXiv
2303.14186): random subsets are trained on, and the influence each sums to is ranked against the loss it leaves. One
step: a batch is trained on in a single step of AdamW, and its influence is ranked against the change of the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from quad_tasks.config import RunConfig
from quad_tasks.experiments import drawing, outcome
from quad_tasks.experiments.experiment import Experiment, Rows, shows_table, within
from quad_tasks.experiments.kept import kept
from quad_tasks.experiments.laboratory import Laboratory, encode_windows, find_laboratory, open_laboratory
from quad_tasks.experiments.outcome import continue_training, loss_per_token
from quad_tasks.experiments.sample import QUICK, SCORES, Size
from quad_tasks.experiments.trials import CONTINUED_RATE

Int64 = npt.NDArray[np.int64]

SUBSETS, STEPS = 384, 192
SUBSET_SHARE = 0.5
"""Of the documents the subsets are drawn from."""
DRAWN_DOCUMENTS = 1_024
STEP_DOCUMENTS = 8
STEP_RATE = 1e-3
LEEWAY = 0.01


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
"""The checkpoint has seen every document five times: influence assumes a model near its optimum."""
QUICK_SUBSETS, QUICK_STEPS = 12, 24
NAMES = {"joint": "joint (q, k, v one block)", "split": "split", "mlp": "MLP alone", "identity": "identity"}
COLOURS = dict(zip(SCORES, (drawing.RED, drawing.BLUE, drawing.GREEN, drawing.GREY), strict=True))


def measure_attention(workspace: str, config: RunConfig | None, quick: bool) -> dict[str, Any]:
    """Build a converged laboratory and validate every kind's influence in it."""
    if quick:
        return validate_influence(
            find_laboratory(workspace, config, replace(QUICK, documents=1_000, trained_documents=1_000, epochs=2)),
            QUICK_SUBSETS,
            QUICK_STEPS,
        )
    return validate_influence(find_laboratory(workspace, config, CONVERGED))


def validate_influence(laboratory: Laboratory, subsets: int = SUBSETS, steps: int = STEPS) -> dict[str, Any]:
    """Retrain on subsets and take single steps; correlate with every kind's influence.

    Args:
        laboratory: where.
        subsets: how many are trained on.
        steps: how many single steps are taken.
    """
    generator = np.random.default_rng(2)
    n_drawn = min(DRAWN_DOCUMENTS, len(laboratory.documents) // 2)
    rows = generator.choice(len(laboratory.documents), n_drawn, replace=False)
    trained = [np.sort(generator.choice(rows, int(SUBSET_SHARE * n_drawn), replace=False)) for _ in range(subsets)]
    place = (laboratory.workspace, laboratory.key)
    after = kept(subset_loss, [(*place, subset.tolist()) for subset in trained], "train", "subsets")
    stepped = [generator.choice(len(laboratory.documents), STEP_DOCUMENTS, replace=False) for _ in range(steps)]
    items = [(*place, part.tolist()) for part in np.array_split(stepped, min(8, steps))]
    stepped_after = [loss for part in kept(step_losses, items, "step", "batches") for loss in part]
    lds = {kind: outcome.datamodelling_score(laboratory.influence[kind], trained, after) for kind in SCORES}
    one = {kind: outcome.datamodelling_score(laboratory.influence[kind], stepped, stepped_after) for kind in SCORES}
    return {
        "lds": {kind: found["mean"] for kind, found in lds.items()},
        "lds_interval": {kind: [found["low"], found["high"]] for kind, found in lds.items()},
        "one_step": {kind: found["mean"] for kind, found in one.items()},
        "one_step_interval": {kind: [found["low"], found["high"]] for kind, found in one.items()},
        "lds_subsets": subsets,
        "one_steps": steps,
        "documents": len(laboratory.documents),
        "fit_s": {kind: laboratory.seconds.get(f"fit_{kind}", 0.0) for kind in SCORES},
        "score_s": laboratory.seconds["score"],
        "shows": _shows(laboratory, trained, after),
    }


def _shows(laboratory: Laboratory, trained: Sequence[Int64], after: Sequence[float]) -> list[dict[str, Any]]:
    def less(first: str, second: str) -> dict[str, float]:
        return outcome.datamodelling_difference(
            laboratory.influence[first], laboratory.influence[second], trained, after
        )

    return [
        outcome.claim("LDS, joint less split", less("joint", "split"), least=0.0),
        outcome.claim("LDS, split less MLP alone", less("split", "mlp"), least=-LEEWAY),
        *(outcome.claim(f"LDS, {kind} less identity", less(kind, "identity"), least=0.0) for kind in SCORES[:-1]),
    ]


def subset_loss(workspace: str, key: str, rows: Sequence[int]) -> float:
    """Train on rows, one pass under a schedule of their own, on a worker; return the reference loss."""
    laboratory = open_laboratory(workspace, key)
    size = laboratory.size
    chosen = [laboratory.documents[row] for row in rows]
    model = continue_training(laboratory.model, chosen, CONTINUED_RATE, size.window_tokens, 2 * size.batch_tokens, 0)
    measured = encode_windows(laboratory.tokenizer, laboratory.texts.measured, size)
    return loss_per_token(model, measured, size.window_tokens, size.batch_tokens)


def step_losses(workspace: str, key: str, batches: Sequence[Sequence[int]]) -> list[float]:
    """Take a single optimizer step on each batch of rows from the checkpoint, on a worker; the loss after each."""
    laboratory = open_laboratory(workspace, key)
    size = laboratory.size
    measured = encode_windows(laboratory.tokenizer, laboratory.texts.measured, size)
    losses = []
    for rows in batches:
        chosen = [laboratory.documents[row] for row in rows]
        batch_tokens = STEP_DOCUMENTS * size.window_tokens
        model = continue_training(laboratory.model, chosen, STEP_RATE, size.window_tokens, batch_tokens, 0, 0.0)
        losses.append(loss_per_token(model, measured, size.window_tokens, size.batch_tokens))
    return losses


def tables(result: Mapping[str, Any]) -> dict[str, Rows]:
    """Lay out a row a kind of curvature, and what it shows."""
    rows = []
    for kind in SCORES:
        lds, one = interval_of(result, "lds", kind), interval_of(result, "one_step", kind)
        rows.append(
            {
                "curvature": NAMES[kind],
                f"LDS, {result['lds_subsets']} subsets": within(lds),
                f"one step, {result['one_steps']} batches": within(one),
                "fit": f"{result['fit_s'][kind]:.0f} s",
            }
        )
    title = f"Rank correlation with measured loss; scoring {result['documents']:,} documents {result['score_s']:.0f} s"
    return {title: rows, **shows_table(result["shows"])}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw both correlations and the cost of a fit, a row a kind."""
    figure, panels = drawing.page_figure(2.4, columns=3)
    names, colours = [NAMES[kind] for kind in SCORES], [COLOURS[kind] for kind in SCORES]
    titles = {"lds": "Linear datamodelling score", "one_step": "One step"}
    for axes, (key, title) in zip(panels, titles.items(), strict=False):
        drawing.draw_bars(axes, names, [interval_of(result, key, kind) for kind in SCORES], colours)
        drawing.label(axes, "rank correlation", title=title)
        axes.axvline(0, color=drawing.BLACK, linewidth=0.6)
    places = list(range(len(SCORES)))[::-1]
    panels[2].barh(places, [result["fit_s"][kind] for kind in SCORES], height=0.5, color=colours)
    panels[2].set_ylim(-0.6, len(SCORES) - 0.4)
    drawing.label(panels[2], "time on one core (s)", title="Fit of factors and direction")
    for axes in panels[1:]:
        axes.set_yticks(places, [""] * len(places))
    return {"validity": figure}


def interval_of(result: Mapping[str, Any], key: str, kind: str) -> dict[str, float]:
    """Put a correlation and its interval together."""
    low, high = result[f"{key}_interval"][kind]
    return {"mean": result[key][kind], "low": low, "high": high}


ATTENTION = Experiment(
    "whether influence foresees training, with attention as one block, three, or left out",
    measure_attention,
    tables,
    draw,
)
