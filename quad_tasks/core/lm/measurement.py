"""Measure a language model on held-out text: loss per token of each document, and bits per byte.

Bits per byte compare models of different tokenizers: they count the bytes that were predicted, and no others.

Shapes: N documents, W windows of all documents, M targets of a batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.group_sums import group_sums
from quad_tasks.core.lm.batching import Batch, Tokens, make_batches
from quad_tasks.core.lm.token_bytes import target_bytes
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.loss import frozen, head_weight, hidden_states, losses, read_batch, sum_by_document


@dataclass(frozen=True)
class Measurement:
    """The loss of a model on texts.

    Attributes:
        nats: -log p, summed over all targets.
        target_tokens: how many there are.
        target_bytes: UTF-8 bytes of text that the targets stand for.
        left_out: texts of fewer than two tokens: nothing in them is predicted, and their bytes are not counted.
        nats_N: [N] nats of each text, in the texts' order; 0 for one left out.
        targets_N: [N] its targets.
    """

    nats: float
    target_tokens: int
    target_bytes: int
    left_out: int
    nats_N: npt.NDArray[np.float64]
    targets_N: npt.NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.nats / self.target_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text that was predicted."""
        return bits_per_byte(self.nats, self.target_bytes)


def token_losses(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[float, int]:
    """Sum next-token losses over all targets inside the masks.

    Returns:
        The sum in nats, accumulated in float64, and the number of targets.

    Raises:
        ValueError: a row without a target.
        UnsupportedLayer: the head is not a plain linear map without bias.
    """
    count, head_VD = 0, head_weight(model)
    total = torch.zeros((), dtype=torch.float64, device=head_VD.device)
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            documents = read_batch(batch, head_VD.device)
            losses_M = losses(hidden_states(model, documents), head_VD, documents)
            total = total + losses_M.double().sum()
            count += len(losses_M)
    return float(total), count


def document_losses(
    model: PreTrainedModel, documents: Sequence[Tokens], window_tokens: int, batch_tokens: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum next-token losses of each tokenized document, its windows together.

    Returns:
        [N] nats, accumulated in float64, and [N] targets; both 0 for a document of one token.
    """
    batches, owner_W = make_batches(documents, window_tokens, batch_tokens)
    head_VD, targets_W = head_weight(model), list[int]()
    nats = [torch.zeros(0, dtype=torch.float64, device=head_VD.device)]
    with torch.inference_mode(), frozen(model):
        for batch in batches:
            rows = read_batch(batch, head_VD.device)
            nats.append(sum_by_document(losses(hidden_states(model, rows), head_VD, rows), rows))
            targets_W += rows.n_targets_N
    owner = owner_W.numpy()
    nats_N = group_sums(torch.cat(nats).cpu().numpy(), owner, len(documents))
    return nats_N, group_sums(np.array(targets_W), owner, len(documents)).astype(np.int64)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Convert a summed loss in nats to bits per UTF-8 byte of what was predicted, comparable across tokenizers."""
    return nats / math.log(2) / n_bytes


def measure(
    model: PreTrainedModel, documents: Sequence[Tokens], window_tokens: int, batch_tokens: int
) -> tuple[float, int]:
    """Sum next-token losses of tokenized documents: nats and targets."""
    batches, _ = make_batches(documents, window_tokens, batch_tokens)
    return token_losses(model, batches)


def measure_texts(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    texts: Sequence[str],
    window_tokens: int,
    batch_tokens: int,
    max_tokens: int | None = None,
    name: str = "texts to measure",
) -> Measurement:
    """Measure the loss of texts, and the bytes that were predicted.

    Args:
        model: a causal language model.
        tokenizer: its own.
        texts: measured one by one, each on its own.
        window_tokens: longest sequence; a longer text is split into windows, with every token but its first a target.
        batch_tokens: tokens of a batch, padding included.
        max_tokens: tokens of a text that are measured; None: all.
        name: what the texts are, for the error's message.

    Raises:
        ValueError: no text has two tokens, so that nothing is predicted.
    """
    documents = [ids[:max_tokens] for ids in encode(tokenizer, texts)]
    left_out = sum(len(ids) < 2 for ids in documents)
    if left_out == len(documents):
        raise ValueError(f"{name}: expected a text of at least 2 tokens, found {left_out} of fewer")
    nats_N, targets_N = document_losses(model, documents, window_tokens, batch_tokens)
    n_bytes = sum(target_bytes(tokenizer, texts, max_tokens))
    return Measurement(float(nats_N.sum()), int(targets_N.sum()), n_bytes, left_out, nats_N, targets_N)
