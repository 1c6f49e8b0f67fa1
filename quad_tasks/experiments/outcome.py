"""What a selection is worth: training on it from one checkpoint, on equal tokens, and the statistics over seeds."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from scipy.stats import t as student
from transformers import PreTrainedModel

from quad_tasks.core import training
from quad_tasks.core.training import Schedule

Float64 = npt.NDArray[np.float64]
Documents = Sequence[Sequence[int]]

RESAMPLES = 1_000
CONFIDENCE = 0.95


def continue_training(
    model: PreTrainedModel,
    documents: Documents,
    peak: float,
    window_tokens: int,
    batch_tokens: int,
    seed: int,
    warmup_share: float = 0.05,
) -> PreTrainedModel:
    """Train a copy of a checkpoint one pass over documents; the checkpoint is left as it was.

    Args:
        model: the checkpoint.
        documents: token ids.
        peak: peak learning rate.
        window_tokens: longest sequence.
        batch_tokens: tokens of a step, padding included.
        seed: draws the order.
        warmup_share: of the tokens.
    """
    trained = copy.deepcopy(model)
    n_tokens = sum(map(len, documents))
    schedule = Schedule(peak, warmup_share * n_tokens, n_tokens)
    optimizer, generator = training.make_optimizer(trained, 0.01), np.random.default_rng(seed)
    training.train(trained, optimizer, documents, schedule, 0, window_tokens, batch_tokens, generator)
    return trained


def loss_per_token(model: PreTrainedModel, documents: Documents, window_tokens: int, batch_tokens: int) -> float:
    """Measure nats per target token."""
    nats, n_targets = training.measure(model, documents, window_tokens, batch_tokens)
    return nats / n_targets


def interval(values: Float64) -> dict[str, Any]:
    """Compute mean, and low and high end of Student's 95 per cent interval, over the first axis: the seeds.

    Args:
        values: [seeds] or [seeds, rounds].
    """
    n = len(values)
    mean = values.mean(axis=0)
    half = student.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return {"mean": mean.tolist(), "low": (mean - half).tolist(), "high": (mean + half).tolist()}


def gain_share(baseline: Sequence[float], chosen: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    """Compare what a selection gains over a baseline with what the best one gains, repeat by repeat.

    Args:
        baseline: losses by repeat, e.g. after random documents.
        chosen: losses by repeat after the selection.
        best: losses by repeat after the best selection.

    Returns:
        `mean`, `low`, `high`: the share and Student's 95 per cent interval over repeats.
    """
    below = np.array(baseline)
    return interval((below - np.array(chosen)) / (below - np.array(best)))


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Test two methods' losses by pairs: mean difference (< 0: the first is lower), interval, p of a paired t."""
    difference_S = np.array(first) - np.array(second)
    error = float(difference_S.std(ddof=1)) / np.sqrt(len(difference_S))
    mean = float(difference_S.mean())
    p = 2 * float(student.sf(abs(mean) / error, len(difference_S) - 1)) if error > 0 else float(mean == 0)
    return {**interval(difference_S), "p": p}


def datamodelling_score(
    influence_N: Float64, subsets: Sequence[npt.NDArray[np.int64]], losses: Sequence[float]
) -> dict[str, float]:
    """Correlate subsets' summed influence with how low the loss is after training on them (LDS).

    Source: Park et al. 2023, arXiv 2303.14186. The interval resamples subsets 1,000 times.

    Args:
        influence_N: [N] influence summed over each document's targets; > 0: training on it lowers the loss.
        subsets: rows trained on.
        losses: reference loss after each subset.

    Returns:
        `mean`: Spearman's correlation; `low`, `high`: 2.5th and 97.5th percentile of the bootstrap.
    """
    return _bootstrap(lambda rows: _foresight(influence_N, subsets, losses, rows), len(losses))


def datamodelling_difference(
    first_N: Float64, second_N: Float64, subsets: Sequence[npt.NDArray[np.int64]], losses: Sequence[float]
) -> dict[str, float]:
    """Compute how much higher the first influence's datamodelling score is, over the same resamples of the subsets."""
    return _bootstrap(
        lambda rows: _foresight(first_N, subsets, losses, rows) - _foresight(second_N, subsets, losses, rows),
        len(losses),
    )


def _foresight(
    influence_N: Float64,
    subsets: Sequence[npt.NDArray[np.int64]],
    losses: Sequence[float],
    rows: npt.NDArray[np.int64],
) -> float:
    predicted = np.array([influence_N[subset].sum() for subset in subsets])
    return float(spearmanr(predicted[rows], -np.array(losses)[rows]).statistic)


def _bootstrap(statistic: Callable[[npt.NDArray[np.int64]], float], n: int) -> dict[str, float]:
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    low, high = np.nanquantile([statistic(rows) for rows in drawn], [0.025, 0.975])
    return {"mean": statistic(np.arange(n)), "low": float(low), "high": float(high)}


def claim(
    text: str, measured: Mapping[str, Any], least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """State a claim, what was measured with its interval, the limit, and whether the measured value holds to it.

    Args:
        text: what is measured.
        measured: `mean`, `low`, `high`.
        least: the measured value is to be at least this, or
        most: at most this.

    Returns:
        `claim`, `measured`, `low`, `high`, `limit` (as `>= 0.85`), `holds`; and `certain`, whether the whole interval
        holds to it.
    """
    mean, low, high = (float(measured[key]) for key in ("mean", "low", "high"))
    if least is not None:
        limit, holds, certain = f">= {least:g}", mean >= least, low >= least
    elif most is not None:
        limit, holds, certain = f"<= {most:g}", mean <= most, high <= most
    else:
        raise ValueError("limit: expected least or most, got neither")
    body = {"claim": text, "measured": mean, "low": low, "high": high, "limit": limit}
    return {**body, "holds": holds, "certain": certain}


def table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay methods out as a Markdown table, lowest reference loss first: means, and how far they are below random's."""
    rows = [
        "| method | scored | reference loss | less random's | other domains, bits per byte | less random's | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, method in sorted(methods.items(), key=lambda item: np.mean(item[1]["reference_loss"])):
        cells = [
            cell for key in ("reference_loss", "other_domains_bpb") for cell in mean_and_difference(methods, name, key)
        ]
        rows.append(
            f"| {name.replace('_', ' ')} | {method['scored_share']:.1%} | {' | '.join(cells)} "
            f"| {method['time_s']:.0f} s |"
        )
    return "\n".join(rows) + "\n"


def mean_and_difference(methods: Mapping[str, Mapping[str, Any]], name: str, key: str) -> tuple[str, str]:
    """Write a method's mean, and how much of it is left once random's is taken away, with a 95 per cent interval.

    Repeats differ more than methods do, so that only differences within repeats tell methods apart.
    """
    values = methods[name][key]
    if None in values:
        return "", ""
    found = compare(values, methods["random"][key])
    difference = f"{found['mean']:+.3f} ± {found['high'] - found['mean']:.3f}" if name != "random" else ""
    return f"{np.mean(values):.3f}", difference
