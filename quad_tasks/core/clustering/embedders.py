"""Embedders, by name: what each needs, and how it turns texts into vectors.

Owns the `Embedder`, which an extension is one of too, and the product's three: hashed n-grams, a Hugging Face encoder,
the model's own mean hidden state. `embed_texts.py` computes; a stage stores what was fitted and loads the model.

Shape suffixes: N documents, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.clustering import embed_texts

Arrays = Mapping[str, npt.NDArray[Any]]
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""Texts [N] to unit rows [N, D] float32; no text to [0, D]; a text's row depends on that text alone."""


@dataclass(frozen=True)
class EmbedderInputs:
    """What an embedder is loaded with, once a process.

    Attributes:
        settings: the section `embedding` of the configuration, as plain values.
        device: `cpu` or `cuda`, for models.
        fitted: what `fit` returned; empty where there is none.
        load_model: loads the run's checkpoint and its tokenizer; for embedders that read it.
    """

    settings: Mapping[str, Any]
    device: str
    fitted: Arrays
    load_model: Callable[[], tuple[PreTrainedModel, FastTokenizer]]


@dataclass(frozen=True)
class Embedder:
    """A way to embed texts; `quad_tasks.testing.check_embedder` is its contract.

    Attributes:
        load: returns the function that embeds.
        fit: fits arrays on a sample of texts, given the settings and a seed; None where nothing is fitted.
        reads_model: whether vectors depend on the run's checkpoint, so that another one embeds anew.
    """

    load: Callable[[EmbedderInputs], Embed]
    fit: Callable[[Sequence[str], Mapping[str, Any], int], Arrays] | None = None
    reads_model: bool = False


def _fit_ngrams(texts: Sequence[str], settings: Mapping[str, Any], seed: int) -> Arrays:
    return embed_texts.embedder_to_arrays(embed_texts.fit_ngram_embedder(texts, settings["dimension"], seed))


def _load_ngrams(given: EmbedderInputs) -> Embed:
    return partial(embed_texts.embed_ngrams, embed_texts.embedder_from_arrays(given.fitted))


def _load_encoder(given: EmbedderInputs) -> Embed:
    encoder = embed_texts.load_encoder(given.settings["encoder"], given.device)
    pooling, max_tokens = given.settings["pooling"], given.settings["max_tokens"]
    return partial(embed_texts.embed_encoder, encoder, pooling=pooling, max_tokens=max_tokens)


def _load_states(given: EmbedderInputs) -> Embed:
    model, tokenizer = given.load_model()
    return partial(embed_texts.embed_hidden_states, model, tokenizer, max_tokens=given.settings["max_tokens"])


NGRAMS = Embedder(_load_ngrams, fit=_fit_ngrams)
ENCODER = Embedder(_load_encoder)
STATES = Embedder(_load_states, reads_model=True)
