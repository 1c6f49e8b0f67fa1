"""Run a model with causal attention alone, as the batches of `loss.py` need it, without a look at their positions.

transformers asks every forward pass whether its documents are packed, and waits for the device's answer. Here none is
packed and no mask is needed, so the model is given an attention that takes none: torch's own, told to be causal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

OWN, TORCHS = "quad_causal", "sdpa"


@contextmanager
def causal_attention(model: PreTrainedModel, n_tokens: int) -> Iterator[None]:
    """Let a model's forward passes inside the context take no mask, where that changes nothing.

    A model keeps its own attention where it is not torch's, or where its window is shorter than the sequences. For
    the architectures that `blocks.find_blocks` knows that is all. Others may differ in more: Falcon asks whether its
    attention has torch's name, Llama 4 attends within chunks.

    Args:
        model: a causal language model; left as it was found.
        n_tokens: of the longest sequence.
    """
    window = getattr(model.config, "sliding_window", None)
    if model.config._attn_implementation != TORCHS or (window is not None and n_tokens > window):
        yield
        return
    AttentionInterface.register(OWN, sdpa_attention_forward)
    try:
        model.config._attn_implementation = OWN
        yield
    finally:
        model.config._attn_implementation = TORCHS
