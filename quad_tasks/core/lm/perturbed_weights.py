"""Copy a model's weights a step along a direction and a step against it: θ + εv and θ - εv, for scoring by losses.

The copies are parameters by name, for `torch.func.functional_call`: the model's own weights are never written.

Shape suffixes: O block outputs, I block inputs (the constant one included), K directions.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from quad_tasks.core.blocks import Block
from quad_tasks.core.precision import accumulation_dtype


class Perturbed(NamedTuple):
    """A direction v as scoring by losses takes it: parameters below the head by name, those perturbed and others.

    Attributes:
        plus: at θ + εv.
        minus: at θ - εv.
        epsilon: ε.
    """

    plus: Mapping[str, Tensor]
    minus: Mapping[str, Tensor]
    epsilon: float


@torch.no_grad()
def perturb(
    model: PreTrainedModel, blocks: Sequence[Block], directions: Sequence[Mapping[str, Tensor]], step: float
) -> list[Perturbed]:
    """Copy a model's tracked weights twice for each direction: a step along it, and a step against it.

    Args:
        model: a causal language model. Of one in bfloat16 all weights are copied in float32, those that are not
            tracked once: a difference of rounded losses would be noise.
        blocks: the blocks of the directions.
        directions: K directions by block name.
        step: length of εv in units of the norm of the tracked weights, > 0.

    Raises:
        ValueError: a step that is not positive, or a direction that is zero.
    """
    epsilons = [_epsilon(model, blocks, direction, step) for direction in directions]
    others, below = _raised_parameters(model, blocks), f"{model.base_model_prefix}."

    def moved(direction: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
        parameters = others | _perturbed_parameters(model, blocks, direction, epsilon)
        return {name.removeprefix(below): value for name, value in parameters.items()}

    return [
        Perturbed(moved(direction, epsilon), moved(direction, -epsilon), epsilon)
        for direction, epsilon in zip(directions, epsilons, strict=True)
    ]


def _tracked_slices(
    model: PreTrainedModel, block: Block, parameters: dict[str, Tensor]
) -> Iterable[tuple[slice, Tensor, Tensor | None]]:
    """Iterate over a block's parameters: rows of the block, view of their weights [rows, I], view of their biases."""
    start = 0
    for name in block.modules:
        weight_OI = parameters[f"{name}.weight"]
        weight_OI = weight_OI.T if isinstance(model.get_submodule(name), Conv1D) else weight_OI
        for low, high in block.rows or ((0, weight_OI.shape[0]),):
            bias_O = parameters[f"{name}.bias"][low:high] if block.bias else None
            yield slice(start, start + high - low), weight_OI[low:high], bias_O
            start += high - low


def _tracked_parameters(model: PreTrainedModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
    names: dict[str, None] = {}
    for block in blocks:
        kinds = ("weight", "bias") if block.bias else ("weight",)
        names.update(dict.fromkeys(f"{module}.{kind}" for module in block.modules for kind in kinds))
    return {name: model.get_parameter(name).detach() for name in names}


def _raised_parameters(model: PreTrainedModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Copy the parameters below the head that are not tracked in float32 where they are of lower precision."""
    prefix, tracked = model.base_model_prefix, _tracked_parameters(model, blocks)
    return {
        f"{prefix}.{name}": value.detach().float()
        for name, value in model.base_model.named_parameters()
        if value.dtype != accumulation_dtype(value.dtype) and f"{prefix}.{name}" not in tracked
    }


def _perturbed_parameters(
    model: PreTrainedModel, blocks: Sequence[Block], direction: Mapping[str, Tensor], epsilon: float
) -> dict[str, Tensor]:
    """Copy the tracked parameters, perturbed by epsilon times the direction: θ + εv."""
    perturbed = {
        name: value.to(accumulation_dtype(value.dtype), copy=True)
        for name, value in _tracked_parameters(model, blocks).items()
    }
    for block in blocks:
        V_OI = direction[block.name]
        for rows, weight_OI, bias_O in _tracked_slices(model, block, perturbed):
            step_OI = V_OI[rows].to(weight_OI)
            weight_OI.add_(step_OI[:, : weight_OI.shape[1]], alpha=epsilon)
            if bias_O is not None:
                bias_O.add_(step_OI[:, -1], alpha=epsilon)
    return perturbed


def _epsilon(model: PreTrainedModel, blocks: Sequence[Block], direction: Mapping[str, Tensor], step: float) -> float:
    """Compute ε so that εv has the length of `step` times the norm of the tracked weights."""
    if not step > 0:
        raise ValueError(f"step: expected a positive number, got {step}")
    length = sum(direction[block.name].double().square().sum().item() for block in blocks) ** 0.5
    if not length > 0:
        raise ValueError(f"direction: expected one of positive length, got length {length}")
    norm = sum(value.double().square().sum().item() for value in _tracked_parameters(model, blocks).values()) ** 0.5
    return float(step * norm / length)
