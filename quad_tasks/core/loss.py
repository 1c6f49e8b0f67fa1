"""Documents in, next-token losses and their gradient at the last hidden state out.

Owns the batch layout and the language-model head. The head is differentiated by hand, chunk by chunk: the logits of a
whole batch, and their gradient, are the largest tensors of a small model and never exist here. Rejected:
autograd through the head (keeps the logits), one chunk per document (too small or too large).

Padding never reaches the model: rows are compacted to the left by their mask, so that causal attention alone keeps what
follows a document out of it, no attention mask is needed and left and right padding are the same input.

The head's weight is passed in the dtype that its products are to be computed in (`quad_tasks.core.precision`).

Shape suffixes: N documents, T tokens, M targets of all documents in row order (positions 0..n-2 of a document of n
tokens), D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quad_tasks.core.blocks import UnsupportedLayer
from quad_tasks.core.precision import accumulation_dtype

Batch = Mapping[str, Tensor]
Fisher = Literal["true", "empirical"]

# Logits in flight: about a CPU's last-level cache, so that the passes over them stay out of main memory.
_CPU_CHUNK_BYTES = 8 * 2**20
_ACCELERATOR_CHUNK_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Documents:
    """A batch, compacted to the left.

    Attributes:
        ids_NT: [N, T] int64 token ids; those past a document's end are 0 and touch nothing.
        lengths_N: tokens of each document, at least 2.
        positions_M: [M] int64, where the positions that count lie in the flattened [N * T].
        targets_M: [M] int64, the token after each of them.
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
    """Compact a batch to the left, dropping what its mask excludes.

    Args:
        batch: ``input_ids`` [N, T] int64, ``attention_mask`` [N, T] (0 or 1), optionally ``seed`` [N] int64.
        device: where the model is.

    Returns:
        The documents.

    Raises:
        ValueError: a document of fewer than two tokens: it has no target and no influence.
    """
    mask_NT = batch["attention_mask"].to(device).bool()
    lengths = mask_NT.sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        if length < 2:
            raise ValueError(f"row {row} of the batch: expected at least 2 tokens, got {length}")
    order_NT = torch.argsort(~mask_NT, dim=1, stable=True)[:, : max(lengths)]
    columns_T = torch.arange(max(lengths), device=device)
    ends_N1 = torch.tensor(lengths, device=device)[:, None]
    ids_NT = batch["input_ids"].to(device).gather(1, order_NT).masked_fill(columns_T >= ends_N1, 0)
    positions_M = (columns_T < ends_N1 - 1).flatten().nonzero().squeeze(1)
    seeds = batch.get("seed")
    return Documents(
        ids_NT=ids_NT,
        lengths_N=tuple(lengths),
        positions_M=positions_M,
        targets_M=ids_NT.flatten()[positions_M + 1],
        seeds_N=None if seeds is None else tuple(seeds.tolist()),
    )


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Hold the model in eval mode with no parameter requiring a gradient; put every flag back on leaving."""
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
    """Fetch the head's weight [V, D] in the accumulation dtype.

    Raises:
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    head: nn.Module = model.get_output_embeddings()
    if type(head) is not nn.Linear or dict(head.named_parameters()).keys() != {"weight"}:
        raise UnsupportedLayer(f"lm_head: expected nn.Linear without bias, got {head}")
    weight = head.weight.detach()
    return weight.to(accumulation_dtype(weight.dtype))


def hidden_states(model: PreTrainedModel, documents: Documents) -> Tensor:
    """Run the model up to its head: [N, T, D]."""
    states: Tensor = model.base_model(input_ids=documents.ids_NT, use_cache=False).last_hidden_state
    return states


def losses(hidden_NTD: Tensor, weight_VD: Tensor, documents: Documents) -> Tensor:
    """Compute -log p of every target, [M], in the accumulation dtype, with no gradient."""
    dtype = accumulation_dtype(weight_VD.dtype)
    parts = [
        torch.log_softmax(logits, dim=1, dtype=dtype).gather(1, documents.targets_M[chunk, None])
        for chunk, logits in _logit_chunks(_at_targets(hidden_NTD, documents, weight_VD), weight_VD)
    ]
    return torch.cat(parts).squeeze(1).neg_()


