"""What a run asks of hardware: memory, stage by stage, and time on a GPU that is not here.

Memory follows from the shape of the model: every worker's and the driving process's. A device's table holds its dense
bfloat16 rate and its memory by the vendor's data sheet; the share of that rate each kind of work reaches grows with the
model, and is measured by `tests/benchmarks/gpu_check.sh` or, until somebody has run it there, assumed. Work that no
model does (tokenizing, embedding by n-grams, clustering) is planned as measured on this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from quad_tasks.commands.estimates.probe import Rates, Shape
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.config.values import AUTO, CONDITIONAL_LOSS
from quad_tasks.core.lm.batch_memory import fitting_tokens, own_share
from quad_tasks.core.lm.model import pick_device
from quad_tasks.core.lm.training import ACCELERATOR_PASS_BYTES, PASS_BYTES
from quad_tasks.stages.influence.factor_memory import machine_memory_bytes
from quad_tasks.stages.influence.settle_batch import kept_bytes
from quad_tasks.stages.selection.training_memory import PROCESS_BYTES, training_bytes, trainings_at_once

FLOAT_BYTES = 4
ASSUMED, MEASURED, DATASHEET = "assumed", "measured", "data sheet"
SHARES = {"measure": 0.35, "score": 0.3, "gradient": 0.3, "fit": 0.05, "train": 0.28}
"""Of the data sheet's rate that each kind of work reaches: assumed."""
FLOAT32_RATIO = 0.5
"""Of the bfloat16 rate that a float32 model's products reach, by TF32 where torch is told to use it: assumed."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        flops: dense bfloat16 operations per second.
        memory_bytes: what it holds.
        shares: by kind of work, the measured share of its rate at models of this many parameters; a kind that is absent
            is assumed.
    """

    flops: float
    memory_bytes: int
    shares: Mapping[str, Mapping[float, float]]

    def share(self, kind: str, parameters: int) -> tuple[float, str]:
        """Give the share of its rate that a kind of work reaches, and whether that is measured or assumed.

        Between measured sizes it is interpolated in the logarithm of the parameters; beyond them it is the nearest's.
        """
        measured = self.shares.get(kind)
        if not measured:
            return SHARES[kind], ASSUMED
        return float(np.interp(np.log(parameters), np.log(list(measured)), list(measured.values()))), MEASURED


H200_SHARES = {
    "score": {134.5e6: 0.138, 361.8e6: 0.226, 1345.3e6: 0.376},
    "fit": {134.5e6: 0.031, 361.8e6: 0.051, 1345.3e6: 0.077},
}
"""From tests/benchmarks/results/gpu_check_h200.md: documents of 1,024 tokens, FLOPs as `rates_on` counts them."""

DEVICES = {
    "a100": Device(312e12, 80 * 10**9, {}),
    "h100": Device(989e12, 80 * 10**9, {}),
    "h200": Device(989e12, 141 * 10**9, H200_SHARES),
    "l40s": Device(362e12, 48 * 10**9, {}),
}


def plan_memory(config: RunConfig, shape: Shape, on_gpu: bool = False) -> dict[str, int]:
    """Estimate the peak memory of the stages that hold a model, bytes, all processes together.

    Args:
        config: the run's.
        shape: of the model.
        on_gpu: whether batches lie on a GPU, so that they take nothing of the machine's memory.

    Returns:
        `fit`, `bandit` and `train`; `most`, the largest of them; `machine`, what this machine has.

    Raises:
        ConfigError: a stage needs more than `compute.memory_limit`; the message says what to change.
    """
    compute, driver = config.compute, PROCESS_BYTES
    workers, processes = compute.workers, compute.training_processes
    each = {stage: PROCESS_BYTES + size for stage, size in worker_memory(config, shape, batches=not on_gpu).items()}
    idle = PROCESS_BYTES + _weight_bytes(config, shape)
    solving = shape.covariance_bytes + 3 * FLOAT_BYTES * shape.tracked  # factors, a gradient and its inverse
    fitting = trainings_at_once(compute.memory_limit, workers, processes, shape.parameters) or workers
    training = min(workers, _trainings(config), fitting)
    fit = max(workers * each["fit"], workers * idle + solving)
    if config.bandit.scorer == CONDITIONAL_LOSS:
        copies = min(workers, len(config.reference.named_sets()))
        fit = (workers - copies) * PROCESS_BYTES + copies * each["fit"]
    stages = {
        "fit": driver + fit,
        "bandit": driver + workers * each["bandit"],
        "train": driver + (workers - training) * PROCESS_BYTES + training * processes * each["train"],
    }
    _refuse_above_limit(config, stages)
    return {**stages, "most": max(stages.values()), "machine": machine_memory_bytes()}


