"""Draw the pictures of the concept pages: `python docs/pictures.py docs/pictures`.

Each shows a small case that is computed here, by the product's own code where it has some. Drawn in middle tones on a
transparent ground, so that they read on a light and on a dark page, and narrow enough for a telephone.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from quad_tasks.core import bandit
from quad_tasks.core.clustering.kmeans import assign_arms, train_centroids
from quad_tasks.records import Pull
from quad_tasks.runtime.plot_style import IMAGE, PANEL_IN, rc

BLUE, RED, GREY = IMAGE.selected, IMAGE.baseline, IMAGE.ink
ARM_COLOURS = ("#2e8bc0", "#c8643c", "#2f9e6e", "#a0699b", "#b08a1f")
BOX = {"boxstyle": "round,pad=0,rounding_size=0.06", "linewidth": 1.3, "facecolor": "none"}


def draw_influence() -> Figure:
    """Draw gradients of two documents against the reference's, before and after the inverse Hessian."""
    hessian = np.array([[4.0, 1.5], [1.5, 1.0]])
    reference = np.array([1.0, 0.9])
    direction = np.linalg.solve(hessian + 0.1 * np.trace(hessian) / 2 * np.eye(2), reference)
    direction *= np.linalg.norm(reference) / np.linalg.norm(direction)
    documents = {"document A": np.array([-0.45, 1.05]), "document B": np.array([1.1, -0.55])}
    figure = Figure(figsize=(PANEL_IN, 2.9), layout="constrained")
    for axes, along, name in zip(
        figure.subplots(1, 2), (reference, direction), ("gradients alone", "with the Hessian"), strict=True
    ):
        axes.set_title(name)
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.0, 1.8), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        label = "$g_r$" if along is reference else "$v$"
        axes.axline((0, 0), along, color=GREY, linewidth=0.8, linestyle=":")
        _arrow(axes, along, GREY)
        axes.annotate(label, along, xytext=(4, 4), textcoords="offset points", parse_math=True, fontsize=11)
        for (document, gradient), colour in zip(documents.items(), (BLUE, RED), strict=True):
            unit = along / np.linalg.norm(along)
            foot = unit * (gradient @ unit)
            _arrow(axes, gradient, colour)
            axes.plot(*np.stack([gradient, foot]).T, color=colour, linewidth=0.9, linestyle="--")
            axes.annotate(
                f"{document[-1]}: {gradient @ along:+.2f}",
                gradient,
                xytext=(-6 if gradient[1] > 0 else 0, 6 if gradient[1] > 0 else -14),
                textcoords="offset points",
                color=colour,
                ha="center",
            )
    return figure


