"""Rates of scoring and of the fit on one device, beside its rate of one large matrix product.

Weights are random, which speed does not mind. Shares are of the floating-point operations that the work needs, those of
attention's scores and values left out, over the measured rate of one product in the model's dtype.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmark_model import batches_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.covariance import accumulate_covariances, select_blocks
from quad_tasks.core.ekfac import Eigenbasis, accumulate_eigenvalues, decompose, join_bases
from quad_tasks.core.lm.perturbed_weights import perturb
from quad_tasks.core.scorers import LinearMap, score_by_gradient, score_perturbed

REPEATS = 1
RANK = 16
"""Of the direction that `low_rank` is measured on."""


@dataclass(frozen=True)
class Size:
    """A Llama's shape and the work it is measured on."""

    name: str
    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp_width: int
    vocabulary: int
    tied: bool
    max_factor_width: int | None = None


SIZES = (
    Size("135M", 576, 30, 9, 3, 1536, 49152, True),
    Size("350M", 960, 32, 15, 5, 2560, 49152, True),
    Size("1.3B", 2048, 24, 16, 16, 5504, 32000, False, max_factor_width=2816),
)
TINY = Size("tiny", 32, 2, 2, 2, 64, 256, True, max_factor_width=48)
LENGTHS, BATCH_TOKENS, TOKENS, FIT_TOKENS, MATMUL = (1024, 2048), (8192, 16384), 16384, 65536, 8192
TINY_LENGTHS, TINY_BATCH_TOKENS, TINY_TOKENS, TINY_MATMUL = (16, 32), (64,), 128, 128
RESERVED_S = 215.0
"""For the parts after scoring: what would begin later is skipped, and said so."""


