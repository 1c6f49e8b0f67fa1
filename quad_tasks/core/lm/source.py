"""Load what `model.source` names: a Hugging Face id, a local folder, or one `.gguf` file.

A GGUF file holds a model, its configuration and its tokenizer, with most weights quantised. Influence needs weights to
differentiate, so that these are dequantised to floating point; what they lost when they were quantised stays lost.
Refuses a GGUF file that is cut short, one that does not hold a language model, and one without its optional packages.
"""

import importlib.util
import io
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.core.lm.model import ModelError, load_model
from quad_tasks.core.lm.tokenizer import load_tokenizer

GGUF_SUFFIX = ".gguf"
PACKAGES = ("gguf", "accelerate")
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of GGUF tensors that are not quantised."""


def is_gguf(source: str | Path) -> bool:
    """Tell whether a source is a GGUF file, by its name."""
    return Path(source).suffix == GGUF_SUFFIX


def load_source(
    source: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a causal language model, in eval mode, and its tokenizer; a GGUF file's weights are dequantised.

    Args:
        source: a Hugging Face id, a folder, or a `.gguf` file.
        dtype: of the weights.
        device: where they are put.

    Raises:
        ModelError: there is no such model or tokenizer, or a GGUF file cannot be read here.
    """
    if not is_gguf(source):
        return load_model(source, dtype, device), load_tokenizer(source)
    describe_gguf(source)
    path = Path(source)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "trust_remote_code": False}
    try:
        with redirect_stderr(io.StringIO()):  # a bar of its own for every tensor
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
            tokenizer: FastTokenizer = AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{source}: expected a GGUF file of a causal language model: {_first_line(error)}") from None
    # From here on it is a model like any other; else it could not be saved, or whoever loads it takes it for quantised
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")):
        vars(owner).pop(name, None)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source}: expected a GGUF file with a fast tokenizer, found {type(tokenizer).__name__}")
    return model.to(device).eval(), tokenizer


def describe_gguf(source: str | Path) -> dict[str, int]:
    """Count a GGUF file's tensors by the type they are stored in, e.g. ``{"Q4_1": 210, "F32": 61}``.

    Raises:
        ModelError: a package is missing, or it is no whole GGUF file.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"model.source: reading {source} needs the packages {' and '.join(PACKAGES)}, found no "
            f"{' and no '.join(missing)}: pip install -c constraints.txt '.[gguf]'"
        )
    if not Path(source).is_file():
        raise ModelError(f"model.source: expected a GGUF file, found none at {source}")
    import gguf

    try:
        tensors: list[Any] = gguf.GGUFReader(str(source)).tensors
    except Exception as error:  # the reader meets a damaged file with whatever numpy raises
        raise ModelError(f"{source}: expected a whole GGUF file: {_first_line(error)}") from None
    return dict(Counter(tensor.tensor_type.name for tensor in tensors))


def dequantised(stored: dict[str, int]) -> dict[str, int]:
    """Keep of `describe_gguf`'s counts those of quantised tensors."""
    return {kind: n for kind, n in stored.items() if kind not in FLOATS}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