def draw_arms() -> Figure:
    """Draw documents clustered into arms, and the pool laid out arm by arm with a cursor in each."""
    generator = np.random.default_rng(3)
    centres = np.array([[0, 0], [3.0, 0.6], [1.4, 2.4], [4.4, 2.6], [-1.4, 2.2]])
    sizes = (60, 40, 50, 25, 35)
    points = np.concatenate([c + 0.55 * generator.standard_normal((n, 2)) for c, n in zip(centres, sizes, strict=True)])
    rows = points.astype(np.float32)
    arm, _ = assign_arms(rows, train_centroids(rows, len(centres), seed=5))
    figure = Figure(figsize=(PANEL_IN, 3.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(2.6, 1))
    for number, colour in enumerate(ARM_COLOURS):
        top.plot(*points[arm == number].T, "o", color=colour, markersize=3.5)
    top.set_title("documents by embedding, a colour an arm")
    top.set(xticks=[], yticks=[])
    top.spines[:].set_visible(False)
    left = 0
    for number, colour in enumerate(ARM_COLOURS):
        n = int(np.count_nonzero(arm == number))
        drawn = (14, 4, 10, 4, 4)[number]
        bottom.add_patch(Rectangle((left, 0), n, 1, facecolor=colour, alpha=0.25, edgecolor="none"))
        bottom.add_patch(Rectangle((left, 0), drawn, 1, facecolor=colour, edgecolor="none"))
        bottom.annotate(
            "", (left + drawn, 1.02), xytext=(left + drawn, 1.6), arrowprops={"arrowstyle": "->", "color": GREY}
        )
        left += n + 3
    bottom.set_title("the pool on disk: arm by arm, drawn so far, a cursor each")
    bottom.set(xlim=(0, left), ylim=(-0.1, 1.7), xticks=[], yticks=[])
    bottom.spines[:].set_visible(False)
    return figure


def draw_rounds() -> Figure:
    """Draw the Cluster Score of eight arms after some rounds: the mean reward and the exploration bonus."""
    generator = np.random.default_rng(1)
    means = np.array([0.9, 0.75, 0.6, 0.55, 0.35, 0.3, 0.15, 0.05])
    policy = bandit.paper_policy(arms_per_round=3, documents_per_pull=4)
    state = bandit.initial_state([400] * len(means))
    for _ in range(9):
        pulls = []
        for arm in bandit.choose_arms(state, policy, generator):
            scores = means[arm] + 0.35 * generator.standard_normal(4)
            pulls.append(Pull(int(arm), int(state.cursor[arm]), 4, 4, float(scores.mean()), float(scores.var())))
        state = bandit.update(state, pulls, policy)
    mean, score = bandit.mean_rewards(state), bandit.ucb_scores(state, policy)
    chosen = set(np.argsort(-score)[: policy.arms_per_round].tolist())
    figure = Figure(figsize=(PANEL_IN, 2.9), layout="constrained")
    axes = figure.subplots()
    where = np.arange(len(means))
    colours = [BLUE if arm in chosen else GREY for arm in where]
    axes.bar(where, mean, color=colours, width=0.7, label="mean reward")
    axes.bar(where, score - mean, bottom=mean, color="none", edgecolor=colours, width=0.66, hatch="////", linewidth=0.8)
    axes.set_xticks(where, [f"{int(n)}" for n in state.pulls])
    axes.set(xlabel="pulls of each arm so far", ylabel="influence per token")
    axes.grid(visible=False, axis="x")
    axes.set_title("Cluster Score: mean (solid) + bonus (hatched);\nthe 3 highest, blue, are pulled next")
    return figure


def draw_stages() -> Figure:
    """Draw the steps of a run, what each commits, and where the next stage goes back to."""
    rows = [["ingest", "embed", "cluster"], ["fit factors", "direction", "rounds"], ["select", "train", "publish"]]
    figure = Figure(figsize=(PANEL_IN, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.15, 3.5), ylim=(-0.55, 3.0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for line, names in enumerate(rows):
        y, colour = 2.4 - line * 1.15, (GREY, BLUE, RED)[line]
        for column, name in enumerate(names):
            x = column * 1.2
            axes.add_patch(FancyBboxPatch((x, y), 0.95, 0.5, edgecolor=colour, **BOX))
            axes.text(x + 0.475, y + 0.25, name, ha="center", va="center", fontsize=10.5)
            if column < 2:
                _line(axes, (x + 0.97, y + 0.25), (x + 1.18, y + 0.25))
    for line in (0, 1):
        y = 2.4 - line * 1.15
        _line(axes, (2.875, y - 0.03), (0.475, y - 0.62), "arc3,rad=0")
    axes.plot([1.675, 1.675, -0.12, -0.12], [0.08, -0.12, -0.12, 1.5], color=RED, linewidth=1)
    _line(axes, (-0.12, 1.5), (-0.01, 1.5), colour=RED)
    axes.text(1.72, -0.1, "next stage, refitted", fontsize=10, color=RED, ha="left", va="center")
    axes.text(-0.12, -0.42, "each step commits; a resume starts there", fontsize=10)
    return figure


def draw_evidence() -> Figure:
    """Draw the two trainings of a stage from one checkpoint, and what is measured after both."""
    figure = Figure(figsize=(PANEL_IN, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.1, 4.6), ylim=(-0.15, 2.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    boxes = {
        "checkpoint": ((0, 0.95), GREY),
        "selected\ntokens": ((1.55, 1.7), BLUE),
        "as many random\ntokens": ((1.55, 0.2), RED),
        "reference loss,\nother domains": ((3.3, 1.7), BLUE),
        "the same,\nmeasured alike": ((3.3, 0.2), RED),
    }
    for name, ((x, y), colour) in boxes.items():
        axes.add_patch(FancyBboxPatch((x, y), 1.2, 0.55, edgecolor=colour, **BOX))
        axes.text(x + 0.6, y + 0.275, name, ha="center", va="center", fontsize=9)
    for y, colour in ((1.975, BLUE), (0.475, RED)):
        _line(axes, (1.22, 1.225), (1.53, y), "arc3,rad=0", colour)
        _line(axes, (2.77, y), (3.28, y), "arc3,rad=0", colour)
        axes.text(3.02, y + 0.1, "train", ha="center", fontsize=9, color=colour)
    axes.annotate("", (3.9, 0.8), xytext=(3.9, 1.65), arrowprops={"arrowstyle": "<->", "color": GREY, "linewidth": 1.2})
    axes.text(3.8, 1.22, "gain, with its interval", ha="right", va="center", fontsize=10)
    return figure


def _arrow(axes, tip, colour) -> None:
    axes.add_patch(
        FancyArrowPatch((0, 0), tuple(tip), arrowstyle="-|>", mutation_scale=11, color=colour, shrinkA=0, shrinkB=0)
    )


def _line(axes, start, end, path="arc3,rad=0", colour=GREY) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, color=colour, connectionstyle=path, shrinkA=0, shrinkB=0
        )
    )


PICTURES: dict[str, Callable[[], Figure]] = {
    "influence": draw_influence,
    "arms": draw_arms,
    "rounds": draw_rounds,
    "stages": draw_stages,
    "evidence": draw_evidence,
}


def main() -> None:
    """Draw every picture into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    for name, draw in PICTURES.items():
        with style.context(rc(IMAGE, svg_hashsalt=name), after_reset=True):
            draw().savefig(out / f"{name}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