def loss_gradient(
    hidden_NTD: Tensor, weight_VD: Tensor, documents: Documents, uniforms_M: Tensor | None = None
) -> Tensor:
    """Compute the gradient of the documents' summed losses at the last hidden state.

    Args:
        hidden_NTD: [N, T, D], the head's input.
        weight_VD: [V, D], as `head_weight` gives it.
        documents: the batch.
        uniforms_M: [M] in [0, 1): labels are then drawn from the model's own distribution, one uniform per target, by
            inverting its distribution function; None: the documents' own next tokens.

    Returns:
        [N, T, D] in the dtype of ``hidden_NTD``; zero at the positions that do not count.
    """
    delta_MD = _gradient(_at_targets(hidden_NTD, documents, weight_VD), weight_VD, documents, uniforms_M)
    delta_NTD = torch.zeros_like(hidden_NTD)
    delta_NTD.flatten(0, 1)[documents.positions_M] = delta_MD.to(hidden_NTD.dtype)
    return delta_NTD


def loss_difference(plus_NTD: Tensor, minus_NTD: Tensor, weight_VD: Tensor, documents: Documents) -> Tensor:
    """Compute how much every target's loss differs between two last hidden states, to third order in their distance.

    It is the gradient at their middle times their difference: the products of the two losses, but half of the
    exponentials, and no difference of two nearly equal losses, whose rounding would drown it.

    Args:
        plus_NTD: [N, T, D].
        minus_NTD: [N, T, D], subtracted.
        weight_VD: [V, D], as `head_weight` gives it.
        documents: the batch.

    Returns:
        [M], in the accumulation dtype.
    """
    plus_MD, minus_MD = (_at_targets(states_NTD, documents, weight_VD) for states_NTD in (plus_NTD, minus_NTD))
    delta_MD = _gradient((plus_MD + minus_MD).div_(2), weight_VD, documents, None)
    return (plus_MD - minus_MD).mul_(delta_MD).sum(dim=1)


def draw_uniforms(documents: Documents, fisher: Fisher, generator: torch.Generator | None) -> Tensor | None:
    """Draw the randomness of sampled labels: one float64 uniform per target, on the CPU, so on every device the same.

    Args:
        documents: with seeds, each document's numbers depend on its seed alone.
        fisher: ``empirical`` needs none.
        generator: used when the batch carries no seeds.

    Returns:
        [M] on the documents' device, or None for the empirical Fisher.

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
        return torch.cat(draws).to(documents.ids_NT.device)
    if generator is None:
        raise ValueError("fisher='true': expected a 'seed' per row of the batch or a generator, got neither")
    return torch.rand(sum(documents.n_targets_N), generator=generator, dtype=torch.float64).to(documents.ids_NT.device)


def _at_targets(states_NTD: Tensor, documents: Documents, weight_VD: Tensor) -> Tensor:
    """Copy the states at the positions that count, [M, D], in the accumulation dtype."""
    return states_NTD.detach().flatten(0, 1)[documents.positions_M].to(accumulation_dtype(weight_VD.dtype))


def _gradient(hidden_MD: Tensor, weight_VD: Tensor, documents: Documents, uniforms_M: Tensor | None) -> Tensor:
    """Compute the gradient of every target's loss at the head's input, [M, D]."""
    delta_MD = torch.empty_like(hidden_MD)
    for chunk, logits in _logit_chunks(hidden_MD, weight_VD):
        p_MV = torch.softmax(logits, dim=1, out=logits)
        if uniforms_M is None:
            labels = documents.targets_M[chunk]
        else:
            labels = _invert_distribution(p_MV.to(hidden_MD.dtype), uniforms_M[chunk, None])
        delta_MD[chunk] = p_MV @ weight_VD
        delta_MD[chunk] -= weight_VD[labels]
    return delta_MD


def _logit_chunks(hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of targets with their logits; one buffer serves all: change it, do not keep it."""
    budget = _CPU_CHUNK_BYTES if hidden_MD.device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    n_rows = max(1, budget // (weight_VD.shape[0] * weight_VD.element_size()))
    buffer = weight_VD.new_empty(min(n_rows, len(hidden_MD)), weight_VD.shape[0])
    hidden_MD = hidden_MD.to(weight_VD.dtype)
    for start in range(0, len(hidden_MD), n_rows):
        chunk = slice(start, min(start + n_rows, len(hidden_MD)))
        yield chunk, torch.mm(hidden_MD[chunk], weight_VD.T, out=buffer[: chunk.stop - start])


def _invert_distribution(weights_MV: Tensor, uniforms_M1: Tensor) -> Tensor:
    """Draw one index per row with probability proportional to the weights: the first whose running sum passes u."""
    running_MV = weights_MV.cumsum(dim=1)
    thresholds_M1 = uniforms_M1.to(running_MV.dtype) * running_MV[:, -1:]
    labels_M: Tensor = torch.searchsorted(running_MV, thresholds_M1, right=True).squeeze(1)
    return labels_M.clamp_(max=weights_MV.shape[1] - 1)
