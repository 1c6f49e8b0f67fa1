"""Time, memory and agreement of the influence engine beside kronfluence 1.0.1, in float32, on one model and one text.

    make bench-influence
    python tests/benchmarks/bench_influence.py [--json] [--quick] [--threads 2] [--clock wall]

The model is an 8.5M-parameter Llama trained here for a short while; documents are 256 tokens. Each side works at its
best batch size (found on 8 documents); runs of the two sides alternate and medians are compared. A forward pass, the
unit of cost, is the model's own at ITS best batch size, without gradient, its loss included; `*_logits_units` leave the
loss out.
The peer's scoring starts from one reference document's gradient, and so does ours where the two are compared.

Agreement is measured in float64, `split`, on the data's own labels: in float32 the order of summation already
moves near-degenerate eigenvectors, and with them both sides' scores, by about 1e-3 (`max_rel_diff_float32`).
Peak memory is each side's own process, from the first import to the last score. `bfloat16_products` says whether this
CPU has them: then `fit` and the approximate scorers use them, `fit_float32`, which is a run's default, does not.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_model import LENGTH, VOCABULARY, batches_of, build_llama, corpus, token_rows, train_on
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.ekfac import Factors, apply_inverse, fit_factors
from quad_tasks.core.influence import gradient_sums, reference_gradient, score_documents
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.core.precision import has_bfloat16_products

BATCH_SIZES = (2, 4, 8)
N_PROBE = 8
N_AGREEMENT = 16
N_REFERENCE = 32
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu``, with one thread, is for a machine that others use at the same time."""


@dataclass(frozen=True)
class Sizes:
    """How much to measure on: documents (the second count once only), repeats and rows trained on."""

    n_documents: tuple[int, ...]
    fit_repeats: int
    score_repeats: int
    n_trained: int


FULL = Sizes(n_documents=(64, 256), fit_repeats=2, score_repeats=3, n_trained=640)
QUICK = Sizes(n_documents=(32,), fit_repeats=1, score_repeats=2, n_trained=320)


def seconds(work: Callable[[], object], clock: str) -> float:
    """Time one run."""
    start = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - start


def forward(model: PreTrainedModel, ids_NT: Tensor, size: int, with_loss: bool) -> None:
    """Run the model forward over all rows, as its users do."""
    with torch.inference_mode():
        for batch in batches_of(ids_NT, size):
            ids = batch["input_ids"]
            model(input_ids=ids, labels=ids if with_loss else None, use_cache=False)


class Ours:
    """Our side: a model, and the factors once fitted."""

    def __init__(self, model: PreTrainedModel, attention: Any = "joint") -> None:
        """Keep the model."""
        self.model = model
        self.attention = attention
        self.factors: Factors | None = None

    def fit(self, ids_NT: Tensor, size: int, rounded: bool = True) -> None:
        """Fit EK-FAC factors; a run rounds products only where `factors.rounded_products` is on."""
        self.factors = fit_factors(self.model, batches_of(ids_NT, size), self.attention, "empirical", rounded=rounded)

    def direction(self, reference_NT: Tensor) -> dict[str, Tensor]:
        """Take the iHVP of the reference's summed loss, as the peer does."""
        assert self.factors is not None
        blocks = list(self.factors.basis.blocks)
        return apply_inverse(self.factors, gradient_sums(self.model, batches_of(reference_NT, 1), blocks)[0])

    def score(
        self, reference_NT: Tensor, ids_NT: Tensor, size: int, scorer: str = "exact", **settings: float
    ) -> Tensor:
        """Score rows [N] against the summed loss of the reference, from its gradient on."""
        direction = self.direction(reference_NT)
        scores = score_documents(self.model, batches_of(ids_NT, size), direction, scorer, **settings)
        return torch.from_numpy(scores.influence)


def prepare(folder: Path, sizes: Sizes) -> None:
    """Train tokenizer and model; save the model's weights and the rows to measure on."""
    pool, reference = corpus()
    tokenizer = train_tokenizer(pool[:3000], VOCABULARY)
    n_measured = max(sizes.n_documents)
    rows_NT = token_rows(tokenizer, pool[:1500])[: n_measured + sizes.n_trained]
    model = build_llama()
    train_on(model, rows_NT[n_measured:])
    torch.save(model.state_dict(), folder / "model.pt")
    reference_NT = token_rows(tokenizer, reference[:400])[:N_REFERENCE]
    torch.save({"documents": rows_NT[:n_measured], "reference": reference_NT}, folder / "rows.pt")


