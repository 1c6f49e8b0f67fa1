"""Compute next-token losses and their gradients without holding the logits of a whole batch.

Owns the batch layout and the language-model head. Measuring, scoring and training all take their losses from here. The
head is differentiated by hand, chunk by chunk: the logits of a whole batch, and their gradient, are the largest tensors
of a small model and never exist here. Rejected: autograd through the head (keeps three float32 copies of the logits),
one chunk per document (too small or too large), recomputing a chunk's logits in the backward pass (one product more:
the head is the last map, so its gradient is known as soon as its loss is).

Padding has no effect on the model: rows are compacted to the left by their mask, and causal attention alone keeps a
document from seeing what follows it. So no attention mask is needed, and left and right padding are the same input.

Callers pass the head's weight in the dtype of its products (`precision.py`).

Shape suffixes: N documents, T tokens, M targets of all documents in row order (positions 0..n-2 of a document of n
tokens), D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from transformers import PreTrainedModel

from quad_tasks.core.blocks import UnsupportedLayer
from quad_tasks.core.lm.attention import causal_attention
from quad_tasks.core.lm.device import to_device
from quad_tasks.core.precision import accumulation_dtype, add_product, lower_precision, product_dtype

Batch = Mapping[str, Tensor]
Fisher = Literal["true", "empirical"]

# Bytes of logits at a time: about a CPU's last-level cache, so that the passes over them stay out of main memory.
_CPU_CHUNK_BYTES = 8 * 2**20
_ACCELERATOR_CHUNK_BYTES = 512 * 2**20
# Of float32 logits, twice as many of bfloat16 ones. Every chunk reads the whole head: with 13 targets in one (a
# vocabulary of 152,000) training took 3.5 times as long.
_LEAST_CHUNK_TARGETS = 128


@dataclass(frozen=True)
class Documents:
    """A batch of documents, compacted to the left.

    Attributes:
        ids_NT: [N, T] int64 token ids; those after a document's end are 0 and have no effect.
        lengths_N: tokens of each document, at least 2.
        positions_M: [M] int64 indices, in the flattened [N * T], of the positions that have a target.
        targets_M: [M] int64, the next token at each of them.
        seeds_N: one seed per document for its sampled labels, or None.
    """

    ids_NT: Tensor
    lengths_N: tuple[int, ...]
    positions_M: Tensor
    targets_M: Tensor
    seeds_N: tuple[int, ...] | None

    @property
    def n_targets_N(self) -> tuple[int, ...]:
        """Targets of each document: its tokens less one."""
        return tuple(length - 1 for length in self.lengths_N)


def read_batch(batch: Batch, device: torch.device) -> Documents:
    """Compact a batch to the left, dropping the padding.

    Args:
        batch: ``input_ids`` [N, T] int64, ``attention_mask`` [N, T] (0 or 1), optionally ``seed`` [N] int64.
        device: the model's device.

    Returns:
        The documents.

    Raises:
        ValueError: a document of fewer than two tokens: it has no target and no influence.
    """
    # On the host, where counts are at hand; a device is asked for nothing
    mask_NT, seeds = batch["attention_mask"].cpu().bool(), batch.get("seed")
    lengths_N = mask_NT.sum(dim=1)
    for row, length in enumerate(lengths_N.tolist()):
        if length < 2:
            raise ValueError(f"row {row} of the batch: expected at least 2 tokens, got {length}")
    # Token ids moved to the left, padding set to 0: [N, T]
    n_tokens = int(lengths_N.max())
    order_NT = torch.argsort(~mask_NT, dim=1, stable=True)[:, :n_tokens]
    columns_T = torch.arange(n_tokens)
    ids_NT = batch["input_ids"].cpu().gather(1, order_NT).masked_fill(columns_T >= lengths_N[:, None], 0)
    # Positions that have a next token, in the flattened batch: [M]
    positions_M = (columns_T < lengths_N[:, None] - 1).flatten().nonzero().squeeze(1)
    return Documents(
        ids_NT=to_device(ids_NT, device),
        lengths_N=tuple(lengths_N.tolist()),
        positions_M=to_device(positions_M, device),
        targets_M=to_device(ids_NT.flatten()[positions_M + 1], device),
        seeds_N=None if seeds is None else tuple(seeds.tolist()),
    )


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Freeze a model: eval mode, no parameter requires a gradient; restore every flag on leaving."""
    training = {module: module.training for module in model.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in requires_grad.items():
            parameter.requires_grad_(flag)


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the weight of the language-model head, [V, D], in the accumulation dtype.

    Raises:
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    return _trainable_head(model).detach()


def hidden_states(
    model: PreTrainedModel, documents: Documents, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Compute the last hidden states, the head's input, [N, T, D].

    Args:
        model: a causal language model.
        documents: the batch.
        parameters: used in place of the model's own, by their names below the head; None: all are its own.
    """
    inputs = {"input_ids": documents.ids_NT, "use_cache": False}
    with causal_attention(model, documents.ids_NT.shape[1]):
        if parameters is None:
            output = model.base_model(**inputs)
        else:
            output = functional_call(model.base_model, dict(parameters), (), inputs)
    states: Tensor = output.last_hidden_state
    return states


def losses(hidden_NTD: Tensor, weight_VD: Tensor, documents: Documents) -> Tensor:
    """Compute the loss of every target, -log p, [M], in the accumulation dtype, without gradient."""
    dtype = accumulation_dtype(weight_VD.dtype)
    parts = [
        torch.log_softmax(logits, dim=1, dtype=dtype).gather(1, documents.targets_M[chunk, None])
        for chunk, logits in _logit_chunks(_at_targets(hidden_NTD, documents, weight_VD), weight_VD)
    ]
    return torch.cat(parts).squeeze(1).neg_()


def summed_loss(model: PreTrainedModel, documents: Documents, rounded: bool = False) -> Tensor:
    """Sum -log p of all targets of a batch, differentiable in every parameter of the model.

    The gradients at the head's input and weight are computed in the forward pass, a chunk of logits at a time, and kept
    for the backward pass: [M, D] and [V, D] numbers in place of [M, V].

    Args:
        model: a causal language model whose parameters require gradients.
        documents: the batch.
        rounded: whether a float32 model's products may be computed in lower precision, see `precision.product_dtype`;
            losses are taken in float32 from the rounded logits, gradients are summed in float32.

    Returns:
        The sum in nats, a scalar in the accumulation dtype.

    Raises:
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    weight_VD = _trainable_head(model)
    with lower_precision(model.dtype, weight_VD.device, rounded):
        hidden_NTD = hidden_states(model, documents)
    factors = product_dtype(weight_VD.dtype, weight_VD.device, rounded)
    hidden_MD = hidden_NTD.flatten(0, 1)[documents.positions_M].to(factors)
    loss: Tensor = _SummedLoss.apply(hidden_MD, weight_VD, documents.targets_M)  # type: ignore[no-untyped-call]
    return loss


def loss_gradient(
    hidden_NTD: Tensor, weight_VD: Tensor, documents: Documents, uniforms_M: Tensor | None = None
) -> Tensor:
    """Compute the gradient of the documents' summed losses at the last hidden state.

    Args:
        hidden_NTD: [N, T, D], the head's input.
        weight_VD: [V, D], as `head_weight` gives it.
        documents: the batch.
        uniforms_M: [M] in [0, 1): sample labels from the model's own distribution, one uniform number per target, by
            inverting its distribution function; None: use the documents' own next tokens.

    Returns:
        [N, T, D] in the dtype of ``hidden_NTD``; zero at the positions that do not count.
    """
    delta_MD = _gradient(_at_targets(hidden_NTD, documents, weight_VD), weight_VD, documents, uniforms_M)
    delta_NTD = torch.zeros_like(hidden_NTD)
    delta_NTD.flatten(0, 1)[documents.positions_M] = delta_MD.to(hidden_NTD.dtype)
    return delta_NTD


def loss_difference(plus_NTD: Tensor, minus_NTD: Tensor, weight_VD: Tensor, documents: Documents) -> Tensor:
    """Compute the difference of every target's loss between two nearby last hidden states.

    It is the gradient at their midpoint times their difference; the error is of third order in their distance. This
    takes half the exponentials of two losses, and avoids the rounding error of subtracting two nearly equal losses.

    Args:
        plus_NTD: [N, T, D] hidden states.
        minus_NTD: [N, T, D] hidden states whose loss is subtracted.
        weight_VD: [V, D], as `head_weight` gives it.
        documents: the batch.

    Returns:
        [M], in the accumulation dtype.
    """
    plus_MD, minus_MD = (_at_targets(states_NTD, documents, weight_VD) for states_NTD in (plus_NTD, minus_NTD))
    delta_MD = _gradient((plus_MD + minus_MD).div_(2), weight_VD, documents, None)
    return (plus_MD - minus_MD).mul_(delta_MD).sum(dim=1)


def sum_by_document(values_M: Tensor, documents: Documents) -> Tensor:
    """Sum the targets' values of each document, [N] float64, on their device."""
    n_documents, n_tokens = documents.ids_NT.shape
    values_P = values_M.new_zeros(n_documents * n_tokens, dtype=torch.float64)
    values_P[documents.positions_M] = values_M.double()
    return values_P.view(n_documents, n_tokens).sum(dim=1)


def draw_uniforms(documents: Documents, fisher: Fisher, generator: torch.Generator | None) -> Tensor | None:
    """Draw the random numbers of sampled labels: one uniform per target, drawn on the CPU, so equal on every device.

    Args:
        documents: the batch; with seeds, a document's numbers depend on its seed alone.
        fisher: ``true``: labels are sampled; ``empirical``: no numbers are needed.
        generator: used when the batch has no seeds.

    Returns:
        [M] float64 in [0, 1) on the documents' device, or None for the empirical Fisher.

    Raises:
        ValueError: ``fisher`` is unknown, or labels must be sampled and there is neither seed nor generator.
    """
    if fisher == "empirical":
        return None
    if fisher != "true":
        raise ValueError(f"fisher: expected 'true' or 'empirical', got {fisher!r}")
    if documents.seeds_N is not None:
        draws = [
            torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for n, seed in zip(documents.n_targets_N, documents.seeds_N, strict=True)
        ]
        return to_device(torch.cat(draws), documents.ids_NT.device)
    if generator is None:
        raise ValueError("fisher='true': expected a 'seed' per row of the batch or a generator, got neither")
    drawn_M = torch.rand(sum(documents.n_targets_N), generator=generator, dtype=torch.float64)
    return to_device(drawn_M, documents.ids_NT.device)


class _SummedLoss(torch.autograd.Function):
    """Summed cross-entropy of targets, with its gradients at the head's input [M, D] and the head's weight [V, D]."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> Tensor:
        """Walk the targets chunk by chunk: loss, then both gradients from the same logits; products as the input's."""
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        hidden_grad_MD = torch.empty_like(hidden_MD) if needs_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD) if needs_weight else None
        total = torch.zeros((), dtype=torch.float64, device=hidden_MD.device)
        factor_VD = weight_VD.to(hidden_MD.dtype)
        for chunk, rounded_CV in _logit_chunks(hidden_MD, factor_VD):
            labels_C1 = targets_M[chunk, None]
            logits_CV = rounded_CV.to(weight_VD.dtype)
            total -= logits_CV.gather(1, labels_C1).sum(dtype=torch.float64)
            total += logits_CV.logsumexp(dim=1).sum(dtype=torch.float64)
            delta_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)  # p - 1 at the label: the logits' gradient
            delta_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=delta_CV.dtype))
            delta_CV = delta_CV.to(hidden_MD.dtype)
            if hidden_grad_MD is not None:
                torch.mm(delta_CV, factor_VD, out=hidden_grad_MD[chunk])
            if weight_grad_VD is not None:
                add_product(weight_grad_VD, delta_CV.T, hidden_MD[chunk])
        ctx.gradients = (hidden_grad_MD, weight_grad_VD)
        return total.to(weight_VD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Scale what the forward pass kept."""
        hidden_grad_MD, weight_grad_VD = (None if kept is None else kept.mul_(scale) for kept in ctx.gradients)
        del ctx.gradients
        return hidden_grad_MD, weight_grad_VD, None


def _trainable_head(model: PreTrainedModel) -> Tensor:
    """Fetch the head's weight [V, D] in the accumulation dtype, still a part of autograd's graph."""
    head: nn.Module = model.get_output_embeddings()
    if type(head) is not nn.Linear or dict(head.named_parameters()).keys() != {"weight"}:
        raise UnsupportedLayer(f"lm_head: expected nn.Linear without bias, got {head}")
    weight: Tensor = head.weight
    return weight.to(accumulation_dtype(weight.dtype))


def _at_targets(states_NTD: Tensor, documents: Documents, weight_VD: Tensor) -> Tensor:
    """Gather the states at the positions that have a target, [M, D], in the accumulation dtype."""
    return states_NTD.detach().flatten(0, 1)[documents.positions_M].to(accumulation_dtype(weight_VD.dtype))


def _gradient(hidden_MD: Tensor, weight_VD: Tensor, documents: Documents, uniforms_M: Tensor | None) -> Tensor:
    """Compute the gradient of every target's loss at the head's input, [M, D]."""
    delta_MD = torch.empty_like(hidden_MD)
    for chunk, logits in _logit_chunks(hidden_MD, weight_VD):
        # Probabilities, in place of the chunk's logits: [rows, V]
        p_MV = torch.softmax(logits, dim=1, out=logits)
        if uniforms_M is None:
            labels = documents.targets_M[chunk]
        else:
            labels = _invert_distribution(p_MV.to(hidden_MD.dtype), uniforms_M[chunk, None])
        # Gradient Σ_v p_v w_v - w_label: [rows, D]
        delta_MD[chunk] = p_MV @ weight_VD
        delta_MD[chunk] -= weight_VD[labels]
    return delta_MD


def _logit_chunks(hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield chunks of targets with their logits [rows, V], all in one buffer: callers may overwrite it, not keep it."""
    budget = _CPU_CHUNK_BYTES if hidden_MD.device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    number_bytes = weight_VD.element_size()
    held_bytes = 8 if number_bytes == 2 else number_bytes  # of a rounded logit: itself, in float32, and its gradient
    n_rows = max(_LEAST_CHUNK_TARGETS * 4 // number_bytes, budget // (weight_VD.shape[0] * held_bytes))
    buffer = weight_VD.new_empty(min(n_rows, len(hidden_MD)), weight_VD.shape[0])
    hidden_MD = hidden_MD.to(weight_VD.dtype)
    for start in range(0, len(hidden_MD), n_rows):
        chunk = slice(start, min(start + n_rows, len(hidden_MD)))
        yield chunk, torch.mm(hidden_MD[chunk], weight_VD.T, out=buffer[: chunk.stop - start])


def _invert_distribution(weights_MV: Tensor, uniforms_M1: Tensor) -> Tensor:
    """Sample one index per row, with probability proportional to its weight, by inverting the cumulative sum, [M]."""
    running_MV = weights_MV.cumsum(dim=1)
    thresholds_M1 = uniforms_M1.to(running_MV.dtype) * running_MV[:, -1:]
    labels_M: Tensor = torch.searchsorted(running_MV, thresholds_M1, right=True).squeeze(1)
    return labels_M.clamp_(max=weights_MV.shape[1] - 1)
