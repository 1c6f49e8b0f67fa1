"""Capture block inputs and output gradients of a forward and backward pass, by hooks.

Owns the hooks: they live in a context manager, are removed on any exception and never change the model. No weight
gradient is ever computed: all parameters are frozen and the output of the first tracked map is made to require a
gradient, so the backward pass runs over activations only and stops there; it never reaches the embeddings.

Shape suffixes: P positions of a batch, N * T row by row, I block inputs (here WITHOUT the constant one), O block
outputs, M positions that count, V vocabulary, D hidden width.
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
"""Callback for one group of blocks that share an input: the blocks, the input a_PI, each block's output gradient
delta_PO."""


@contextmanager
def capture(model: PreTrainedModel, blocks: Sequence[Block], receive: Receive) -> Iterator[None]:
    """Call `receive` with the input and output gradients of every block as the backward pass reaches it.

    Run one forward and one backward pass inside the context. The tensors are the model's own: read, never write them.

    Raises:
        RuntimeError: on leaving, the output of a tracked module got no gradient.
    """
    handles: list[RemovableHandle] = []
    pending: set[str] = set()
    try:
        for group in shared_inputs(blocks):
            pending.add(group[0].source)
            handles += _add_hooks(model, group, receive, pending)
        yield
    finally:
        for handle in handles:
            handle.remove()
    if pending:
        raise RuntimeError(
            f"expected a gradient at every tracked module, got none at the group of {sorted(pending)[0]}"
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
    """Run a forward pass and a backward pass down to the first tracked map, under `capture`.

    Args:
        model: a causal language model inside `loss.frozen`.
        documents: the batch.
        blocks: blocks to capture.
        receive: see `capture`.
        weight_VD: weight of the head, from `loss.head_weight`, in the dtype of its products.
        uniforms_M: None for the documents' own labels, else see `loss.loss_gradient`.
        rounded: whether a float32 model's products may be computed in lower precision, see `precision.product_dtype`.

    Raises:
        RuntimeError: as `capture`.
    """
    with capture(model, blocks, receive), torch.enable_grad():
        with lower_precision(model.dtype, weight_VD.device, rounded):
            hidden_NTD = hidden_states(model, documents)
        torch.autograd.backward(hidden_NTD, loss_gradient(hidden_NTD, weight_VD, documents, uniforms_M))


def _add_hooks(
    model: PreTrainedModel, group: tuple[Block, ...], receive: Receive, pending: set[str]
) -> Iterator[RemovableHandle]:
    """Hook the modules of blocks that share an input; call `receive` once all their gradients have arrived."""
    modules = tuple(dict.fromkeys(name for block in group for name in block.modules))
    deltas: dict[str, Tensor] = {}

    def on_gradient(name: str, a_PI: Tensor, delta: Tensor) -> None:
        deltas[name] = delta.flatten(0, -2)
        if len(deltas) == len(modules):
            receive(group, a_PI, [_block_delta(block, deltas) for block in group])
            deltas.clear()
            pending.discard(group[0].source)

    def on_forward(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_(True)
        a_PI = inputs[0].detach().flatten(0, -2)
        register: Callable[..., object] = output.register_hook  # torch leaves it without types
        register(partial(on_gradient, name, a_PI))

    for name in modules:
        yield model.get_submodule(name).register_forward_hook(partial(on_forward, name))


def _block_delta(block: Block, deltas: dict[str, Tensor]) -> Tensor:
    """Concatenate the output gradients of a block's modules and take the block's rows, [P, O]."""
    delta_PO = (
        deltas[block.modules[0]] if len(block.modules) == 1 else torch.cat([deltas[m] for m in block.modules], -1)
    )
    if block.rows is None:
        return delta_PO
    parts = [delta_PO[..., start:stop] for start, stop in block.rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
