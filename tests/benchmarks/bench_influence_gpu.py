"""Tokens per second of exact scoring of a 1.3B-parameter Llama in bfloat16 on one GPU, beside its measured matmul rate.

    python tests/benchmarks/bench_influence_gpu.py [--json] [--peer] [--tiny --device cpu]

Weights are random, which speed does not mind; documents are 1,024 tokens. `share_of_matmul` is the floating-point rate
of the products that scoring needs (forward, activation backward and contraction of every tracked map, forward and
backward of the head), over the rate of one large bfloat16 product measured here. The fit is of one layer's factors at
that width. With `--peer` kronfluence 1.0.1 scores the same documents without curvature, its products alone.
`--tiny --device cpu` only shows that the script works.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmark_model import batches_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from quad_tasks.core.blocks import Block, find_blocks
from quad_tasks.core.covariance import accumulate_covariances
from quad_tasks.core.ekfac import accumulate_eigenvalues, decompose
from quad_tasks.core.influence import score_documents

REPEATS = 3


@dataclass(frozen=True)
class Size:
    """A Llama's shape and the work it is measured on."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocabulary: int
    length: int
    documents: int
    batch_sizes: tuple[int, ...]
    matmul: int


LARGE = Size(2048, 24, 16, 5504, 32000, 1024, 32, (2, 4, 8, 16), 8192)
TINY = Size(32, 2, 2, 64, 256, 32, 4, (2,), 128)


def build(size: Size, device: str) -> PreTrainedModel:
    """Build the model with random weights, in bfloat16."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.length,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = LlamaForCausalLM(config).to(torch.bfloat16).eval()
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


def matmul_flops(size: int, device: str) -> float:
    """Measure the rate of one large bfloat16 product, floating-point operations per second."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return float(2 * size**3 / seconds(lambda: a @ b, device))


def scoring_flops(model: PreTrainedModel, blocks: list[Block]) -> int:
    """Count the floating-point operations that exact scoring of one token needs, attention's left out."""
    tracked = sum(block.shape[0] * block.shape[1] for block in blocks)
    head: Tensor = model.get_output_embeddings().weight
    return 2 * (3 * tracked + 2 * head.numel())


def measure_scoring(model: PreTrainedModel, ids_NT: Tensor, size: Size, device: str) -> dict[str, Any]:
    """Time exact scoring at its best batch size."""
    blocks = find_blocks(model)
    direction = {block.name: torch.randn(block.shape, device=device) for block in blocks}
    times = {
        batch: seconds(lambda n=batch: score_documents(model, batches_of(ids_NT, n), direction), device)
        for batch in size.batch_sizes
    }
    best = min(times, key=lambda batch: times[batch])
    rate, tokens = matmul_flops(size.matmul, device), ids_NT.numel() / times[best]
    return {
        "batch_size": best,
        "tokens_per_s": tokens,
        "matmul_flops": rate,
        "share_of_matmul": tokens * scoring_flops(model, blocks) / rate,
    }


def measure_layer_fit(model: PreTrainedModel, ids_NT: Tensor, device: str) -> float:
    """Time both passes and the decomposition of the first layer's factors, seconds."""
    prefix = find_blocks(model)[0].name.partition(".self_attn")[0]
    blocks = [block for block in find_blocks(model) if block.name.startswith(f"{prefix}.")]
    batches = batches_of(ids_NT, 2)

    def fit() -> None:
        basis = decompose(accumulate_covariances(model, batches, blocks, "empirical", rounded=True))
        accumulate_eigenvalues(model, batches, basis, "empirical", rounded=True)

    return seconds(fit, device)


def measure_peer(model: PreTrainedModel, ids_NT: Tensor, size: Size, device: str) -> float:
    """Time the peer's scoring without curvature, tokens per second."""
    from kronfluence_side import Peer

    modules = [block.name for block in find_blocks(model, "split")]
    peer = Peer(model, modules, torch.bfloat16, device == "cpu", "identity")
    peer.fit(ids_NT, size.batch_sizes[0])
    took = seconds(lambda: peer.score(ids_NT[:1], ids_NT, size.batch_sizes[0]), device)
    return float(ids_NT.numel() / took)


def main() -> None:
    """Parse the command line and print the report."""
    parser = argparse.ArgumentParser(description="Measure the influence engine on one GPU.")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--peer", action="store_true", help="measure kronfluence too")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see that the script works")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none (--tiny --device cpu shows that the script works)")
    size, device = TINY if arguments.tiny else LARGE, arguments.device
    model = build(size, device)
    ids_NT = torch.randint(size.vocabulary, (size.documents, size.length))
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in model.parameters()),
        **measure_scoring(model, ids_NT, size, device),
        "layer_fit_s": measure_layer_fit(model, ids_NT, device),
    }
    if arguments.peer:
        report["peer_tokens_per_s"] = measure_peer(model, ids_NT, size, device)
    if device == "cuda":
        report["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