def planned_batch(
    config: RunConfig, shape: Shape, device: str | None, sharing: int
) -> tuple[RunConfig, dict[str, object]]:
    """Choose the tokens of a batch that a plan counts with, where the run is to measure them.

    Args:
        config: the run's.
        shape: of the model.
        device: a name in `DEVICES`; None: this machine.
        sharing: workers that share a GPU.

    Returns:
        The configuration with a number, and that number with what it rests on.

    Raises:
        ConfigError: no such device.
    """
    use = config.model_use()
    if config.model.batch_tokens != AUTO:
        return config, {"value": use.batch_tokens, "basis": "configured"}
    if device is not None:
        memory = find_device(device).memory_bytes
    elif pick_device(use.device) == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        return config.with_batch_tokens(use.batch_tokens), {"value": use.batch_tokens, "basis": "a CPU's"}
    weights, direction = _weight_bytes(config, shape), FLOAT_BYTES * shape.tracked
    kept = kept_bytes(config, shape.parameters, shape.covariance_bytes, direction)
    token_bytes = shape.activation_bytes * weights / (FLOAT_BYTES * shape.parameters)
    tokens = fitting_tokens(own_share(memory, weights, sharing), kept, token_bytes, use.window_tokens)
    return config.with_batch_tokens(tokens), {"value": tokens, "basis": "estimated; measured when the run begins"}


def _refuse_above_limit(config: RunConfig, stages: Mapping[str, int]) -> None:
    memory_limit = config.compute.memory_limit
    remedies = {
        "fit": "lower compute.workers or model.batch_tokens, or set factors.max_factor_width",
        "bandit": "lower compute.workers or model.batch_tokens, or use model.dtype bfloat16",
        "train": "lower compute.workers, or train by training.command",
    }
    if config.bandit.scorer == CONDITIONAL_LOSS:  # copies are trained and read in float32, and there are no factors
        fewer = "lower compute.workers or model.batch_tokens, or set fewer reference.sets"
        remedies |= {"fit": fewer, "bandit": fewer}
    for stage, needed in stages.items():
        if memory_limit is not None and needed > memory_limit:
            raise ConfigError(
                f"compute.memory_limit: expected a {stage} of at most {memory_limit:,} bytes in all processes, found "
                f"about {needed:,}: {remedies[stage]}"
            )