def load(folder: Path) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """Read what `prepare` saved: model, documents [N, T], reference [R, T]."""
    model = build_llama()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    rows = torch.load(folder / "rows.pt", weights_only=True)
    return model, rows["documents"], rows["reference"]


def peer_of(model: PreTrainedModel, double: bool = False) -> Any:
    """Wrap a copy of the model for the peer."""
    from kronfluence_side import Peer

    modules = [block.name for block in find_blocks(model, "split")]
    return Peer(copy.deepcopy(model), modules, torch.float64 if double else torch.float32)


def best_batches(works: Mapping[str, Callable[[int], object]], clock: str) -> dict[str, int]:
    """Choose for each work the batch size at which it is fastest."""
    best: dict[str, int] = {}
    for name, work in works.items():
        times = {size: seconds(partial(work, size), clock) for size in BATCH_SIZES}
        best[name] = min(times, key=lambda size: times[size])
    return best


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int, clock: str) -> dict[str, float]:
    """Run all works in turn, several times over, and take the median time of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work, clock))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_times(
    model: PreTrainedModel,
    ids_NT: Tensor,
    reference_NT: Tensor,
    sizes: Sizes,
    clock: str,
    settings: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Time both sides, by number of documents; approximate scorers at the settings their calibration chose."""
    ours, peer, one_NT = Ours(model), peer_of(model), reference_NT[:1]
    fits: dict[str, Callable[[Tensor, int], object]] = {
        "fit_float32": partial(ours.fit, rounded=False),
        "fit": ours.fit,
        "peer_fit": peer.fit,
    }
    scores: dict[str, Callable[[Tensor, int], object]] = {
        "forward": lambda ids, size: forward(model, ids, size, True),
        "forward_logits": lambda ids, size: forward(model, ids, size, False),
        "direction": lambda ids, size: ours.direction(one_NT),
        "exact": lambda ids, size: ours.score(one_NT, ids, size),
        "low_rank": lambda ids, size: ours.score(one_NT, ids, size, "low_rank", **settings["low_rank"]),
        "forward_only": lambda ids, size: ours.score(one_NT, ids, size, "forward_only", **settings["forward_only"]),
        "peer_score": lambda ids, size: peer.score(one_NT, ids, size),
    }
    probe = ids_NT[:N_PROBE]
    best = best_batches({name: partial(work, probe) for name, work in {**fits, **scores}.items()}, clock)
    report: dict[str, Any] = {"batch_sizes": best}
    for index, n in enumerate(sizes.n_documents):
        times: dict[str, float] = {}
        for works, repeats in ((fits, sizes.fit_repeats), (scores, sizes.score_repeats)):
            chosen = {name: partial(work, ids_NT[:n], best[name]) for name, work in works.items()}
            times |= interleaved(chosen, repeats if index == 0 else 1, clock)
        report[str(n)] = with_ratios(times)
    return report


def with_ratios(times: dict[str, float]) -> dict[str, float]:
    """Add ratios to the peer and costs in forward passes to the times, in seconds.

    Ratios are of all that was timed. A direction is made once, however many documents there are, so that its time is
    left out of a document's cost in forward passes.
    """
    derived = {f"{name}_s": value for name, value in times.items()}
    for name in ("fit", "fit_float32", "exact", "low_rank", "forward_only"):
        fits = name.startswith("fit")
        alone = times[name] - (0 if fits else times["direction"])
        derived[f"{name}_ratio"] = times[name] / times["peer_fit" if fits else "peer_score"]
        derived[f"{name}_forward_units"] = alone / times["forward"]
        derived[f"{name}_logits_units"] = alone / times["forward_logits"]
    for name in ("peer_fit", "peer_score"):
        derived[f"{name}_forward_units"] = times[name] / times["forward"]
    return derived