def build(size: Size, length: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model with random weights."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=length,
        tie_word_embeddings=size.tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = LlamaForCausalLM(config).to(dtype).eval()
    return model


def seconds(work: Callable[[], object], device: str) -> float:
    """Time one run, after one to warm up; the shortest of a few."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def matmul_flops(size: int, device: str, dtype: torch.dtype) -> float:
    """Measure the rate of one large product, floating-point operations per second."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return float(2 * size**3 / seconds(lambda: a @ b, device))


def measure_scoring(device: str, tiny: bool, left_s: Callable[[], float]) -> dict[str, Any]:
    """Measure every size, length and scorer, each at its best batch size, and the fit's two passes."""
    matmul = {
        str(dtype).removeprefix("torch."): matmul_flops(TINY_MATMUL if tiny else MATMUL, device, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    }
    rows = []
    for size in (TINY,) if tiny else SIZES:
        for length in TINY_LENGTHS if tiny else LENGTHS:
            if left_s() < RESERVED_S and not tiny:
                rows.append({"model": size.name, "length": length, "skipped": "no time left"})
                continue
            rows += _measure_size(size, length, device, tiny, matmul, left_s)
            gc.collect()
    return {"matmul_flops": matmul, "rows": rows}


def _measure_size(
    size: Size, length: int, device: str, tiny: bool, matmul: dict[str, float], left_s: Callable[[], float]
) -> list[dict[str, Any]]:
    model = build(size, length, device, torch.bfloat16)
    blocks = find_blocks(model)
    ids_NT = torch.randint(size.vocabulary, ((TINY_TOKENS if tiny else TOKENS) // length, length))
    low = {b.name: _low_rank(b, device) for b in blocks}
    whole = {name: LinearMap(linear.left_OR @ linear.right_RI, None) for name, linear in low.items()}
    tracked = sum(b.shape[0] * b.shape[1] for b in blocks)
    ranked = sum(RANK * sum(b.shape) for b in blocks)
    head = model.get_output_embeddings().weight.numel()
    parameters = sum(p.numel() for p in model.parameters())
    common = {"model": size.name, "parameters": parameters, "length": length}
    # products a token needs, two operations each: forward, backward of activations, contraction; head forth and back
    exact, cheap, by_loss = 3 * tracked + 2 * head, 2 * tracked + ranked + 2 * head, 2 * tracked + 3 * head
    fit = 2 * (2 * tracked + 2 * head) + sum(b.shape[0] ** 2 + b.shape[1] ** 2 for b in blocks) + 3 * tracked
    basis = any_basis(model, blocks, ids_NT[:1], size.max_factor_width)

    def passes(batches: list[dict[str, Tensor]]) -> None:
        accumulate_covariances(model, batches, blocks, "empirical", max_width=size.max_factor_width, rounded=True)
        accumulate_eigenvalues(model, batches, basis, "empirical", rounded=True)

    works: dict[str, tuple[Callable[[list[dict[str, Tensor]]], object], int, str]] = {
        "exact": (lambda batches: score_by_gradient(model, batches, blocks, [whole]), exact, "bfloat16"),
        "low_rank": (lambda batches: score_by_gradient(model, batches, blocks, [low], rounded=True), cheap, "bfloat16"),
        "fit_passes": (passes, fit, "bfloat16"),
    }
    rows = [_measure(name, *work, ids_NT, device, tiny, matmul, common, left_s) for name, work in works.items()]
    model = model.float()
    direction = {name: linear.right_RI for name, linear in whole.items()}
    perturbed = perturb(model, blocks, [direction], 3e-3)  # once a direction, as a run does
    forward = (lambda batches: score_perturbed(model, batches, perturbed), by_loss, "float32")
    return [*rows, _measure("forward_only", *forward, ids_NT, device, tiny, matmul, common, left_s)]


def _measure(
    name: str,
    work: Callable[[list[dict[str, Tensor]]], object],
    products: int,
    dtype: str,
    ids_NT: Tensor,
    device: str,
    tiny: bool,
    matmul: dict[str, float],
    common: dict[str, Any],
    left_s: Callable[[], float],
) -> dict[str, Any]:
    length = ids_NT.shape[1]
    times = {}
    for tokens in TINY_BATCH_TOKENS if tiny else BATCH_TOKENS:
        if left_s() < RESERVED_S and not tiny:
            break
        batches = batches_of(ids_NT, max(1, tokens // length))
        try:
            times[tokens] = seconds(lambda b=batches: work(b), device)
        except torch.cuda.OutOfMemoryError:
            break
    if not times:
        why = "no time left" if left_s() < RESERVED_S else "out of memory at the smallest batch"
        return {**common, "work": name, "skipped": why}
    best = min(times, key=lambda tokens: times[tokens])
    rate = ids_NT.numel() / times[best]
    print(f"{common['model']} at {length}, {name}: {rate:,.0f} tokens/s", flush=True)
    return {
        **common,
        "work": name,
        "dtype": dtype,
        "batch_tokens": best,
        "tokens_per_s": rate,
        "share_of_matmul": 2 * products * rate / matmul[dtype],
        "share_of_bfloat16_matmul": 2 * products * rate / matmul["bfloat16"],
    }


def any_basis(model: PreTrainedModel, blocks: list[Block], ids_NT: Tensor, max_width: int | None) -> Eigenbasis:
    """Give matrices of an eigenbasis' shapes without decomposing anything: products with them take as long."""
    sums = accumulate_covariances(model, batches_of(ids_NT[:, :2], 1), blocks, "empirical", max_width=max_width)
    return Eigenbasis(sums.blocks, sums.activation, sums.gradient)


def _low_rank(block: Block, device: str) -> LinearMap:
    left, right = torch.randn(block.shape[0], RANK, device=device), torch.randn(RANK, block.shape[1], device=device)
    return LinearMap(right, left)


def fit_whole(device: str, tiny: bool, left_s: Callable[[], float]) -> dict[str, Any]:
    """Fit the factors of the largest model, whole: both passes, and every eigenbasis on the device."""
    size, length = (TINY, TINY_LENGTHS[-1]) if tiny else (SIZES[-1], LENGTHS[0])
    model = build(size, length, device, torch.bfloat16)
    blocks = find_blocks(model)
    ids_NT = torch.randint(size.vocabulary, ((TINY_TOKENS if tiny else FIT_TOKENS) // length, length))
    batches = batches_of(ids_NT, max(1, (TINY_BATCH_TOKENS if tiny else BATCH_TOKENS)[0] // length))
    started = time.perf_counter()
    sums = accumulate_covariances(model, batches, blocks, max_width=size.max_factor_width, rounded=True)
    summed = time.perf_counter()
    layers = [blocks[i : i + 5] for i in range(0, len(blocks), 5)]  # qkv, o, gate, up, down
    bases = []
    for layer in layers:
        bases.append(decompose(select_blocks(sums, layer), device))
        each = (time.perf_counter() - summed) / len(bases)
        if not tiny and left_s() < 15 + each:
            break
    decomposed = time.perf_counter()
    report = {
        "model": size.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": ids_NT.numel(),
        "max_factor_width": size.max_factor_width,
        "covariances_s": summed - started,
        "decompose_s": decomposed - summed,
        "layers": len(layers),
        "layers_decomposed": len(bases),
    }
    if len(bases) == len(layers):
        accumulate_eigenvalues(model, batches, join_bases(bases), rounded=True)
        report["eigenvalues_s"] = time.perf_counter() - decomposed
    return report


def measure_peers(device: str, tiny: bool, left_s: Callable[[], float]) -> dict[str, Any]:
    """Measure kronfluence's scoring without curvature on the smallest model where it is installed; name who is not."""
    report: dict[str, Any] = {"bergson": "not measured: it scores by projected gradients, which nothing here matches"}
    if left_s() < 25:
        return {**report, "kronfluence": "no time left"}
    try:
        from kronfluence_side import Peer
    except ImportError:
        return {**report, "kronfluence": "not installed"}
    size, length = (TINY, TINY_LENGTHS[-1]) if tiny else (SIZES[0], LENGTHS[0])
    model = build(size, length, device, torch.bfloat16)
    ids_NT = torch.randint(size.vocabulary, (16, length))
    peer = Peer(model, [b.name for b in find_blocks(model, "split")], torch.bfloat16, device == "cpu", "identity")
    peer.fit(ids_NT, 8)
    took = seconds(lambda: peer.score(ids_NT[:1], ids_NT, 8), device)
    return {**report, "kronfluence": {"model": size.name, "length": length, "tokens_per_s": ids_NT.numel() / took}}