def worker_memory(
    config: RunConfig, shape: Shape, pass_bytes: int = PASS_BYTES, batches: bool = True
) -> dict[str, int]:
    """Estimate what a worker's model, sums and activations take at most: `fit`, `bandit` and `train`, bytes.

    Args:
        config: the run's.
        shape: of the model.
        pass_bytes: of activations that a training's pass is cut to, by the kind of device.
        batches: whether activations are counted.
    """
    direction, weights = FLOAT_BYTES * shape.tracked, _weight_bytes(config, shape)
    window, batch = config.model.window_tokens, config.model_use().batch_tokens
    trained = shape.activation_bytes * max(window, min(batch, pass_bytes // shape.activation_bytes))
    training = training_bytes(shape.parameters, trained if batches else 0)
    read = shape.activation_bytes * max(window, batch) if batches else 0
    if config.bandit.scorer == CONDITIONAL_LOSS:
        models = 1 + len(config.reference.named_sets())
        return {
            "fit": training,
            "bandit": models * FLOAT_BYTES * shape.parameters + read,
            "train": training,
        }
    read = read * weights // (FLOAT_BYTES * shape.parameters)
    return {
        "fit": weights + shape.covariance_bytes + direction + read,  # the eigenbasis, and squares in it
        "bandit": weights + direction * len(config.reference.named_sets()) + read + _copied_bytes(config, shape),
        "train": training,
    }


def _copied_bytes(config: RunConfig, shape: Shape) -> int:
    """Return what `forward_only` copies: tracked weights twice a direction, and a bfloat16 model's others in float32.

    Under `auto` it is left out: copies are then made only where half of the free memory holds them.
    """
    if config.bandit.scorer != "forward_only":
        return 0
    others = shape.parameters - shape.tracked if config.model.dtype == "bfloat16" else 0
    return FLOAT_BYTES * (2 * len(config.reference.named_sets()) * shape.tracked + others)


def _weight_bytes(config: RunConfig, shape: Shape) -> int:
    return shape.parameters * (2 if config.model.dtype == "bfloat16" else FLOAT_BYTES)


def _trainings(config: RunConfig) -> int:
    """Return how many models a stage trains, at once where there are workers for them."""
    return config.training.seeds * (2 if config.training.control else 1) + len(config.training.frontier)


def rates_on(device: str, config: RunConfig, rates: Rates, shape: Shape) -> Rates:
    """Replace a model's rates by those of a device, one for each worker.

    Args:
        device: a name in `DEVICES`.
        config: the run's.
        rates: measured here.
        shape: of the model.

    Raises:
        ConfigError: no such device, or a worker's work does not fit its memory.
    """
    found = find_device(device)
    check_device_memory(device, config, shape)
    forward = shape.forward_flops
    flops = {
        "measure": forward,
        "score": 3 * forward,
        "gradient": 3 * forward,
        "fit": 4 * forward + 4 * shape.factor_values,
        "train": 3 * forward,
    }
    rate = found.flops * (1.0 if config.model.dtype == "bfloat16" else FLOAT32_RATIO)
    seconds = {f"{kind}_token": n / (rate * found.share(kind, shape.parameters)[0]) for kind, n in flops.items()}
    pretrain = 0.0 if rates.pretrain_token == 0 else seconds["train_token"]
    return replace(rates, pretrain_token=pretrain, workers=replace(rates.workers, **seconds))


def describe_device(device: str, parameters: int) -> dict[str, object]:
    """Say what a plan for a device rests on: each number, and whether it is measured, assumed, or of a data sheet."""
    found = find_device(device)
    shares = {kind: found.share(kind, parameters) for kind in SHARES}
    return {
        "name": device,
        "bfloat16_flops": {"value": found.flops, "basis": DATASHEET},
        "memory_bytes": {"value": found.memory_bytes, "basis": DATASHEET},
        "share_of_data_sheet": {kind: {"value": share, "basis": basis} for kind, (share, basis) in shares.items()},
    }


def find_device(name: str) -> Device:
    """Look a device up.

    Raises:
        ConfigError: it is not in the table; the message lists those that are.
    """
    if name not in DEVICES:
        raise ConfigError(f"--device: expected one of {', '.join(sorted(DEVICES))}, found {name!r}")
    return DEVICES[name]


def check_device_memory(name: str, config: RunConfig, shape: Shape) -> None:
    """Refuse a plan whose workers need more memory than the device has.

    Raises:
        ConfigError: the message names the stage, its bytes, and what to change.
    """
    memory = find_device(name).memory_bytes
    remedies = {
        "fit": "set factors.max_factor_width, a smaller model.batch_tokens, or model.dtype bfloat16",
        "bandit": "set model.dtype bfloat16, a smaller model.batch_tokens, or fewer reference.sets",
        "train": "set a smaller model.window_tokens, or train by training.command",
    }
    if config.bandit.scorer == CONDITIONAL_LOSS:
        remedies["fit"] = "set a smaller model.window_tokens, or another bandit.scorer"
        remedies["bandit"] = "set a smaller model.batch_tokens, fewer reference.sets, or another bandit.scorer"
    for stage, needed in worker_memory(config, shape, ACCELERATOR_PASS_BYTES).items():
        if needed > memory:
            raise ConfigError(
                f"--device {name}: expected a {stage} of at most {memory:,} bytes, found about {needed:,}: "
                f"{remedies[stage]}"
            )