def measure_agreement(model: PreTrainedModel, ids_NT: Tensor, reference_NT: Tensor, double: bool) -> dict[str, float]:
    """Compare document scores under aligned settings: largest difference over the largest score, and their ranks."""
    model = copy.deepcopy(model).double() if double else model
    ours, peer = Ours(model, "split"), peer_of(model, double)
    ours.fit(ids_NT, 4, rounded=False)
    peer.fit(ids_NT, 4)
    a, b = ours.score(reference_NT[:1], ids_NT, 4), peer.score(reference_NT[:1], ids_NT, 4)
    suffix = "" if double else "_float32"
    return {
        f"max_rel_diff{suffix}": float((a - b).abs().max() / b.abs().max()),
        f"spearman_peer{suffix}": float(spearmanr(a, b).statistic),
    }


def measure_spearman(
    model: PreTrainedModel, ids_NT: Tensor, reference_NT: Tensor
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Rank by approximations as by exact scores, on the trained model's true direction.

    Returns:
        `spearman_low_rank` and `spearman_forward_only` as calibrated; `spearman_rounded_fit`: of a fit of rounded
        products with one in float32, on the data's own labels; `spearman_bfloat16`: of the model in bfloat16 with
        float32; and the settings that calibration chose, by scorer.
    """
    batches = batches_of(ids_NT, 4)
    gradient = reference_gradient(model, batches_of(reference_NT, 4), find_blocks(model))
    fits = [
        fit_factors(model, batches),
        *(fit_factors(model, batches, "joint", "empirical", rounded=r) for r in (False, True)),
    ]
    direction, plain, rounded = (apply_inverse(factors, gradient) for factors in fits)
    exact, plain_fit, rounded_fit = (score_documents(model, batches, d).influence for d in (direction, plain, rounded))
    half = score_documents(copy.deepcopy(model).bfloat16(), batches, direction).influence
    report = {
        "spearman_rounded_fit": float(spearmanr(plain_fit, rounded_fit).statistic),
        "spearman_bfloat16": float(spearmanr(exact, half).statistic),
    }
    settings: dict[str, dict[str, float]] = {}
    scorers: tuple[str, ...] = ("low_rank", "forward_only")
    for scorer in scorers:
        calibration = calibrate(model, batches, torch.arange(len(ids_NT)), {"": direction}, scorer)
        report[f"spearman_{scorer}"] = calibration.spearman
        settings[scorer] = dict(calibration.settings)
    return report, settings


def peak_memory_mb(side: str, folder: Path, threads: int) -> float:
    """Run one side, fit and score, in a process of its own; its peak resident set in MB."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_side(side: str, folder: Path) -> None:
    """Fit and score with one side alone and print this process's peak resident set, MB."""
    model, ids_NT, reference_NT = load(folder)
    runner = Ours(model) if side == "ours" else peer_of(model)
    runner.fit(ids_NT[:N_PROBE], 4)
    runner.score(reference_NT[:1], ids_NT[:N_PROBE], 4)
    # not ru_maxrss: in a process that was forked it starts from its parent's size
    high_water = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(high_water.split()[1]) / 1024)


def measure(sizes: Sizes, threads: int, clock: str) -> dict[str, Any]:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, sizes)
        model, ids_NT, reference_NT = load(folder)
        memory = {side: peak_memory_mb(side, folder, threads) for side in ("ours", "peer")}
        spearmans, settings = measure_spearman(model, ids_NT[: sizes.n_documents[0]], reference_NT)
        times = measure_times(model, ids_NT, reference_NT, sizes, clock, settings)
        return {
            "threads": threads,
            "clock": clock,
            "document_tokens": LENGTH,
            **times[str(sizes.n_documents[0])],
            "times": times,
            "bfloat16_products": has_bfloat16_products(model.device),
            **spearmans,
            "settings": settings,
            **measure_agreement(model, ids_NT[:N_AGREEMENT], reference_NT, double=True),
            **measure_agreement(model, ids_NT[:N_AGREEMENT], reference_NT, double=False),
            "peak_memory_mb": memory,
            "peak_memory_ratio": memory["ours"] / memory["peer"],
        }


def main() -> None:
    """Parse the command line and print the report."""
    parser = argparse.ArgumentParser(description="Benchmark the influence engine beside kronfluence 1.0.1.")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--quick", action="store_true", help="32 documents only, a shorter training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    if arguments.side:
        run_side(arguments.side, arguments.folder)
        return
    report = measure(QUICK if arguments.quick else FULL, arguments.threads, arguments.clock)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        if isinstance(value, (int, float)):
            print(f"{key:32} {np.format_float_positional(value, 4, fractional=False)}")


if __name__ == "__main__":
    main()
