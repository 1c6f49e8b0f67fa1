"""Block inputs and output gradients of one forward and backward pass.

Owns the hooks: they live in a context manager, are removed on any exception and never change the model. Nothing here
asks for a weight gradient: with every parameter frozen, the first tracked map's output is made to require a gradient,
so the backward pass runs over activations only and stops there; embeddings are never reached.

Shape suffixes: P positions of a batch, N * T row by row, I block inputs (here WITHOUT the constant one), O outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from quad_tasks.core.blocks import Block, shared_inputs
from quad_tasks.core.loss import Documents, hidden_states, loss_gradient
from quad_tasks.core.precision import lower_precision

Receive = Callable[[tuple[Block, ...], Tensor, list[Tensor]], None]
"""Called with blocks that share an input, that input a_PI, and each block's output gradient delta_PO."""


@contextmanager
def capture(model: PreTrainedModel, blocks: Sequence[Block], receive: Receive) -> Iterator[None]:
    """Send `receive` every block's input and output gradient as the backward pass reaches them.

    Within the context run one forward and one backward pass. The tensors are the model's own: read them, do not write.

    Raises:
        RuntimeError: on leaving, a module's output took no part in the backward pass.
    """
    handles: list[RemovableHandle] = []
    waiting: set[str] = set()
    try:
        for group in shared_inputs(blocks):
            waiting.add(group[0].source)
            handles += _watch(model, group, receive, waiting)
        yield
    finally:
        for handle in handles:
            handle.remove()
    if waiting:
        raise RuntimeError(
            f"expected a gradient at every tracked module, got none at the group of {sorted(waiting)[0]}"
        )


def backward(
    model: PreTrainedModel,
    documents: Documents,
    blocks: Sequence[Block],
    receive: Receive,
    weight_VD: Tensor,
    uniforms_M: Tensor | None = None,
    rounded: bool = False,
) -> None:
    """Run the documents forward and backward, down to the first tracked map, under `capture`.

    Args:
        model: held by `loss.frozen`.
        documents: the batch.
        blocks: what to capture.
        receive: see `capture`.
        weight_VD: the head, from `loss.head_weight`, in the dtype of its products.
        uniforms_M: None for the documents' own labels, else see `loss.loss_gradient`.
        rounded: whether a float32 model's products may be computed in lower precision, see `precision.product_dtype`.

    Raises:
        RuntimeError: as `capture`.
    """
    with capture(model, blocks, receive), torch.enable_grad():
        with lower_precision(model.dtype, weight_VD.device, rounded):
            hidden_NTD = hidden_states(model, documents)
        hidden_NTD.backward(loss_gradient(hidden_NTD, weight_VD, documents, uniforms_M))  # type: ignore[no-untyped-call]


def _watch(
    model: PreTrainedModel, group: tuple[Block, ...], receive: Receive, waiting: set[str]
) -> Iterator[RemovableHandle]:
    """Hook the modules of blocks that share an input; `receive` is called once all their gradients are in."""
    modules = tuple(dict.fromkeys(name for block in group for name in block.modules))
    deltas: dict[str, Tensor] = {}

    def on_gradient(name: str, a_PI: Tensor, delta: Tensor) -> None:
        deltas[name] = delta.flatten(0, -2)
        if len(deltas) == len(modules):
            receive(group, a_PI, [_block_delta(block, deltas) for block in group])
            deltas.clear()
            waiting.discard(group[0].source)

    def on_forward(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_(True)
        a_PI = inputs[0].detach().flatten(0, -2)
        output.register_hook(partial(on_gradient, name, a_PI))  # type: ignore[no-untyped-call]

    for name in modules:
        yield model.get_submodule(name).register_forward_hook(partial(on_forward, name))


def _block_delta(block: Block, deltas: dict[str, Tensor]) -> Tensor:
    """Put a block's output gradient together from its modules' and choose its rows."""
    delta_PO = (
        deltas[block.modules[0]] if len(block.modules) == 1 else torch.cat([deltas[m] for m in block.modules], -1)
    )
    if block.rows is None:
        return delta_PO
    parts = [delta_PO[..., start:stop] for start, stop in block.rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
